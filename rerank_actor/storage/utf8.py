"""Whether texts and bytes are Unicode that every tokenizer and every file format can hold."""


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which no tokenizer and no file format can hold."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_utf8(value: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True

"""Names of files: the format and the packing that a name tells, in one table for all that reads files.

Takes a URI, gives its format and how it is packed, or a refusal that says what to do: `.7z` and its like are not read, an
unknown name wants a flag. Also tells by its first bytes what a file is packed as. Knows nothing of what a format holds.
"""

from collections.abc import Sequence
from typing import Literal, cast

from rerank_actor.errors import InputError

Format = Literal["parquet", "jsonl", "csv", "tsv", "arrow", "trec", "tevatron", "msmarco", "qrels", "mteb-predictions"]
TextFormat = Literal["jsonl", "csv", "tsv", "lines"]  # lines: each is a text, as in Moses files

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".trec": "trec",
    ".run": "trec",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}
UNPACKERS = {  # of what is not read, how it is unpacked
    ".lzma": "xz -dc FILE",
    ".zip": "unzip FILE",
    ".7z": "7z x FILE",
    ".lz4": "lz4 -dc FILE",
    ".tar": "tar -xf FILE",
    ".tgz": "tar -xzf FILE",
}
ARCHIVES = (".tar", ".tgz", ".7z")  # of these, what holds many files
MAGICS = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ\0": ".xz",
    **{b"BZh%d" % level + block: ".bz2" for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")},
    b"PK\x03\x04": ".zip",
}
MAGIC_BYTES = max(map(len, MAGICS))
ARROW_FILE = b"ARROW1"  # Arrow's streams begin otherwise
BINARIES: dict[bytes, Format] = {b"PAR1": "parquet", ARROW_FILE: "arrow"}  # told by these, whatever the name
FOREIGN = {  # first bytes of what is no text of lines, and what it is
    **{magic: f"is {kind.capitalize()}; name it .{kind}" for magic, kind in BINARIES.items()},
    b"ORC": "is ORC, which is not read; write it as Parquet",
    b"Obj\x01": "is Avro, which is not read; write it as Parquet",
    b"SQLite format 3\0": "is an SQLite database; export its table as CSV",
    b"\x89HDF": "is HDF5, which is not read; write it as Parquet",
    b"%PDF": "is a PDF document, and holds no rows",
    b"\xd0\xcf\x11\xe0": "is an old Office document; save it as CSV in UTF-8",
    b"\x80\x04\x95": "is a Python pickle, which is never read; write it as Parquet",
    b"version https://git-lfs.github.com/spec/": "is a pointer to a file in Git LFS; fetch that with git lfs pull",
}
WIDE_TEXT = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def split_name(uri: str) -> tuple[str, str, str]:
    """Return a URI without its suffix, the suffix with its dot, and the compression (gz, zst, bz2, xz or none)."""
    compression = ""
    for ending, codec in COMPRESSIONS.items():
        if not compression and uri.lower().endswith(ending):
            uri, compression = uri[: -len(ending)], codec
    name = uri.rpartition("/")[2]
    suffix = "." + name.rpartition(".")[2] if "." in name else ""
    return (uri[: -len(suffix)] if suffix else uri), suffix, compression


def find_format(uri: str, wanted: str = "auto") -> tuple[Format | None, str]:
    """Return format, None where the name does not tell it, and compression (as `COMPRESSIONS`, else "") of a file.

    Raises:
        InputError: it is packed as nothing here reads, whatever format is wanted.
    """
    _, suffix, compression = split_name(uri)
    if suffix.lower() in UNPACKERS:
        advice = f"unpack it, or pack it as .gz or .zst ({UNPACKERS[suffix.lower()]} | zstd > NEW.zst)"
        if suffix.lower() in (*ARCHIVES, ".zip"):  # may hold several files, which are not to become one
            advice = f"unpack it ({UNPACKERS[suffix.lower()]})"
        raise InputError(f"{uri}: is packed as {suffix.lower()}, which is not read; {advice}", uri=uri)
    return cast(Format, wanted) if wanted != "auto" else SUFFIXES.get(suffix.lower()), compression


def is_shard(uri: str, wanted: str = "auto") -> bool:
    """Whether a file beside others is a shard by its name; an archive of several files is none, as no unknown name is.

    Raises:
        InputError: it is packed as nothing here reads, and may hold rows.
    """
    name, suffix, _ = split_name(uri)
    if wanted == "auto" and suffix.lower() in ARCHIVES and split_name(name)[1].lower() not in SUFFIXES:
        return False
    return find_format(uri, wanted)[0] is not None


def detect_format(uri: str, wanted: str = "auto") -> tuple[Format, str]:
    """Return format and compression of a file by its name.

    Raises:
        InputError: the name says nothing and no format was given, or it is packed as nothing here reads.
    """
    kind, compression = find_format(uri, wanted)
    if kind is None:
        raise InputError(f"{uri}: the name does not tell its format; name one with --format", uri=uri)
    return kind, compression


def find_foreign(head: bytes) -> str | None:
    """Return what the first bytes of a text show it to be, and what to do, where it is not one of lines in UTF-8."""
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            return what
    wide = next((name for mark, name in WIDE_TEXT.items() if head.startswith(mark)), None)
    if wide is None and len(head) > 3 and 0 in head[:4] and any(head[:4]):
        # JSON and names of columns begin with ASCII, of which the other bytes are then zero.
        shape = "".join("x" if byte else "0" for byte in head[:4])
        wide = {"x0x0": "UTF-16LE", "0x0x": "UTF-16BE", "x000": "UTF-32LE", "000x": "UTF-32BE"}.get(shape)
    if wide is not None:
        return f"is {wide}, not UTF-8; change it (iconv -f {wide} -t UTF-8 FILE > NEW)"
    start = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a page of HTML, as a server sends in place of a file; fetch the file again"
    if start.startswith((b"<?xml", b"<error>")):
        return "is XML, which is not read here"
    return None


def find_mismatch(head: bytes, compression: str) -> str | None:
    """Return how the first bytes of a file contradict its name, None where they agree or there are none."""
    ending = next((ending for magic, ending in MAGICS.items() if head.startswith(magic)), None)
    named = next((ending for ending, codec in COMPRESSIONS.items() if codec == compression), None)
    is_frame = named == ".zst" and head[1:4] == b"\x2a\x4d\x18"  # one that is to be skipped, before the first
    if not head or ending == named or is_frame:
        return None
    if named is None:
        return f"its content is packed as {ending}, which its name does not say: rename it"
    return f"its name ends in {named}, its content is {f'packed as {ending}' if ending else 'not packed so'}: rename it"


def describe_separator(names: Sequence[str]) -> str:
    """Return what separates the fields of a file whose header was taken for one name, in words; else an empty text."""
    if names and names[0].lower().startswith("sep="):
        return "; its first line tells Excel the separator and is no header, take it out"
    if len(names) != 1:
        return ""
    if "\t" in names[0]:
        return "; its fields are separated by tabs, which --format tsv reads"
    if "," in names[0]:
        return "; its fields are separated by commas, which --format csv reads"
    mark = next((mark for mark in ";|" if mark in names[0]), None)
    return f"; its fields are separated by `{mark}`, which is not read: write it with commas or tabs" if mark else ""

r"""Templates for texts made of several columns: `{title}\n{text}`.

A name in braces stands for a column of the row or a field of the candidate; `{{` and `}}` are braces, `\n`, `\t` and
`\\` are what they are in Python, so that a shell's single quotes do. Nothing else is understood: no attributes, no
formats. Knows nothing of where values come from.
"""

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


@dataclass(frozen=True)
class FieldTemplate:
    """A parsed template: literals, each but the last followed by a field."""

    literals: tuple[str, ...]
    names: tuple[str, ...]

    def fill(self, get: Callable[[str], Any]) -> Any:
        """Return the text for the values that `get` gives by name.

        A null is the empty text, and None is returned where all are null. A value that is no text, number or date is
        returned itself, for whoever asks whether it is text.
        """
        values = [get(name) for name in self.names]
        if all(value is None for value in values):
            return None
        pieces = [self.literals[0]]
        for value, literal in zip(values, self.literals[1:], strict=True):
            if isinstance(value, list | dict | tuple | bytes):
                return value
            pieces.append("" if value is None else str(value).lower() if isinstance(value, bool) else str(value))
            pieces.append(literal)
        return "".join(pieces)


@lru_cache(maxsize=16)
def parse_template(text: str) -> FieldTemplate:
    """Parse a template.

    Raises:
        ValueError: it names no field, or is not written as it should be.
    """
    literals, names = [""], []
    try:
        pieces = list(string.Formatter().parse(re.sub(r"\\[nt\\]", lambda escape: _ESCAPES[escape[0]], text)))
    except ValueError as error:
        raise ValueError(f"braces do not match ({error}); write {{name}} for a field and {{{{ for a brace") from None
    for literal, name, form, conversion in pieces:
        literals[-1] += literal
        if name is None:
            continue
        if not name or form or conversion:
            raise ValueError("a field is a name in braces, as in {title}, with nothing behind the name")
        names.append(name)
        literals.append("")
    if not names:
        raise ValueError("it names no field; write column names in braces, as in '{title}\\n{text}'")
    return FieldTemplate(tuple(literals), tuple(names))

"""Expressions over columns, as in `score > 0.2 and score < 0.8`: Python's grammar, of which a few forms are known.

Comparisons, `and`, `or`, `not`, `in`, `is null`, arithmetic, numbers, texts and truth values; `float(name)` reads numbers that
are written as text, `col("a name")` is a column whose name is no word; SQL's `=`, `<>` and capital words are taken. A text is
parsed, never run. Gives an expression of Arrow and the columns it is about. As in SQL, null compares as null.
"""

import ast
import io
import operator
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_CHARACTERS = 10_000
WORDS = {
    "AND": "and",
    "OR": "or",
    "NOT": "not",
    "IN": "in",
    "IS": "is",
    "NULL": "null",
    "TRUE": "True",
    "FALSE": "False",
}
CONSTANTS = {"null": None, "true": True, "false": False}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: left * pc.scalar(1.0) / right,  # Arrow divides whole numbers into whole numbers
}


@dataclass(frozen=True)
class Where:
    """An expression.

    Attributes:
        text: as it was written.
        columns: that it is about, in order of sight.
        numbers: of these, the ones that `float()` reads numbers from; `condition` has them as `float(NAME)`.
        condition: for Arrow, of columns with these names.
        floored: of the columns, those that are to be above a number.
    """

    text: str
    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    condition: pc.Expression
    floored: tuple[str, ...] = ()


def parse_where(text: str) -> Where:
    """Read an expression.

    Raises:
        ValueError: it is none; says where.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an expression of more than {MAX_CHARACTERS:,} characters is not taken")
    reader = _Reader()
    try:
        condition = reader.read(ast.parse(_respell(text), mode="eval").body)
    except (SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        detail = error.msg if isinstance(error, SyntaxError) else "it has no end, or no depth that is read"
        raise ValueError(
            f"{text!r} is no expression ({detail}); write one as in \"score > 0.2 and lang in ('de', 'en')\""
        ) from None
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
        raise ValueError(f"{text!r} has a value that cannot be compared ({error})") from None
    if not reader.columns:
        raise ValueError(f"{text!r} is about no column, so that it holds for all rows or for none")
    return Where(text, tuple(reader.columns), tuple(reader.numbers), condition, tuple(reader.floored))


def _respell(text: str) -> str:
    """Return a text with SQL's words and signs as Python has them; what stands in quotes stays."""
    tokens: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
        string = token.string
        if token.type == tokenize.NAME:
            string = WORDS.get(string, string)
        elif token.type == tokenize.OP:
            if tokens[-1:] == [(tokenize.OP, "<")] and string == ">":
                tokens[-1] = (tokenize.OP, "!=")
                continue
            string = "==" if string == "=" else string
        elif token.type == tokenize.STRING and tokens and tokens[-1][0] == tokenize.STRING:
            raise ValueError(
                f'{tokens[-1][1]} and {string} stand side by side: a quote in a text is written as in "it\'s"'
            )
        tokens.append((token.type, string))
    return tokenize.untokenize(tokens).strip()


def name_number(column: str) -> str:
    """Return what a condition calls the numbers of a column."""
    return f"float({column})"


class _Reader:
    """Makes an Arrow expression of a tree, and collects its columns."""

    def __init__(self) -> None:
        self.columns: dict[str, None] = {}
        self.numbers: dict[str, None] = {}
        self.floored: dict[str, None] = {}

    def read(self, node: ast.expr) -> Any:
        """Return what a node means.

        Raises:
            ValueError: it is nothing that is known.
        """
        if isinstance(node, ast.BoolOp):
            values = [self.read(value) for value in node.values]
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            found = values[0]
            for value in values[1:]:
                found = join(found, value)
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            floored = dict(self.floored)
            found = ~self.read(node.operand)
            self.floored = floored  # what is denied is no floor
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return pc.negate(self.read(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            return ARITHMETIC[type(node.op)](self.read(node.left), self.read(node.right))
        if isinstance(node, ast.Compare):
            return self._read_comparison(node)
        if isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Constant):
            return self._read_value(node)
        raise ValueError(f"`{ast.unparse(node)}` is not taken: {_TAKEN}")

    def _read_value(self, node: ast.expr) -> pc.Expression:
        if isinstance(node, ast.Constant):
            if not isinstance(node.value, bool | int | float | str | None):
                raise ValueError(f"`{ast.unparse(node)}` is not taken: {_TAKEN}")
            return pc.scalar(node.value)
        if isinstance(node, ast.Name) and node.id in CONSTANTS:
            return pc.scalar(CONSTANTS[node.id])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "float" and len(node.args) == 1:
            name = self._find_name(node.args[0])
            self.numbers[name] = None
            return pc.field(name_number(name))
        return pc.field(self._find_name(node))

    def _find_name(self, node: ast.expr) -> str:
        """Return the column that a node names."""
        name: Any = None
        if isinstance(node, ast.Name | ast.Attribute):
            name = ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "col" and len(node.args) == 1:
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        if not isinstance(name, str):
            raise ValueError(f"`{ast.unparse(node)}` is not taken: {_TAKEN}")
        self.columns[name] = None
        return name

    def _read_comparison(self, node: ast.Compare) -> pc.Expression:
        found, left = None, node.left
        for sign, right in zip(node.ops, node.comparators, strict=True):
            one = self._compare(left, sign, right)
            found, left = one if found is None else pc.and_kleene(found, one), right
        return found

    def _compare(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(sign, ast.Is | ast.IsNot):
            if not _is_null(right):
                raise ValueError(f"`is {ast.unparse(right)}` is not taken: `is null` and `is not null` are, else ==")
            is_null = self.read(left).is_null()
            return is_null if isinstance(sign, ast.Is) else ~is_null
        if isinstance(sign, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
                values: list[ast.expr] = [right] if isinstance(right, ast.Constant) else []
            else:
                values = right.elts
            listed = [_read_listed(value) for value in values]
            if not listed or None in listed or len({type(value) is str for value in listed}) > 1:
                raise ValueError(f"`in {ast.unparse(right)}` is not taken: give values of one kind, as in ('a', 'b')")
            value = self.read(left)
            is_in = value.isin(listed)
            held = pc.if_else(value.is_null(), pc.scalar(None).cast(pa.bool_()), is_in)
            return held if isinstance(sign, ast.In) else ~held
        if _is_null(left) or _is_null(right):
            raise ValueError("nothing equals null: write `is null` or `is not null`")
        higher, lower = (left, right) if isinstance(sign, ast.Gt | ast.GtE) else (right, left)
        if isinstance(higher, ast.Call) and ast.unparse(higher.func) == "float" and len(higher.args) == 1:
            higher = higher.args[0]
        is_column = isinstance(higher, ast.Name | ast.Attribute | ast.Call)
        if is_column and isinstance(lower, ast.Constant | ast.UnaryOp) and not isinstance(sign, ast.Eq | ast.NotEq):
            self.floored[self._find_name(higher)] = None
        return COMPARISONS[type(sign)](self.read(left), self.read(right))


_TAKEN = 'columns, numbers, texts in quotes, comparisons, and, or, not, in, is null, + - * /, float(name) and col("a name") are'


def _read_listed(node: ast.expr) -> bool | int | float | str | None:
    """Return a value of a list, None where it is none."""
    if isinstance(node, ast.Name):
        return CONSTANTS.get(node.id)
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, bool | int | float | str) else None


def _is_null(node: ast.expr) -> bool:
    return (isinstance(node, ast.Constant) and node.value is None) or (isinstance(node, ast.Name) and node.id == "null")

"""CSV and TSV of any writer: read back exactly, or told row by row, or refused; the same whatever unit a row is in."""

import csv
import io
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rerank_actor import storage
from rerank_actor.errors import RerankError
from rerank_actor.inputs import shards
from rerank_actor.inputs.batches import read_batches
from rerank_actor.inputs.rows import Unit
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.syntax.quoted import BEHIND, ESCAPED, LOOKS_QUOTED, ODD_ESCAPE, STRAY, UNCLOSED, Dialect

Row = tuple[str | None, ...]
NAMES = ("query", "document")
TEXTS = st.text(alphabet='ab"",\t\n\r;\' \u00e9', max_size=8)
TABLES = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)
PROPERTY = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, data: str | bytes) -> storage.StoredObject:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return storage.StoredObject(str(path), path.stat().st_size, "")


def write_rows(rows: Any, **options: Any) -> str:
    sink = io.StringIO(newline="")
    csv.writer(sink, **{"lineterminator": "\n", **options}).writerows([NAMES, *rows])
    return sink.getvalue()


def read(item: storage.StoredObject, dialect: Dialect, unit_rows: int) -> list[tuple[Row, str | None]]:
    """Return the values of each row and its fault, read by units; those of a file read as a whole are the same."""
    spec = InputSpec(unit_rows=unit_rows, dialect=dialect)
    found: list[tuple[Row, str | None]] = []
    for block in shards.scan_shard(item, spec).blocks:
        unit = Unit("", item.uri, item.size, "", len(found), block.num_rows, block.byte_start, block.number)
        rows = shards.read_rows(unit, spec)
        values = zip(*(rows.table.column(name).to_pylist() for name in rows.table.column_names), strict=True)
        found += zip(values, rows.faults, strict=True)
    kind = "tsv" if item.uri.endswith("tsv") else "csv"
    whole = list(read_batches(item, kind, dialect=dialect))
    numbers = [batch.numbers[row] for batch in whole for row in sorted(batch.faults)]
    assert [int(fault.rpartition("line ")[2][:-1]) for _, fault in found if fault] == numbers
    return found


def check_told(found: list[tuple[Row, str | None]], rows: list[tuple[str, str]]) -> None:
    """Check that a row is read as it was written, or is a fault."""
    whole = [row for row, fault in found if fault is None]
    if len(whole) == len(found):
        assert whole == rows
    left = iter(rows)
    assert all(any(row == other for other in left) for row in whole), (whole, rows)


@PROPERTY
@given(
    rows=TABLES, quoting=st.sampled_from([0, 1, 2]), end=st.sampled_from(["\n", "\r\n"]), unit_rows=st.integers(1, 4)
)
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_rows_of_a_csv_writer_are_read_back(
    tmp_path: Path, kind: str, rows: list[tuple[str, str]], quoting: Any, end: str, unit_rows: int
) -> None:
    assume(
        end == "\r\n" or not any("\r" in text for row in rows for text in row)
    )  # Python 3.11 writes a lone one without quotes
    data = write_rows(rows, quoting=quoting, lineterminator=end, delimiter="," if kind == "csv" else "\t")
    found = read(write(tmp_path / f"rows.{kind}", data), Dialect("csv"), unit_rows)
    check_told(found, rows)
    assert [row for row, _ in found] == rows


@PROPERTY
@given(rows=TABLES, quoting=st.sampled_from([0, 1, 2, 3]), doubles=st.booleans(), unit_rows=st.integers(1, 4))
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_rows_with_escapes_are_read_with_the_flag_and_told_without(
    tmp_path: Path, kind: str, rows: list[tuple[str, str]], quoting: Any, doubles: bool, unit_rows: int
) -> None:
    options = {"quoting": quoting, "doublequote": doubles, "escapechar": "\\", "lineterminator": "\r\n"}
    data = write_rows(rows, **options, delimiter="," if kind == "csv" else "\t")
    item = write(tmp_path / f"rows.{kind}", data)
    told = read(item, Dialect("none" if quoting == 3 else "csv", "\\"), unit_rows)
    assert [row for row, _ in told] == rows
    assume("\\" in data)
    try:
        found = read(item, Dialect(), unit_rows)
    except RerankError:
        return
    if quoting != 3:  # without quotes, an escape is like any backslash of a text
        check_told(found, rows)


@PROPERTY
@given(rows=TABLES, quoting=st.sampled_from([0, 1, 2]), unit_rows=st.integers(1, 4))
def test_tsv_of_a_csv_writer_is_refused_or_has_no_quotes(
    tmp_path: Path, rows: list[tuple[str, str]], quoting: Any, unit_rows: int
) -> None:
    data = write_rows(rows, quoting=quoting, delimiter="\t", lineterminator="\r\n")
    item = write(tmp_path / "rows.tsv", data)
    try:
        found = read(item, Dialect(), unit_rows)
    except RerankError as error:
        assert "--quoting csv" in str(error) or '"' not in data
        return
    check_told(found, rows)


@pytest.mark.parametrize("mark", [",", "\t"])
def test_tables_of_pandas_and_arrow_are_read_back(tmp_path: Path, mark: str) -> None:
    rows = [('say "hi"', 'He said ""'), ("two\nlines", "a\tb, c"), ("plain", ' "third" ')]
    table = pd.DataFrame(rows, columns=list(NAMES))
    name = "rows.csv" if mark == "," else "rows.tsv"
    item = write(tmp_path / name, table.to_csv(index=False, sep=mark))
    assert [row for row, _ in read(item, Dialect("csv"), 1)] == rows
    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_pandas(table), sink, pyarrow.csv.WriteOptions(delimiter=mark))
    assert [row for row, _ in read(write(tmp_path / name, sink.getvalue()), Dialect("csv"), 2)] == rows


@pytest.mark.parametrize("unit_rows", [1, 2, 100])
@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        (["q,a", 'q,"never closed', "q,c", "q,d"], [None, UNCLOSED, None, None]),
        (["q,a", 'q,"opened', "q,c", 'q,"a, b"', "q,e"], [None, STRAY, None, None, None]),
        (['q,"say "hi" there"', "q,b"], [STRAY, None]),
        (['q,"a 5" pipe', "x, y", 'end"', "q,b"], [STRAY, BEHIND, BEHIND, None]),
        (['q,"one', 'two "hi" there', 'end"', "q,b"], [STRAY, BEHIND, BEHIND, None]),
        (['q,"say \\"hi\\""', 'q,"\\"hi\\", he said"', "q,b"], [ESCAPED, ESCAPED, None]),
        (['q,say \\"hi\\"', "q,b"], [ESCAPED, None]),
        (['q,"C:\\"', 'q,"{""a"": ""b\\""c""}"', "q,b"], [ESCAPED, None, None]),
        (['q,5" pipe', 'q,"closed" x', "q,b"], [None, STRAY, None]),
        (['q, "text"', "q,b"], [STRAY, None]),
    ],
)
def test_what_is_not_csv_is_told_by_line_and_swallows_nothing(
    tmp_path: Path, lines: list[str], faults: list[str | None], unit_rows: int
) -> None:
    item = write(tmp_path / "rows.csv", "\n".join(["query,document", *lines, ""]))
    found = read(item, Dialect(), unit_rows)
    expected = [fault and f"{fault} ({item.uri}, line {line})" for line, fault in enumerate(faults, start=2)]
    assert [fault for _, fault in found] == expected


def test_quote_that_is_never_closed_costs_its_row_in_a_file_of_any_size(tmp_path: Path) -> None:
    item = write(tmp_path / "rows.csv", 'query,document\nq,"open\n' + "q,d\n" * 120_000)
    layout = shards.scan_shard(item, InputSpec())
    assert layout.num_rows == 120_001
    [batch, *_] = read_batches(item, "csv")
    assert batch.faults == {0: UNCLOSED}


def test_null_of_a_database_is_null_and_other_escapes_are_told(tmp_path: Path) -> None:
    item = write(tmp_path / "rows.tsv", "query\tdocument\nq\t\\N\nq\ta\\\tb\\\\\nq\ta\\nb\nq\tN\n")
    found = read(item, Dialect("none", "\\"), 2)
    assert [row[1] for row, fault in found if fault is None] == [None, "a\tb\\", "N"]
    assert [fault for _, fault in found if fault] == [f"{ODD_ESCAPE} ({item.uri}, line 4)"]


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (['q\t"say ""hi"""', "q\tb"], "refused"),
        (['q\t"say \\"hi\\""', "q\tb"], "refused"),
        (['q\t"text"', "q\tb"], "refused"),
        (['q\t"two', 'lines"', "q\tb"], "refused"),
        (['q\tsay ""hi""', 'q\t"text"'], "text"),
        (['q\t5" pipe', 'q\t"text"'], "text"),
        (['q\t"Yes" he said', 'q\t"text"'], "text"),
        (["q\ta", "q\tb"], "text"),
    ],
)
def test_tsv_that_may_be_quoted_is_refused_and_others_keep_their_quotes(
    tmp_path: Path, lines: list[str], shown: str
) -> None:
    item = write(tmp_path / "rows.tsv", "\n".join(["query\tdocument", *lines, ""]))
    if shown == "refused":
        with pytest.raises(RerankError, match="--quoting csv"):
            read(item, Dialect(), 1)
    else:
        assert [list(row) for row, _ in read(item, Dialect(), 1)] == [line.split("\t") for line in lines]
    if "two" not in lines[0]:
        assert [list(row) for row, _ in read(item, Dialect("none"), 1)] == [line.split("\t") for line in lines]


@pytest.mark.parametrize("text_first", [False, True])
def test_tsv_that_is_quoted_further_on_has_rows_that_are_told(tmp_path: Path, text_first: bool) -> None:
    plain = ['q\t5" pipe' if text_first else "q\tplain"] + ["q\t" + "x" * 80] * 5000
    late = ['q\t"text"', 'q\t"say ""hi"""', 'q\t"open', 'q\t"Yes" he said']
    item = write(tmp_path / "rows.tsv", "\n".join(["query\tdocument", *plain, *late, ""]))
    faults = [fault and fault.partition(" (/")[0] for _, fault in read(item, Dialect(), 1000)[-4:]]
    assert faults == ([None, LOOKS_QUOTED, None, None] if text_first else [LOOKS_QUOTED] * 3 + [None])
    assert not any(fault for _, fault in read(item, Dialect("none"), 1000))


@PROPERTY
@given(data=st.text(alphabet='a",\\\n\r', max_size=60), unit_rows=st.integers(1, 3))
def test_any_text_reads_the_same_in_units_and_as_a_whole(tmp_path: Path, data: str, unit_rows: int) -> None:
    item = write(tmp_path / "rows.csv", f"query,document\n{data}")
    for escape, quoting in itertools.product(("", "none", "\\"), ("csv", "none")):
        dialect = Dialect(quoting, escape)  # type: ignore[arg-type]
        found = read(item, dialect, unit_rows)
        assert found == read(item, dialect, 100)

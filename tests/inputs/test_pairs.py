"""Candidates: structs, templates, instructions and exploded rows, from rows as they are read to texts."""

import numpy as np
import pyarrow as pa
import pytest

from rerank_actor.inputs.columns import is_list, merge_types, to_array, to_texts
from rerank_actor.inputs.field_template import parse_template
from rerank_actor.inputs.pairs import TextSpec, join_title, make_pairs
from rerank_actor.inputs.rows import Rows, add_location, strip_location


def make_rows(columns: dict[str, list[object]]) -> Rows:
    table = pa.table(columns)
    texts = {name: to_texts(table.column(name)) for name in table.column_names}
    lists = frozenset(name for name in texts if is_list(table.schema.field(name).type))
    return Rows(table, texts, [None] * table.num_rows, lists)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"id": "1", "title": "A title", "text": "the text"}, "A title the text"),
        ({"title": "", "text": " the text "}, "the text"),
        ({"title": None, "text": " as it is "}, " as it is "),
        ({"text": " as it is "}, " as it is "),
        ({"title": "A title", "text": ""}, "A title"),
        ({"title": "A title", "text": None}, None),
        ({"title": 7, "text": "the text"}, 7),
        ({"title": "A title", "text": 7}, 7),
    ],
)
def test_title_and_text_join_as_in_beir(document: dict[str, object], text: object) -> None:
    assert join_title(document) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (r"{title}\n{text}", "T\nx"),
        ("{title}\n{text}", "T\nx"),
        (r"{{{text}}}\\n \d", r"{x}\n \d"),
        ("{title}{title}", "TT"),
        ("{none}: {text}", ": x"),
        ("{year}, {open}, {share}", "2020, true, 0.5"),
        ("{none}", None),
        ("a {list}", ["not text"]),
    ],
)
def test_template_fills_fields_and_nothing_else(template: str, text: object) -> None:
    values = {"title": "T", "text": "x", "none": None, "year": 2020, "open": True, "share": 0.5, "list": ["not text"]}
    assert parse_template(template).fill(values.__getitem__) == text


@pytest.mark.parametrize("template", ["no field", "{", "}", "{}", "{a!r}", "{a:10}", "{a", "{{a}}", "{a}}"])
def test_template_written_wrong_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="brace"):
        parse_template(template)


def test_template_never_reaches_into_a_value() -> None:
    asked: list[str] = []
    parse_template("{a.__class__} {b[0]}").fill(lambda name: asked.append(name))
    assert asked == ["a.__class__", "b[0]"]


def test_template_in_a_list_takes_fields_before_columns_and_text_for_the_document() -> None:
    structs = make_rows({"query": ["q"], "year": [1999], "document": [[{"text": "a", "year": 7}, None]]})
    found = make_pairs(structs, TextSpec(document_template="{year} {text} {query}"))
    assert found.documents == ["7 a q", None]
    plain = make_rows({"query": ["q"], "year": [1999], "document": [["a", None]]})
    found = make_pairs(plain, TextSpec(document_template="{year}: {text}{document}"))
    assert found.documents == ["1999: aa", None]
    assert found.list_lengths is not None and found.list_lengths.tolist() == [2]
    flat = make_rows({"query": ["q", "r"], "title": ["T", None], "body": ["b", None]})
    assert make_pairs(flat, TextSpec(document_template=r"{title}\n{body}")).documents == ["T\nb", None]


def test_query_template_joins_columns() -> None:
    rows = make_rows({"question": ["q", None], "context": ["c", None], "document": ["d", "d"]})
    assert make_pairs(rows, TextSpec(query_template="{question} ({context})")).queries == ["q (c)", None]


@pytest.mark.parametrize("explode", [False, True])
def test_instruction_map_gives_each_dataset_its_own_and_others_an_error(explode: bool) -> None:
    rows = make_rows(
        {
            "query": ["q"] * 4,
            "set": ["a", "b", "x", None],
            "document": [["d", "e"], ["f"], ["g"], ["h"]],
        }
    )
    spec = TextSpec(dataset_column="set", instruction_map={"a": "A", "b": "B"}, explode=explode)
    found = make_pairs(rows, spec)
    errors = [error for error in found.row_errors if error]
    assert errors == ["dataset is not in the instruction map", "dataset is null"]
    assert found.instructions is not None and found.instructions[:3] == ["A", "A", "B"]
    rest = make_pairs(rows, TextSpec(dataset_column="set", instruction_map={"a": "A", "*": "Z"}))
    assert rest.instructions == ["A", "A", "Z", "Z", "Z"]
    assert not any(rest.row_errors)


def test_exploded_rows_carry_their_candidate_and_rows_without_one_stay() -> None:
    documents = [[{"id": "1", "text": "a"}, {"id": "2", "text": "b"}], [], None, [None]]
    rows = make_rows(
        {
            "query": ["p", "q", "r", "s"],
            "label": [[1, 0], [], [5], [7]],
            "document": documents,
            "score_list": [[0.5], [], [], []],
        }
    )
    found = make_pairs(rows, TextSpec(explode=True, explode_columns=("label",)))
    assert found.list_lengths is None
    assert found.table.column("document").to_pylist() == [*documents[0], None, None, None]
    assert found.table.column("label").to_pylist() == [1, 0, None, None, 7]
    assert found.table.column("candidate_index").to_pylist() == [0, 1, None, None, 0]
    assert found.table.column("score_list").to_pylist() == [[0.5], [0.5], [], [], []]
    assert found.documents == ["a", "b", None, None, None]
    assert found.queries == ["p", "p", "q", "r", "s"]
    assert found.row_errors == [None, None, "document list is empty", "document list is null", None]


@pytest.mark.parametrize("explode", [False, True])
def test_kept_fields_leave_ids_and_take_texts_out(explode: bool) -> None:
    documents = [[{"id": "1", "text": "a"}, None], None, [], [{"id": "2", "text": "b"}]]
    rows = make_rows({"query": ["p", "q", "r", "s"], "document": documents})
    found = make_pairs(rows, TextSpec(explode=explode, keep_fields=("id",)))
    kept = [[{"id": "1"}, None], None, [], [{"id": "2"}]]
    assert found.table.column("document").to_pylist() == (
        [{"id": "1"}, None, None, None, {"id": "2"}] if explode else kept
    )
    assert [text for text in found.documents if text] == ["a", "b"]
    flat = make_rows({"query": ["p", "q"], "document": [{"id": "1", "text": "a"}, None]})
    found = make_pairs(flat, TextSpec(keep_fields=("id",)))
    assert (found.table.column("document").to_pylist(), found.documents) == ([{"id": "1"}, None], ["a", None])


def test_exploded_list_of_another_length_is_an_error_of_its_row() -> None:
    rows = make_rows({"query": ["p", "q"], "label": [[1], [1, 2]], "document": [["a", "b"], ["c", "d"]]})
    found = make_pairs(rows, TextSpec(explode=True, explode_columns=("label",)))
    assert found.table.column("document").to_pylist() == [None, "c", "d"]
    assert [error is None for error in found.row_errors] == [False, True, True]


@pytest.mark.parametrize("kind", [pa.list_(pa.string(), 2), pa.large_list(pa.string())], ids=str)
def test_exploded_lists_of_any_type_keep_their_order(kind: pa.DataType) -> None:
    values = [["a", "b"], None, ["c", "d"]]
    table = pa.table({"query": ["p", "q", "r"], "document": pa.array(values, kind)})
    rows = Rows(table, {"query": ["p", "q", "r"], "document": values}, [None] * 3, frozenset({"document"}))
    found = make_pairs(rows, TextSpec(explode=True))
    assert found.table.column("document").to_pylist() == ["a", "b", None, "c", "d"]


def test_json_structs_of_mixed_values_keep_a_type_of_structs() -> None:
    first, second = [[{"id": 1, "text": "a"}]], [[{"id": "x", "text": "b\ud800", "title": None}], None]
    kind = merge_types(to_array(first)[0].type, to_array([[{"id": "x", "text": "b", "title": None}]])[0].type)
    assert is_list(kind) and pa.types.is_struct(kind.value_type)
    assert to_array(first, kind)[0].to_pylist() == [[{"id": "1", "text": "a", "title": None}]]
    values, replaced = to_array(second, kind)
    assert (values.type, replaced) == (kind, [0])
    assert values.to_pylist()[0][0]["id"] == "x"


def test_reason_is_an_error_without_its_place() -> None:
    for uri in ("/a b (1)/x.jsonl", "s3://b/k, line 3)"):
        assert strip_location(add_location("line is not a JSON object", uri, 7)) == "line is not a JSON object"
        assert add_location("r", uri, 7) == f"r ({uri}, line 7)"
    assert strip_location("engine died (3 times)") == "engine died (3 times)"
    assert np.unique([strip_location("query is null")]).tolist() == ["query is null"]

"""Layouts of pairs: the same queries and documents in every shape that scoring takes, and the text of each pair as said here.

The texts are written down by the tests' own words, so that they say what scoring should have been given, and mining gives.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor.job import ScoreJob

PER_QUERY = 7
WORDS = ("Paris", "río", "東京", "a {brace}", "tab\there", "line\nbreak", " led", "end ", "ß", "0", "true", "x" * 40)


@dataclass
class Layout:
    """An input of pairs.

    Attributes:
        rows: of the shard.
        settings: of the scoring job.
        texts: query and document of each pair as they are to be scored.
        ids: id of the query and the document of each text.
    """

    rows: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    texts: set[tuple[str, str]] = field(default_factory=set)
    ids: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def make_job(self, folder: Path, *, as_lines: bool = False, **values: Any) -> ScoreJob:
        """Write the input and return the job that scores it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ("input.jsonl" if as_lines else "input.parquet")
        if as_lines:
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        else:
            pq.write_table(pa.Table.from_pylist(self.rows), path, row_group_size=3)
        given = {"input": [str(path)], "output": str(folder / "scored"), "engine": "fake", "unit_rows": 5}
        return ScoreJob(**{**given, **self.settings, **values}).normalized()


def _write(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def _draw_pairs(draw: random.Random, num_queries: int) -> list[dict[str, Any]]:
    """Return pairs with a title and a text each, the first of each query positive; some are empty, or the query itself."""
    pairs = []
    for query in range(num_queries):
        topic, question = f"topic {query}", f"{_write(draw, 2)} {query}?"
        for place in range(PER_QUERY):
            kind = draw.random() if place else 1.0
            title, text = _write(draw, 1), f"{_write(draw, 3)} {query}.{place}"
            title, text = ("", question) if kind < 0.1 else ("", "") if kind < 0.2 else (title, text)
            pairs.append(
                {
                    **{"query_id": f"q{query}", "topic": topic, "question": question},
                    **{"document_id": f"d{query}-{place}", "title": title, "text": text, "label": int(place == 0)},
                }
            )
    return pairs


def _group(pairs: list[dict[str, Any]], make: Callable[[dict[str, Any]], Any], name: str) -> list[dict[str, Any]]:
    """Return a row for each query, with lists of documents and labels."""
    rows: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        row = rows.setdefault(pair["query_id"], {"query_id": pair["query_id"], "query": pair["question"]})
        row.setdefault(name, []).append(make(pair))
        row.setdefault("label", []).append(pair["label"])
        row.setdefault("document_id", []).append(pair["document_id"])
    return list(rows.values())


def _join(pair: dict[str, Any]) -> str:
    return f"{pair['title']} {pair['text']}".strip()


def _struct(pair: dict[str, Any]) -> dict[str, Any]:
    return {"id": pair["document_id"], "title": pair["title"], "text": pair["text"], "rank": 1}


def _flat(pairs: list[dict[str, Any]], **columns: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    kept = ("query_id", "document_id", "label")
    return [
        {**{name: pair[name] for name in kept}, **{name: make(pair) for name, make in columns.items()}}
        for pair in pairs
    ]


def _ask(pair: dict[str, Any]) -> Any:
    return pair["question"]


def _text(pair: dict[str, Any]) -> Any:
    return pair["text"]


def _title(pair: dict[str, Any]) -> Any:
    return pair["title"]


def _write_sources(pairs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    queries = {pair["query_id"]: {"_id": pair["query_id"], "text": pair["question"]} for pair in pairs}
    corpus = [{"_id": pair["document_id"], "title": pair["title"], "text": pair["text"]} for pair in pairs]
    for name, rows in (("queries", list(queries.values())), ("corpus", corpus)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"queries": [str(folder / "queries.jsonl")], "corpus": [str(folder / "corpus.jsonl")]}


LAYOUTS = (
    *("flat", "dotted", "renamed", "title", "template", "query template", "lists", "list of titles"),
    *("list of templates", "kept fields", "fields", "ids", "lists of ids"),
    *("exploded fields", "exploded lists", "exploded titles", "exploded templates", "exploded ids"),
)


def draw_layout(name: str, seed: int, folder: Path, num_queries: int = 3) -> Layout:
    """Return pairs drawn by a seed in one of `LAYOUTS`; what they need beside the shard is written into the folder."""
    pairs = _draw_pairs(random.Random(seed), num_queries)
    lists = {"explode": True, "explode_columns": ["label", "document_id"]} if name.startswith("exploded") else {}
    make: Callable[[dict[str, Any]], str] = _text
    ask: Callable[[dict[str, Any]], str] = _ask
    shape = name.removeprefix("exploded ")
    if shape == "flat":
        layout = Layout(_flat(pairs, query=_ask, document=_text))
    elif shape == "dotted":
        rows = _flat(pairs, **{"query.text": _ask, "document.text": _text, "document": _title})
        layout = Layout(rows, {"query_column": "query.text", "document_column": "document.text"})
    elif shape == "renamed":
        renamed = {"query": "document", "document": "query", "document_id": "docid"}
        layout = Layout(_flat(pairs, query=_ask, document=_text), {"rename_columns": renamed})
    elif shape == "title":
        layout, make = Layout(_flat(pairs, query=_ask, document=_struct)), _join
    elif shape == "template":
        make = lambda pair: f"{pair['title']}\n{{{pair['text']}}}"  # noqa: E731
        rows = _flat(pairs, query=_ask, title=_title, body=_text, text=_ask)
        layout = Layout(rows, {"document_template": r"{title}\n{{{body}}}", "rename_columns": {"body": "passage"}})
    elif shape == "query template":
        ask = lambda pair: f"{pair['topic']}: {pair['question']}"  # noqa: E731
        rows = _flat(pairs, topic=lambda pair: pair["topic"], question=_ask, document=_text)
        layout = Layout(rows, {"query_template": "{topic}: {question}"})
    elif shape == "lists":
        layout = Layout(_group(pairs, _text, "document"), lists)
    elif shape in ("list of titles", "titles", "kept fields"):
        more = {"keep_fields": ["id", "title", "text"]} if shape == "kept fields" else {}
        rows = _group(pairs, _struct, "passages")
        layout, make = Layout(rows, {"document_column": "passages", **lists, **more}), _join
    elif shape == "fields":
        rows = _group(pairs, _text, "texts")
        rows = [{**row, "found": {"ids": row["document_id"], "texts": row.pop("texts")}} for row in rows]
        layout = Layout(rows, {"document_column": "found.texts", "rename_columns": {"found": "passages"}, **lists})
    elif shape in ("list of templates", "templates"):
        make = lambda pair: f"q{pair['query_id'][1:]} {pair['title']}: {pair['text']}"  # noqa: E731
        layout = Layout(
            _group(pairs, _struct, "document"), {"document_template": "{query_id} {title}: {text}", **lists}
        )
    else:
        sources, make = _write_sources(pairs, folder), _join
        if shape == "ids" and not lists:
            layout = Layout(_flat(pairs), sources)
        else:
            rows = [
                {name: row[name] for name in ("query_id", "document_id", "label")} for row in _group(pairs, _text, "x")
            ]
            exploded = {"explode": True, "explode_columns": ["label"]} if lists else {}
            layout = Layout(rows, {**sources, **exploded})
    layout.ids = {(ask(pair), make(pair)): (pair["query_id"], pair["document_id"]) for pair in pairs}
    layout.texts = set(layout.ids)
    return layout

"""Rows with labels and languages, a few of them without a text, as reports show them."""

from typing import Any


def make_labelled_rows(query: str = "query", document: str = "document", number: int = 300) -> list[dict[str, Any]]:
    """Return rows of queries with ten documents each, whose texts begin as given."""
    return [
        {
            "query_id": f"q{i // 10}",
            "doc_id": i,
            "label": i % 3 == 0,
            "language": "de" if i % 4 else "en",
            "query": None if i == 77 else f"{query} {i // 10}",
            "document": None if i % 90 == 5 else f"{document} {i} " + "x" * (i * 3),
        }
        for i in range(number)
    ]

"""Directions: a row of two texts that is scored as two pairs, source to target and target to source.

Takes nothing, gives the names: of the directions, of the columns that each adds to a part, and of what a job says about
them. The pairs of a unit stand direction by direction, so that those of one direction are side by side. Knows nothing of
languages, prompts or parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORWARD, BACKWARD = "forward", "backward"
DIRECTED_VALUES = ("score", "logit", "num_tokens", "truncated_tokens")


@dataclass(frozen=True)
class Directions:
    """How a job scores each row.

    Attributes:
        instructions: of each direction, by name; one or two of them. In the backward one the document column is the query.
        reason_column: column that says why a row is not to be scored, null where it is; None where all are.
        rules: of these reasons, those of rows that were left out on purpose.
    """

    instructions: dict[str, str]
    reason_column: str | None = None
    rules: frozenset[str] = frozenset()

    def turn(self, first: list[Any], second: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Return queries, documents and instructions of rows as pairs in each direction, direction by direction."""
        queries: list[Any] = []
        documents: list[Any] = []
        instructions: list[Any] = []
        for direction, instruction in self.instructions.items():
            query, document = (second, first) if direction == BACKWARD else (first, second)
            queries += query
            documents += document
            instructions += [instruction] * len(query)
        return queries, documents, instructions

    def count_errors(self, errors: Mapping[str, int]) -> int:
        """Return how many rows have an error that nobody asked for."""
        return sum(count for reason, count in errors.items() if reason not in self.rules)


def name_column(direction: str, value: str) -> str:
    """Return the name of a column that a direction adds to a part."""
    return f"{direction}_{value}"


def list_directions(names: list[str]) -> tuple[str, ...]:
    """Return the directions that a part with these columns was scored in, none where it was not scored so."""
    return tuple(
        name for name in (FORWARD, BACKWARD) if all(name_column(name, value) in names for value in DIRECTED_VALUES)
    )

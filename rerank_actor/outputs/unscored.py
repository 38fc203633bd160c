"""An output of which nothing has a score: why, with an example, so that whoever began the job need not look for it.

Takes the sums of outputs, gives a sentence, or nothing where something is scored. Every row is in place with its error, so
such an output is complete and has its `_SUCCESS`; it is of no use all the same.
"""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from rerank_actor.errors import RerankError
from rerank_actor.inputs.directions import BACKWARD, FORWARD, name_column
from rerank_actor.inputs.rows import strip_location
from rerank_actor.outputs.manifest import Totals
from rerank_actor.outputs.row_groups import open_part
from rerank_actor.outputs.scored import open_scored

PARTS_LOOKED_AT = 12
ERROR_COLUMNS = ("error", name_column(FORWARD, "error"), name_column(BACKWARD, "error"))


def describe_unscored(totals: Mapping[str, Totals]) -> str | None:
    """Return what is wrong with outputs of which no row has a score, None where one has or there is none.

    Args:
        totals: sums of each output, by its URI.
    """
    errors: Counter[str] = sum((Counter(one.errors) for one in totals.values()), Counter())
    if not errors or any(one.scored for one in totals.values()):
        return None
    [(reason, count)] = errors.most_common(1)
    example = next(
        (found for uri, one in totals.items() if one.errors[reason] and (found := _find_row(uri, reason))), ""
    )
    return (
        f"nothing was scored: each of {sum(one.rows for one in totals.values()):,} rows has an error instead, the most "
        f"frequent {count:,} times: {reason}{example}; the rows are in place with their errors, and --overwrite starts afresh"
    )


def _find_row(uri: str, reason: str) -> str:
    """Return in brackets where a row with this error is, or nothing."""
    for part in open_scored(uri).parts[:PARTS_LOOKED_AT]:
        try:
            with open_part(part) as file:
                table = file.read([name for name in ERROR_COLUMNS if name in file.schema_arrow.names])
        except (RerankError, pa.ArrowException, OSError):
            continue  # jobs.verify says what is wrong with it
        for column in table.columns:
            for row, value in enumerate(column.to_pylist()):
                if reason in map(strip_location, filter(None, value if isinstance(value, list) else [value])):
                    return f" (as in row {row:,} of {part.uri}, counted from 0)"
    return ""

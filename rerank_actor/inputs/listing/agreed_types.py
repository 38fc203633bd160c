"""The types of kept columns, one for all shards, so that all parts are one dataset.

Takes what scanning found in each shard, gives a type that holds the values of all. Knows nothing of units.
"""

import pyarrow as pa

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import (
    JSON_TEXT,
    bound_type,
    decode_type,
    has_extension,
    is_storable,
    merge_columns,
    settle_type,
)
from rerank_actor.inputs.rows import ShardLayout
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.syntax.column_types import unify_types, widen_integers


def agree_on_types(
    spec: InputSpec, layouts: dict[str, ShardLayout], earlier: dict[str, pa.DataType], *, is_written: bool = True
) -> dict[str, pa.DataType]:
    """Return the types of columns that hold for all shards; those of an earlier plan stay.

    Raises:
        InputError: Parquet does not hold a type; values of two shards have no type in common, or those of a new one do
            not go into the parts there are.
    """
    seen: dict[str, list[tuple[str, pa.DataType, bool]]] = {}
    for uri, layout in layouts.items():
        for name, kind in layout.columns.items():
            is_json = layout.format == "jsonl"
            if name not in layout.partitions and layout.num_rows and (is_json or spec.keeps(name)):
                if not is_json and not is_storable(kind):
                    raise InputError(
                        f"{uri}: column `{name}` holds {kind}, which Parquet, and so the output, cannot keep; "
                        f"leave it out with --drop-columns {name}",
                        uri=uri,
                        column=name,
                    )
                kind = decode_type(kind) if pa.types.is_nested(kind) else kind
                seen.setdefault(name, []).append((uri, kind, is_json))
    types = dict(earlier)
    for name, found in seen.items():
        if is_written and earlier and name not in earlier and spec.keeps(name) and not has_extension(found[0][1]):
            raise InputError(
                f"{found[0][0]}: has a column `{name}`, which the parts already written have not, and readers take one set of "
                "columns; give new shards an --output of their own, or take the column out of them",
                uri=found[0][0],
                column=name,
            )
        types[name] = _unify(spec, name, found, earlier.get(name))
    return {
        name: pa.string() if pa.types.is_null(kind) else kind
        for name, kind in types.items()
        if not has_extension(kind)  # such a type may run code where the plan is read
    }


def list_texts(spec: InputSpec, layouts: dict[str, ShardLayout]) -> list[str]:
    """Return the kept columns of JSON whose values are too deep or have too many fields for any type but text."""
    merged: dict[str, pa.DataType] = {}
    for layout in layouts.values():
        for name, kind in layout.columns.items() if layout.format == "jsonl" else ():
            merged[name] = merge_columns(merged.get(name), kind)
    return [name for name, kind in merged.items() if kind == JSON_TEXT and spec.keeps(name)]


def _unify(
    spec: InputSpec, name: str, found: list[tuple[str, pa.DataType, bool]], earlier: pa.DataType | None
) -> pa.DataType:
    """Return the type of a column from its types in some shards, and whether their values were looked at."""
    there = f"in the parts already written it is {earlier}"
    merged = earlier if earlier is not None else found[0][1]
    if all(kind == merged for _, kind, _ in found):
        return settle_type(merged) if found[0][2] else merged
    if earlier is None:
        merged = pa.null()
    for uri, kind, is_exact in found:
        wider = unify_types(merged, kind if is_exact else widen_integers(kind))
        if spec.keeps(name) and (wider is None or (earlier is not None and settle_type(wider) != earlier)):
            raise InputError(
                f"{uri}: column `{name}` holds {settle_type(kind)}, {there}; give this shard an --output of its own, or leave "
                f"the column out with --drop-columns {name}",
                uri=uri,
                column=name,
            )
        merged = merged if wider is None else bound_type(wider) if is_exact else wider
        there = f"in {found[0][0]} it is {found[0][1]}" if earlier is None else there
    return earlier if earlier is not None else settle_type(merged)

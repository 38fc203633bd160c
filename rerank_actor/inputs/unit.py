"""The unit: a row range of one shard, which is planned, scored, committed and retried whole."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A row range of one shard: planned, scored, committed and retried whole.

    Attributes:
        name: names the part, `<shard>-<number>`.
        uri, size, etag: the shard as it was planned.
        row_start, num_rows: the rows, counted in the shard. A shard that could not be read has one unit of 0 rows.
        byte_start: where the rows begin, as `rows.Block` has it; -1 for Parquet.
        number: of the line or row that is there.
    """

    name: str
    uri: str
    size: int
    etag: str
    row_start: int
    num_rows: int
    byte_start: int
    number: int = 0

    @property
    def part_name(self) -> str:
        """File name of the unit's part in the output."""
        return f"part-{self.name}.parquet"

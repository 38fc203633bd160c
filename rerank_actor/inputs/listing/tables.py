"""Table formats: folders of Parquet files of which a log says which rows still count, and which are refused.

Delta Lake keeps `_delta_log/` beside its files, Hudi `.hoodie/`, Iceberg `metadata/*.metadata.json`. Their files read as they
lie give rows that were deleted or replaced. Sources: the three formats' specifications.
"""

import re

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.listing.partitions import split_partition

LOGS = {"_delta_log": "a Delta Lake table", ".hoodie": "a Hudi table", "metadata": "an Iceberg table"}

_LOG = re.compile(r"(.*)/(?:(_delta_log|\.hoodie)/.*|(metadata)/[^/]*\.metadata\.json)")


def refuse_table(listing: storage.Listing) -> None:
    """Refuse a listing that holds the log of a table.

    Raises:
        InputError: it does.
    """
    for name in [*listing.hidden, *(item.uri for item in listing.objects), *listing.deeper]:
        log = _LOG.fullmatch(name)
        if log is not None:
            kind = LOGS[log[2] or log[3]]
            raise InputError(
                f"{log[1]}: is {kind}, whose files also hold rows that were deleted or replaced; write its present rows out as "
                "Parquet and give that folder",
                uri=log[1],
            )


def refuse_inside_table(folder: str, *, is_listed: bool) -> None:
    """Refuse a folder of files within a table, whose log lies beside them or above their partitions.

    Args:
        folder: of the files.
        is_listed: whether all below it was listed, so that a log within would have been seen.

    Raises:
        InputError: it is one.
    """
    while True:
        name = folder.rpartition("/")[2]
        for log in () if is_listed else LOGS:
            place = storage.join_uri(folder, log)
            refuse_table(storage.Listing(hidden=[item.uri for item in storage.list_objects(place)]))
        if name != "data" and split_partition(name) is None:
            return
        folder, is_listed = folder.rpartition("/")[0], False

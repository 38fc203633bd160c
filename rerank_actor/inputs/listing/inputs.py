"""The listing of an input: its shards, each once, with their formats, and what else lies there.

Takes an `InputSpec` and what an earlier plan knows, so that a shard is looked into once; gives an `InputListing`. A file is one
by its path with links followed. Knows nothing of rows.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.formats import SUFFIXES
from rerank_actor.inputs.listing.datasets import list_repository, pick_saved
from rerank_actor.inputs.listing.left_out import (
    DEEPER,
    DOUBLED,
    HIDDEN,
    STRANGE,
    UNKNOWN,
    LeftOut,
    count_left_out,
    refuse_most,
)
from rerank_actor.inputs.listing.partitions import find_columns
from rerank_actor.inputs.listing.tables import refuse_inside_table, refuse_table
from rerank_actor.inputs.listing.tell import tell_format
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.storage.hub import is_hub
from rerank_actor.storage.utf8 import is_unicode

LOOK_THREADS = 16


@dataclass
class InputListing:
    """What is at the input.

    Attributes:
        shards: objects of rows, in order of the inputs and then of names.
        formats: of each shard, by URI.
        partition_columns: columns that names of folders below an input give, in order of sight.
        passed_over: reason and URI of each object that is no shard.
    """

    shards: list[storage.StoredObject] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    partition_columns: list[str] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)

    @property
    def left_out(self) -> list[LeftOut]:
        """What is passed over, by reason."""
        return count_left_out(self.passed_over)


def list_input(spec: InputSpec, known: Mapping[tuple[str, int, str], str] | None = None) -> InputListing:
    """List the shards, each once, in order of the inputs and then of names.

    Args:
        spec: names them.
        known: formats of an earlier plan's shards, by URI, size and version mark.

    Raises:
        InputError: an input matches nothing or mostly files of unknown format, is a table whose log says which rows count,
            or lies in the output or around it.
    """
    listing = InputListing()
    known = known or {}
    found: list[storage.StoredObject] = []
    has_splits = False
    for uri in spec.uris:
        storage.refuse_overlap(spec.output, uri, "--output", "--input")
        place = storage.list_everything(uri) if not is_hub(uri) else storage.Listing(list_repository(uri, spec))
        saved = pick_saved(uri, place.objects, spec.split) if not is_hub(uri) else None
        has_splits = has_splits or is_hub(uri) or saved is not None
        objects = place.objects
        if saved is not None:
            objects, strangers = saved
            listing.passed_over += [(STRANGE, name) for name in strangers]
        _refuse_nothing(uri, place)
        refuse_table(place)
        listing.passed_over += [(reason, name) for reason, names in _passed_over(place).items() for name in names]
        found += _choose_shards(uri, objects, spec, known, listing)
    if (spec.split or spec.config) and not has_splits:
        raise InputError(
            "--split and --config choose from hf:// datasets and save_to_disk folders, and no input is one"
        )
    listing.shards = _drop_doubled(found, {key[0] for key in known}, spec.output, listing)
    return listing


def _passed_over(place: storage.Listing) -> dict[str, list[str]]:
    return {HIDDEN: place.hidden, DEEPER: place.deeper}


def _refuse_nothing(uri: str, place: storage.Listing) -> None:
    if place.objects:
        return
    rest = count_left_out((reason, name) for reason, names in _passed_over(place).items() for name in names)
    but = f" but {', '.join(item.describe() for item in rest)}" if rest else ""
    raise InputError(
        f"{uri}: nothing there{but}; --input takes local files, folders and globs, s3://, gs://, az://, and hf:// datasets",
        uri=uri,
    )


def _choose_shards(
    uri: str,
    objects: list[storage.StoredObject],
    spec: InputSpec,
    known: Mapping[tuple[str, int, str], str],
    listing: InputListing,
) -> list[storage.StoredObject]:
    """Return the shards of one input, and record their formats, their partitions and what is no shard."""

    def tell(item: storage.StoredObject) -> str | None:
        return tell_format(item, spec, known.get((item.uri, item.size, item.etag)))

    with ThreadPoolExecutor(LOOK_THREADS) as pool:
        formats = list(pool.map(tell, objects))
    shards = [item for item, kind in zip(objects, formats, strict=True) if kind is not None]
    odd = next((item.uri for item in shards if not is_unicode(item.uri)), None)
    if odd is not None:
        shown = odd.encode("utf-8", "backslashreplace").decode()
        raise InputError(f"{shown}: has a name that is not UTF-8, which no plan can hold; rename it", uri=shown)
    unknown = [item.uri for item, kind in zip(objects, formats, strict=True) if kind is None]
    if unknown == [uri] or (unknown and len(objects) == 1):
        raise InputError(
            f"{unknown[0]}: neither its name nor its first bytes tell its format; name one with --format "
            f"(names that do: {', '.join(SUFFIXES)}, also with .gz and .zst)",
            uri=unknown[0],
        )
    if unknown:
        refuse_most(uri, unknown, len(shards))
    listing.passed_over += [(UNKNOWN, name) for name in unknown]
    listing.formats.update({item.uri: kind for item, kind in zip(objects, formats, strict=True) if kind is not None})
    _look_at_folder(uri, objects, listing)
    return shards


def _look_at_folder(uri: str, objects: list[storage.StoredObject], listing: InputListing) -> None:
    """Refuse files of a table, and record the columns that folders below the input give."""
    is_file = [item.uri for item in objects] == [uri]
    is_folder = not is_file and not storage.is_glob(uri)
    root = uri.rpartition("/")[0] if is_file else uri if is_folder else storage.find_root(uri)
    if not is_hub(uri) and any(listing.formats.get(item.uri) == "parquet" for item in objects):
        refuse_inside_table(root, is_listed=is_folder)
    columns = find_columns((item.uri for item in objects if item.uri in listing.formats), root)
    listing.partition_columns += [column for column in columns if column not in listing.partition_columns]


def _drop_doubled(
    found: Iterable[storage.StoredObject], known: set[str], output: str, listing: InputListing
) -> list[storage.StoredObject]:
    """Return each file once, by the name that was planned before, or its own, or the first; record the others."""
    by_uri = {item.uri: item for item in found}
    place = storage.resolve_links(output).rstrip("/") + "/"
    for path, items in storage.group_by_file(by_uri.values()).items():
        if path.startswith(place):
            raise InputError(
                f"{items[0].uri}: leads into --output {output}, so parts would be taken for shards; choose another folder",
                uri=items[0].uri,
            )
        first = min(items, key=lambda item: (item.uri not in known, item.uri != path))
        for item in items:
            if item is not first:
                del by_uri[item.uri]
                listing.passed_over.append((DOUBLED, item.uri))
    return list(by_uri.values())

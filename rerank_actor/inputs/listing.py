"""What the input names, listed: the shards of a job in the order of their URIs.

Takes an `InputSpec`, gives stored objects. Knows nothing of what is in them.
"""

import re

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs import shards
from rerank_actor.inputs.hf_datasets import list_repository, pick_saved
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.storage.hub import is_hub


def list_input(spec: InputSpec) -> list[storage.StoredObject]:
    """List the shards, each once, in order of the inputs and then of names.

    Raises:
        InputError: an input matches nothing, or lies in the output or around it.
    """
    found: dict[str, storage.StoredObject] = {}
    has_splits = False
    for uri in spec.uris:
        _refuse_overlap(uri, spec.output)
        if is_hub(uri):
            objects, has_splits = list_repository(uri, spec.config, spec.split), True
        else:
            objects = storage.list_objects(uri)
            saved = pick_saved(uri, objects, spec.split)
            objects, has_splits = saved or objects, has_splits or saved is not None
        if not objects:
            raise InputError(
                f"{uri}: nothing there; --input takes files, folders and globs, local or s3://, and hf:// datasets",
                uri=uri,
            )
        kept = [item for item in objects if len(objects) == 1 or _has_format(item.uri, spec.format)]
        if not kept:
            raise InputError(
                f"{uri}: {len(objects)} objects, none named like a shard ({', '.join(sorted(shards.SUFFIXES))}, "
                "also .gz and .zst); name the format with --format",
                uri=uri,
            )
        for item in kept:
            found.setdefault(item.uri, item)
    if (spec.split or spec.config) and not has_splits:
        raise InputError(
            "--split and --config choose from hf:// datasets and save_to_disk folders, and no input is one"
        )
    for item in found.values():
        shards.detect_format(item.uri, spec.format)
    return list(found.values())


def _has_format(uri: str, wanted: str) -> bool:
    try:
        shards.detect_format(uri, wanted)
    except InputError:
        return False
    return True


def _refuse_overlap(uri: str, output: str) -> None:
    if any(character in uri for character in "*?["):
        inside = re.fullmatch(storage.glob_to_pattern(uri), storage.join_uri(output, "part-0-0.parquet")) is not None
    else:
        inside = storage.is_within(output, uri)
    around = storage.is_within(uri, output)
    if inside or around:
        place = "inside the input" if inside else "around the input"
        raise InputError(
            f"--output {output} lies {place} {uri}, so parts would be taken for shards; choose another folder", uri=uri
        )

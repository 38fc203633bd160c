"""Which weight files of a model are loaded, and what their headers say: names, types and shapes of its tensors.

Of several files those that Transformers takes: `transformers_weights` of the configuration, else `model.safetensors`, else
the shards of `model.safetensors.index.json`. Format of a header: eight bytes with its length, then JSON, then the tensors
(https://huggingface.co/docs/safetensors, "Format"). A file that is cut short, a Git LFS pointer or half of the shards is
refused. Knows nothing of what a model needs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rerank_actor.engines.checkpoint.files import ModelFiles
from rerank_actor.errors import ModelError

# Formats of weights that are pickles or that no engine here loads: never fetched, never opened.
REFUSED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".onnx", ".h5", ".msgpack")
SAFETENSORS = ".safetensors"
SINGLE_FILE = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX_FILE = "model" + INDEX_SUFFIX
POINTER_START = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = 1024  # more than a pointer has
FIRST_READ = 64 * 1024
LONGEST_HEADER = 100_000_000  # what the safetensors library takes
COMPARED_BYTES = 1024 * 1024
SAMPLED_WINDOWS = 8


@dataclass(frozen=True)
class Weights:
    """The weights of a model as their headers tell.

    Attributes:
        files: names of the files that are loaded.
        index: the index that names them, where one does.
        shapes: of each tensor, by name.
        dtypes: of each tensor, in the words of safetensors.
        places: of each tensor, its file and where in it its bytes begin and end.
    """

    files: tuple[str, ...]
    index: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)


def refuse_pointers(name: str, files: ModelFiles) -> None:
    """Refuse a copy of a repository whose large files were left out: Git LFS leaves pointers in their places.

    Raises:
        ModelError: a file that is read is one.
    """
    for file, size in files.sizes.items():
        is_read = file.endswith((SAFETENSORS, ".json", ".model", ".txt", ".jinja"))
        if is_read and size <= POINTER_BYTES and files.read(file, 0, size).startswith(POINTER_START):
            raise ModelError(
                f"{name}: {file} is a Git LFS pointer, not the file itself; fetch the files (`git lfs pull` in the folder)",
                model=name,
            )


def refuse_pickles(name: str, files: ModelFiles) -> None:
    """Refuse a model whose weights are there in a format alone that no engine here loads.

    Raises:
        ModelError: they are; loading a pickle could run code.
    """
    refused = sorted(file for file in files.sizes if file.endswith(REFUSED_SUFFIXES))
    if refused and not any(file.endswith(SAFETENSORS) for file in files.sizes):
        raise ModelError(
            f"{name}: has no weights as safetensors, only {refused[0]}, and loading that could run code; convert it "
            "(Transformers: `model.save_pretrained(folder)`) or take a --revision that has them",
            model=name,
        )


def choose_weights(name: str, files: ModelFiles, config: Mapping[str, Any]) -> Weights:
    """Return which files of a model hold its weights.

    Raises:
        ModelError: none does, or one is missing.
    """
    named = config.get("transformers_weights")
    chosen = str(named) if named else next((file for file in (SINGLE_FILE, INDEX_FILE) if file in files.sizes), None)
    if chosen is None:
        _refuse_other_names(name, files)
        refuse_pickles(name, files)
        raise ModelError(
            f"{name}: has no weights as safetensors ({SINGLE_FILE}), and no others are loaded; check --model",
            model=name,
        )
    if "/" in chosen or not chosen.endswith((SAFETENSORS, INDEX_SUFFIX)):
        raise ModelError(
            f"{name}: config.json names {chosen!r} as its weights (transformers_weights), which is no safetensors file of "
            "this folder",
            model=name,
        )
    if chosen not in files.sizes:
        raise ModelError(f"{name}: config.json names {chosen} as its weights, and it is not there", model=name)
    return Weights((chosen,)) if chosen.endswith(SAFETENSORS) else _read_index(name, files, chosen)


def _refuse_other_names(name: str, files: ModelFiles) -> None:
    others = sorted(file for file in files.sizes if file.endswith(SAFETENSORS))
    if others:
        raise ModelError(
            f"{name}: {others[0]} has none of the names that Transformers loads; name it {SINGLE_FILE}, or add the "
            f"{INDEX_FILE} that belongs to its shards",
            model=name,
        )


def _read_index(name: str, files: ModelFiles, index: str) -> Weights:
    try:
        weight_map = json.loads(files.read(index, 0, files.sizes[index]))["weight_map"]
        shards = sorted({str(file) for file in weight_map.values()})
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(f"{name}: {index} is no index of weight files; fetch it again", model=name) from None
    missing = [shard for shard in shards if shard not in files.sizes]
    if missing or not shards:
        raise ModelError(
            f"{name}: {len(missing)} of the {len(shards)} files that {index} names are missing "
            f"({', '.join(missing[:3])}{', ...' * (len(missing) > 3)}); fetch the model again",
            model=name,
        )
    return Weights(tuple(shards), index, shapes={tensor: () for tensor in weight_map})


def read_headers(name: str, files: ModelFiles, chosen: Weights) -> Weights:
    """Return the weights with what their headers say of each tensor.

    Raises:
        ModelError: a file is damaged or cut short, a tensor is in two files, or one that the index names is in none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    places: dict[str, tuple[str, int, int]] = {}
    for file in chosen.files:
        header, data_start = _read_header(name, files, file)
        for tensor, facts in header.items():
            if tensor in shapes:
                raise ModelError(f"{name}: {file} holds the tensor {tensor} that another file has too", model=name)
            shapes[tensor], dtypes[tensor] = tuple(facts["shape"]), str(facts["dtype"])
            start, end = facts["data_offsets"]
            places[tensor] = file, data_start + start, data_start + end
    absent = sorted(chosen.shapes.keys() - shapes.keys())
    if absent:
        raise ModelError(
            f"{name}: {chosen.index} names the tensor {absent[0]}, and none of its files has it; fetch the model again",
            model=name,
        )
    return Weights(chosen.files, chosen.index, shapes, dtypes, places)


def are_same(files: ModelFiles, weights: Weights, tensors: tuple[str, str]) -> bool:
    """Return whether two tensors hold the same bytes; of files elsewhere, whether samples of them do."""
    (first, start, end), (second, other_start, other_end) = (weights.places[tensor] for tensor in tensors)
    size = end - start
    if size != other_end - other_start or weights.dtypes[tensors[0]] != weights.dtypes[tensors[1]]:
        return False
    step = COMPARED_BYTES if files.is_near else max(COMPARED_BYTES, size // SAMPLED_WINDOWS)
    for offset in range(0, size, step):
        length = min(COMPARED_BYTES, size - offset)
        one = files.read(first, start + offset, start + offset + length)
        if one != files.read(second, other_start + offset, other_start + offset + length):
            return False
    return True


def _read_header(name: str, files: ModelFiles, file: str) -> tuple[dict[str, dict[str, Any]], int]:
    """Return what a file's header says of each tensor, and where the tensors begin."""
    size = files.sizes[file]
    start = files.read(file, 0, min(size, FIRST_READ))
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > min(LONGEST_HEADER, size - 8):
        raise ModelError(f"{name}: {file} is no safetensors file, or is cut short ({size:,} bytes)", model=name)
    text = start[8 : 8 + length]
    if len(text) < length:
        text = files.read(file, 8, 8 + length)
    try:
        header = {tensor: facts for tensor, facts in json.loads(text).items() if tensor != "__metadata__"}
        expected = 8 + length + max((int(facts["data_offsets"][1]) for facts in header.values()), default=0)
        any(facts["shape"] and facts["dtype"] for facts in header.values())
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise ModelError(f"{name}: {file} is no safetensors file, its header cannot be read", model=name) from None
    if expected != size:
        raise ModelError(
            f"{name}: {file} has {size:,} bytes where its header speaks of {expected:,}; it is damaged or cut short, fetch "
            "it again",
            model=name,
        )
    return header, 8 + length

"""The files of a model where they lie: their sizes, and any range of their bytes, whether they were fetched or not.

One view of a local folder, an S3 folder and a hub repository at a commit. Subfolders are left out of it but for those that
are asked for: weights there are loaded only where a chain of modules is folded into the model. Knows nothing of what the
files hold.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from rerank_actor import storage
from rerank_actor.storage import hub


@dataclass(frozen=True)
class ModelFiles:
    """Files by name.

    Attributes:
        sizes: bytes of each.
        read: gives the bytes of a file from one position to another, fewer where it ends before.
        is_complete: whether these are all files that the model has; false for a copy without the hub to compare it with.
        is_near: whether they lie on this machine's disks, so that reading much of them costs little.
    """

    sizes: Mapping[str, int]
    read: Callable[[str, int, int], bytes]
    is_complete: bool = True
    is_near: bool = True


def list_model_files(name: str, folder: Path, commit: str | None, places: Sequence[str] = ()) -> ModelFiles:
    """Return the files of a model.

    Args:
        name: as the user gave it.
        folder: local folder with the model, perhaps without its weights.
        commit: of a hub model, else None.
        places: subfolders whose files are wanted too, under names as `2_Dense/model.safetensors`.

    Raises:
        JobError, StorageError: storage does not answer.
    """
    if storage.is_remote(name):
        return _list_s3(storage.normalize_uri(name), places)
    if commit is not None:
        try:
            sizes = hub.list_model_files(name, commit, places)
            return ModelFiles(sizes, partial(_read_hub, name, commit, folder), is_near=False)
        except OSError:  # no network: what was fetched before is all there is
            return ModelFiles(_list_folder(folder, places), partial(_read_folder, folder), is_complete=False)
    return ModelFiles(_list_folder(folder, places), partial(_read_folder, folder))


def list_module_folders(folder: Path) -> list[str]:
    """Return the subfolders of a local model's modules, as `modules.json` names them; none where it names none below it."""
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        places = {PurePosixPath(str(module.get("path") or "")) for module in listed}
    except (OSError, ValueError, AttributeError, TypeError):  # none there, or a file that its reader refuses
        return []
    return sorted(str(place) for place in places if place.parts and not place.is_absolute() and ".." not in place.parts)


def list_module_files(folder: Path) -> list[Path]:
    """Return the files in the subfolders of a local model's modules."""
    return sorted(
        path for place in list_module_folders(folder) for path in (folder / place).glob("*") if path.is_file()
    )


def name_some(names: Sequence[str], shown: int, kind: str = "") -> str:
    """Return the first of some names and how many more there are, in words."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more:,} more{kind}" if more > 0 else "")


def _list_folder(folder: Path, places: Sequence[str]) -> dict[str, int]:
    paths = [path for place in ("", *places) for path in sorted((folder / place).glob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _read_folder(folder: Path, file: str, start: int, end: int) -> bytes:
    with (folder / file).open("rb") as opened:
        opened.seek(start)
        return opened.read(end - start)


def _read_hub(name: str, commit: str, folder: Path, file: str, start: int, end: int) -> bytes:
    if (folder / file).is_file():
        return _read_folder(folder, file, start, end)
    return hub.read_model_range(name, commit, file, start, end)


def _list_s3(uri: str, places: Sequence[str]) -> ModelFiles:
    found = ((item.uri.removeprefix(uri).strip("/"), item) for item in storage.list_objects(uri))
    objects = {path: item for path, item in found if path.rpartition("/")[0] in ("", *places)}

    def read(file: str, start: int, end: int) -> bytes:
        item = objects[file]
        return storage.read_range(item.uri, start, min(end, item.size), item.size)

    return ModelFiles({file: item.size for file, item in objects.items()}, read, is_near=False)

"""Datasets of Hugging Face: which files hold the rows of a configuration and split.

Of repositories on the hub the datasets library says it, of folders that `save_to_disk` wrote their `state.json`. Their files
are shards like any other. Knows nothing of what is in them.
"""

import contextlib
import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rerank_actor import storage
from rerank_actor.errors import InputError, StorageError, describe_cause
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.storage.hub import pin_revision, split_hub_uri, translate_hub_errors

STATE, INFO, DICT = "state.json", "dataset_info.json", "dataset_dict.json"
ALL_SPLITS = "all"


def list_repository(uri: str, spec: InputSpec) -> list[storage.StoredObject]:
    """Return the files of a repository on the hub: those of a split, or those that match a path or glob behind its name.

    Raises:
        InputError: there is no such repository, configuration, split or file.
    """
    repository, revision, path = split_hub_uri(uri)
    objects = storage.list_objects(uri)
    if path:
        return [
            item
            for item in objects
            if fnmatch.fnmatchcase(split_hub_uri(item.uri)[2], path)
            or split_hub_uri(item.uri)[2].startswith(path.rstrip("/") + "/")
        ]
    by_path = {split_hub_uri(item.uri)[2]: item for item in objects}
    files = _resolve(uri, repository, pin_revision(repository, revision), spec.config)
    names = _choose(uri, list(files), spec.split)
    return [by_path[path] for name in names for path in files[name] if path in by_path]


def list_configurations(uri: str) -> list[str]:
    """Return the names of the configurations of a repository on the hub.

    Raises:
        InputError: there is no such repository, or none that the datasets library understands.
    """
    from datasets import get_dataset_config_names

    repository, revision, _ = split_hub_uri(uri)
    storage.list_objects(uri)  # says what is wrong with the repository
    with _refuse_unresolved(uri):
        found = get_dataset_config_names(repository, revision=pin_revision(repository, revision))
    return [str(name) for name in found]


def list_configuration(uri: str, config: str) -> dict[str, list[storage.StoredObject]]:
    """Return the files of a configuration by split.

    Raises:
        InputError: there is no such repository or configuration.
    """
    repository, revision, _ = split_hub_uri(uri)
    by_path = {split_hub_uri(item.uri)[2]: item for item in storage.list_objects(uri)}
    files = _resolve(uri, repository, pin_revision(repository, revision), config)
    return {split: [by_path[path] for path in paths if path in by_path] for split, paths in files.items()}


def _resolve(uri: str, repository: str, commit: str, config: str | None) -> dict[str, list[str]]:
    """Return the paths of data files by split."""
    with _refuse_unresolved(uri):
        builder = storage.retrying()(_load_builder, uri, repository, commit, config)
    splits: Mapping[str, Iterable[str]] = builder.config.data_files or {}
    mark = f"@{commit}/"
    return {str(name): [str(file).partition(mark)[2] for file in files] for name, files in splits.items()}


@contextlib.contextmanager
def _refuse_unresolved(uri: str) -> Iterator[None]:
    """Turn what the datasets library raises into an `InputError`."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # of several libraries; a missing or unknown configuration is a plain ValueError
        raise InputError(
            f"{uri}: the datasets library cannot resolve it ({describe_cause(error, 400)}); check --config, the name, the "
            "network and HF_TOKEN",
            uri=uri,
        ) from error


def _load_builder(uri: str, repository: str, commit: str, config: str | None) -> Any:
    from datasets import load_dataset_builder

    try:
        with translate_hub_errors(uri):
            return load_dataset_builder(repository, config, revision=commit)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise StorageError(f"{uri}: the hub failed while resolving ({describe_cause(error)})", uri=uri) from error


def _choose(uri: str, known: Sequence[str], split: str | None) -> list[str]:
    """Return the splits that are meant: all that were named, or the only one."""
    wanted = [name.strip() for name in split.split(",")] if split else list(known)
    if split == ALL_SPLITS:
        return list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown or (split is None and len(known) != 1):
        fault = f"has no split `{unknown[0]}`" if unknown else "has several splits" if known else "has no data files"
        raise InputError(
            f"{uri}: {fault}; it has {', '.join(known) or 'none'}; choose with --split (NAME,... or {ALL_SPLITS}; for a slice "
            "--limit)",
            uri=uri,
        )
    return wanted


def pick_saved(
    uri: str, objects: list[storage.StoredObject], split: str | None
) -> tuple[list[storage.StoredObject], list[str]] | None:
    """Return the data files of what `save_to_disk` wrote into a folder, or None where it wrote nothing.

    The second list names what lies in none of its folders.

    Raises:
        InputError: the split is not there or not said, or the folder lacks a file.
    """
    by_uri = {item.uri: item for item in objects}
    folders = [
        item.uri[: -len(STATE) - 1]
        for item in objects
        if item.uri.endswith("/" + STATE) and storage.join_uri(item.uri[: -len(STATE) - 1], INFO) in by_uri
    ]
    if not folders:
        return None
    own = {*folders, uri} if storage.join_uri(uri, DICT) in by_uri else {*folders}
    strangers = [name for name in by_uri if name.rpartition("/")[0] not in own]
    states = {folder: _read_state(storage.join_uri(folder, STATE)) for folder in folders}
    if storage.join_uri(uri, DICT) in by_uri:
        names = {folder.rpartition("/")[2]: folder for folder in folders}
        folders = [names[name] for name in _choose(uri, list(names), split)]
    elif split not in (None, ALL_SPLITS):
        splits = [str(states[folder].get("_split")) for folder in folders]
        chosen = _choose(uri, list(dict.fromkeys(splits)), split)
        folders = [folder for folder, name in zip(folders, splits, strict=True) if name in chosen]
    files = []
    for folder in folders:
        state = states[folder]
        if state.get("_indices_data_files"):
            raise InputError(f"{folder}: holds a selection that was not written out; save it again", uri=folder)
        for entry in state["_data_files"]:
            file = storage.join_uri(folder, str(entry["filename"]))
            if file not in by_uri:
                raise InputError(
                    f"{file}: not found, though {STATE} beside it names it; copy the whole folder", uri=file
                )
            files.append(by_uri[file])
    return files, strangers


def _read_state(uri: str) -> dict[str, Any]:
    try:
        state = json.loads(storage.read_bytes(uri))
        files = state["_data_files"]
        if isinstance(files, list) and all(isinstance(file["filename"], str) for file in files):
            return dict(state)
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{uri}: is not what save_to_disk writes; save the dataset again", uri=uri)

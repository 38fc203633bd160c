"""Files of repositories on the Hugging Face hub, read in place: `hf://datasets/owner/name[@revision]/path`, and of models.

A branch is looked up once in a process and read at the commit that was found, so that a file cannot change in mid-read;
a file's version mark is its hash, so that a commit that leaves it alone changes nothing. Errors are Python's own; what to
say of them, and when to try again, `storage` knows. Endpoint and token come from HF_ENDPOINT and HF_TOKEN.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

SCHEME = "hf://"
DATASETS = "datasets/"
PARQUET_BRANCH = "refs/convert/parquet"  # where the hub keeps a copy in Parquet; hf:// has ~parquet for it
REQUEST_SECONDS = 60.0


def is_hub(uri: str) -> bool:
    """Whether the URI names a repository on the hub or a file in one."""
    return uri.startswith(SCHEME)


def normalize_hub_uri(uri: str) -> str:
    """Return the one spelling of a URI of the hub.

    Raises:
        ValueError: it does not name a dataset repository.
    """
    rest = uri.removeprefix(SCHEME).strip("/").removeprefix(DATASETS)
    parts = rest.split("/")
    if len(parts) < 2 or not all(parts) or parts[0] in ("models", "spaces", "buckets"):
        raise ValueError(
            f"{uri}: expected hf://OWNER/NAME or hf://datasets/OWNER/NAME/path, with @REVISION after the name"
        )
    return f"{SCHEME}{DATASETS}{rest}"


def split_hub_uri(uri: str) -> tuple[str, str, str]:
    """Return repository, revision ("" where none is given) and path of a normalized URI."""
    owner, name, *path = uri.removeprefix(SCHEME + DATASETS).split("/")
    name, _, revision = name.partition("@")
    if revision == "refs":  # as in @refs/convert/parquet, the one kind of revision with slashes
        revision, path = "/".join([revision, *path[:2]]), path[2:]
    revision = PARQUET_BRANCH if revision == "~parquet" else revision
    return f"{owner}/{name}", revision.replace("%2F", "/"), "/".join(path)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None  # the library itself looks at it only when it is imported


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None


@lru_cache(maxsize=1)
def _api(endpoint: str | None, token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token)


@contextmanager
def translate_hub_errors(uri: str) -> Iterator[None]:
    """Turn errors of the hub's library, and of the one that it speaks HTTP with, into Python's own."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(f"{uri}: access has to be asked for on the hub") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise FileNotFoundError(uri) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise PermissionError(f"{uri}: the hub refused it ({status})") from error
        if status == 404:
            raise FileNotFoundError(uri) from error
        raise OSError(f"the hub answered {status or 'nothing'}") from error
    except _transport_errors() as error:
        raise OSError(f"the hub was not reached ({type(error).__name__})") from error


@lru_cache(maxsize=1)
def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the roots of the errors of the HTTP library, which is another in each major version of the hub's.

    Its answers with an error status derive from that library's root: requests in 0.x, httpx in 1.x, httpx2 in 2.x.
    """
    from huggingface_hub import errors

    own = errors.__name__.partition(".")[0]
    mro = errors.HfHubHTTPError.__mro__
    return tuple(kind for kind in mro if kind.__module__.partition(".")[0] not in ("builtins", own))


@lru_cache(maxsize=256)
def pin_revision(repository: str, revision: str) -> str:
    """Return the commit that a branch or tag stands for, "" for the default branch.

    Raises:
        FileNotFoundError, PermissionError, OSError: the hub does not tell.
    """
    with translate_hub_errors(f"{SCHEME}{DATASETS}{repository}"):
        info = _api(_endpoint(), _token()).dataset_info(repository, revision=revision or None)
    return str(info.sha)


def list_files(uri: str) -> list[tuple[str, int, str]]:
    """Return URI, size and version mark of each file of a repository, in order of names."""
    repository, revision, _ = split_hub_uri(uri)
    commit = pin_revision(repository, revision)
    root = f"{SCHEME}{DATASETS}{repository}" + (f"@{revision.replace('/', '%2F')}" if revision else "")
    with translate_hub_errors(uri):
        api = _api(_endpoint(), _token())
        tree = list(api.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset"))
    files = [item for item in tree if hasattr(item, "blob_id")]
    return sorted((f"{root}/{item.path}", int(item.size), _get_mark(item)) for item in files)


def _get_mark(item: Any) -> str:
    return str(item.lfs.sha256 if item.lfs is not None else item.blob_id)


@lru_cache(maxsize=4096)
def look_at(uri: str) -> tuple[int, str]:
    """Return size and version mark of a file."""
    repository, revision, path = split_hub_uri(uri)
    commit = pin_revision(repository, revision)
    with translate_hub_errors(uri):
        paths = _api(_endpoint(), _token()).get_paths_info(repository, [path], revision=commit, repo_type="dataset")
    if not paths or not hasattr(paths[0], "blob_id"):
        raise FileNotFoundError(uri)
    return int(paths[0].size), _get_mark(paths[0])


def read_range(uri: str, start: int, end: int) -> bytes:
    """Return some bytes of a file."""
    repository, revision, path = split_hub_uri(uri)
    return _get_range(uri, (repository, path), "dataset", pin_revision(repository, revision), start, end)


def find_model_commit(repository: str, revision: str | None) -> str:
    """Return the commit that a branch or tag of a model's repository stands for now.

    Raises:
        FileNotFoundError, PermissionError, OSError: the hub does not tell.
    """
    with translate_hub_errors(repository):
        return str(_api(_endpoint(), _token()).model_info(repository, revision=revision).sha)


def list_model_marks(repository: str, commit: str) -> dict[str, str]:
    """Return the version mark of each file of a model's repository.

    Raises:
        FileNotFoundError, PermissionError, OSError: the hub does not tell.
    """
    with translate_hub_errors(repository):
        tree = list(_api(_endpoint(), _token()).list_repo_tree(repository, recursive=True, revision=commit))
    return {str(item.path): _get_mark(item) for item in tree if hasattr(item, "blob_id")}


def list_model_files(repository: str, commit: str, places: Sequence[str] = ()) -> dict[str, int]:
    """Return the size of each file at the top of a model's repository, and in some of its folders.

    Raises:
        FileNotFoundError, PermissionError, OSError: the hub does not tell.
    """
    with translate_hub_errors(repository):
        api = _api(_endpoint(), _token())
        trees = [list(api.list_repo_tree(repository, place, revision=commit)) for place in (None, *places)]
    return {str(item.path): int(item.size) for tree in trees for item in tree if hasattr(item, "blob_id")}


def read_model_range(repository: str, commit: str, path: str, start: int, end: int) -> bytes:
    """Return some bytes of a file of a model's repository.

    Raises:
        FileNotFoundError, PermissionError, OSError: the hub does not give them.
    """
    return _get_range(repository, (repository, path), "model", commit, start, end)


def _get_range(uri: str, file: tuple[str, str], kind: str, commit: str, start: int, end: int) -> bytes:
    """Return some bytes of a file, given as repository and path."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    url = hf_hub_url(*file, repo_type=kind, revision=commit, endpoint=_endpoint())
    headers = {**build_hf_headers(token=_token()), "Range": f"bytes={start}-{end - 1}"}
    with translate_hub_errors(uri):
        answer = get_session().get(url, headers=headers, timeout=REQUEST_SECONDS, follow_redirects=True)
        hf_raise_for_status(answer)
    data = bytes(answer.content)
    return data[start:end] if answer.status_code == 200 and len(data) > end - start else data

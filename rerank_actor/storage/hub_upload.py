"""Uploads to a dataset repository on the Hugging Face hub, by huggingface_hub's own functions.

Takes a repository, a branch and a folder of files. What the hub says turns into the project's errors. Endpoint and token are
those of the hub's own tools: HF_ENDPOINT, HF_TOKEN or a login. Knows nothing of what is in the files.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rerank_actor.errors import AccessDeniedError, JobError, StorageError
from rerank_actor.storage.hub import DATASETS, SCHEME, read_range, translate_hub_errors

TREE_KIND = "dataset"
MAIN = "main"


class HubRepository:
    """A branch of a dataset repository that may be written to.

    Args:
        name: owner and name.
        branch: of it.

    Raises:
        JobError: the name is none, or there is no token.
    """

    def __init__(self, name: str, branch: str) -> None:
        from huggingface_hub import HfApi, get_token

        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
            raise JobError(f"{name}: is no name of a repository on the hub, which is OWNER/NAME")
        token = get_token()
        if not token:
            raise JobError(f"{name}: there is no token of the hub to write with; set HF_TOKEN, or run `hf auth login`")
        self.name, self.branch, self._start = name, branch, branch
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)

    def list_files(self) -> dict[str, int] | None:
        """Return the size of each file on the branch, on main where it is to begin as main is; None for no repository.

        Raises:
            JobError, StorageError: the hub does not tell.
        """
        with self._speak():
            if not self._api.repo_exists(self.name, repo_type=TREE_KIND):
                return None
            is_there = self._api.revision_exists(self.name, self.branch, repo_type=TREE_KIND)
            self._start = self.branch if is_there else MAIN
            tree = list(self._api.list_repo_tree(self.name, recursive=True, revision=self._start, repo_type=TREE_KIND))
        return {str(item.path): int(getattr(item, "size", 0)) for item in tree if hasattr(item, "blob_id")}

    def read(self, path: str, size: int) -> bytes:
        """Return a small file of those that `list_files` gave."""
        with self._speak():
            return read_range(f"{SCHEME}{DATASETS}{self.name}@{self._start}/{path}", 0, size) if size else b""

    def is_private(self) -> bool:
        """Whether the repository, which is there, is private."""
        with self._speak():
            return bool(self._api.dataset_info(self.name).private)

    def create(self, *, private: bool) -> None:
        """Create the repository, or the branch, where they are not there yet."""
        with self._speak():
            self._api.create_repo(self.name, repo_type=TREE_KIND, private=private or None, exist_ok=True)
            if self.branch != MAIN:
                self._api.create_branch(self.name, branch=self.branch, repo_type=TREE_KIND, exist_ok=True)

    def upload(self, folder: Path, message: str, *, only: str | None, deleted: Sequence[str] = ()) -> None:
        """Upload the files of a folder.

        Args:
            folder: of them.
            message: of the commit.
            only: the one file to upload; None for all others than README.md.
            deleted: files to delete with the same commit.

        Raises:
            JobError, StorageError: the hub does not take them.
        """
        with self._speak():
            self._api.upload_folder(
                repo_id=self.name,
                repo_type=TREE_KIND,
                revision=self.branch,
                folder_path=folder,
                commit_message=message,
                allow_patterns=only,
                ignore_patterns=None if only else ["README.md"],
                delete_patterns=[_escape(name) for name in deleted] or None,
            )

    @contextmanager
    def _speak(self) -> Iterator[None]:
        try:
            with translate_hub_errors(self.name):
                yield
        except FileNotFoundError as error:
            raise JobError(f"{self.name}: the hub has no such repository, or the token may not write to it") from error
        except PermissionError as error:
            raise AccessDeniedError(str(error)) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise StorageError(f"{self.name}: {error}; the same command again goes on") from error


def _escape(name: str) -> str:
    """Return the pattern that a name alone matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)

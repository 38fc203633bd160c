"""Local files: what a listing finds, passes over and refuses, and how a location is spelt."""

import ctypes
import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rerank_actor import storage
from rerank_actor.errors import InputError, JobError
from rerank_actor.storage import conditional


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def list_names(uri: Path | str, root: Path) -> list[str]:
    return [os.path.relpath(item.uri, root) for item in storage.list_objects(str(uri))]


def test_folder_gives_files_hidden_ones_and_those_behind_links(tmp_path: Path) -> None:
    for name in ("in/a", "in/b/c", "in/_job/d", "in/.e", "elsewhere/f"):
        write(tmp_path / name)
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    found = storage.list_everything(str(tmp_path / "in"))
    assert list_names(tmp_path / "in", tmp_path) == ["in/a", "in/b/c", "in/linked/f"]
    assert [os.path.relpath(name, tmp_path) for name in found.hidden] == ["in/.e", "in/_job/d"]
    assert found.deeper == []


def test_glob_gives_files_and_says_which_lie_in_folders_that_it_matches(tmp_path: Path) -> None:
    for name in ("in/a", "in/b/c", "in/.e", "in/x[1]"):
        write(tmp_path / name)
    found = storage.list_everything(str(tmp_path / "in/*"))
    assert [os.path.basename(item.uri) for item in found.objects] == ["a", "x[1]"]
    assert [os.path.basename(name) for name in found.hidden] == [".e"]
    assert found.deeper == [str(tmp_path / "in/b/c")]
    assert storage.list_everything(str(tmp_path / "in/**")).deeper == []
    assert list_names(tmp_path / "in/x[1]", tmp_path) == ["in/x[1]"]


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "in/a")
    os.mkfifo(tmp_path / "in/pipe")
    for uri in (tmp_path / "in", tmp_path / "in/*", tmp_path / "in/pipe", Path("/dev/null")):
        with pytest.raises(InputError, match=r"(pipe|/dev/null): is a pipe, a device or a socket"):
            storage.list_objects(str(uri))
    (tmp_path / "in/pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "in/s"))
        with pytest.raises(InputError, match=r"/s: is a pipe, a device or a socket"):
            storage.list_objects(str(tmp_path / "in"))
    (tmp_path / "in/s").unlink()
    (tmp_path / "in/gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"/gone: is a link to nothing \(.*/nowhere\)"):
        storage.list_objects(str(tmp_path / "in"))


def test_file_in_the_place_of_a_folder_is_not_taken_for_an_object_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "tmp").write_bytes(b"")
    with pytest.raises(JobError, match="a file and a folder of the same name"):
        storage.create_bytes(str(tmp_path / "a"), b"", scratch=str(tmp_path / "tmp"))
    with pytest.raises(JobError, match="a file and a folder of the same name"):
        storage.create_bytes(str(tmp_path / "tmp/a"), b"")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JobError, match="is a pipe"):
        storage.read_version(str(tmp_path / "pipe"))


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("//data//a/./b/../c/", "/data/a/c"),
        ("file:///data/a", "/data/a"),
        ("file://localhost/data/a", "/data/a"),
        ("file:/data/a", "/data/a"),
        ("s3a://bucket/key/", "s3://bucket/key"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket//key", "s3://bucket//key"),
    ],
)
def test_location_has_one_spelling(text: str, uri: str) -> None:
    assert storage.normalize_uri(text) == uri


@pytest.mark.parametrize(
    "text", ["", " ", "file://", "s3://", "s3:///key", "s3a://", "gs://", "ftp://host/key", "file://host/key"]
)
def test_location_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(JobError, match=r"s3://bucket/key"):
        storage.normalize_uri(text)


def test_links_are_followed_where_places_are_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "in/a")
    (tmp_path / "in/b").symlink_to(path)
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    assert storage.is_within(str(tmp_path / "linked/out"), str(tmp_path / "in"))
    assert not storage.is_within(str(tmp_path / "linked-not"), str(tmp_path / "linked"))
    found = [item for folder in ("in", "linked") for item in storage.list_objects(str(tmp_path / folder))]
    assert {name: len(items) for name, items in storage.group_by_file(found).items()} == {str(path): 4}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP])
@pytest.mark.parametrize("renames", [True, False], ids=["renameat2", "marker"])
def test_files_are_created_once_where_the_file_system_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, renames: bool
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    if not renames:  # as FUSE answers what it does not know

        def answer(*arguments: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

        monkeypatch.setattr(conditional, "_RENAME", answer)
    uri = str(tmp_path / "out/lease.json")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda writer: storage.create_bytes(uri, b"%d" % writer), range(8)))
    assert sum(made) == 1
    assert storage.read_bytes(uri) == b"%d" % made.index(True)
    assert not storage.create_bytes(uri, b"another")
    assert os.listdir(tmp_path / "out") == ["lease.json"]
    found = storage.read_version(uri)
    assert found is not None and storage.replace_bytes(uri, b"next", found.mark)
    assert not storage.replace_bytes(uri, b"late", found.mark)
    assert storage.read_bytes(uri) == b"next"


@pytest.mark.parametrize(
    ("output", "uri", "where"),
    [
        ("in/out", "in", "in"),
        ("in", "in", "around"),
        ("in", "in/a.parquet", "around"),
        ("linked/out", "in", "in"),
        ("in/out", "in/*/*.parquet", "in"),
        ("in/out", "in/**", "in"),
        ("linked/out", "in/**/*.parquet", "in"),
        ("in/out", "in/*/*/*.parquet", "in"),  # of a language pair
        ("in", "in/*.jsonl", "around"),
        ("in/out", "in/*.parquet", None),
        ("in/out", "in/*/x-*.parquet", None),
        ("in-out", "in", None),
        ("out", "in/a.parquet", None),
    ],
)
def test_output_within_what_is_read_or_around_it_is_refused(
    tmp_path: Path, output: str, uri: str, where: str | None
) -> None:
    write(tmp_path / "in/a.parquet")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    places = str(tmp_path / output), str(tmp_path / uri)
    if where is None:
        storage.refuse_overlap(*places, "--output", "--corpus")
        return
    with pytest.raises(InputError, match=f"^--output .*: lies {where} --corpus .*would be read again"):
        storage.refuse_overlap(*places, "--output", "--corpus")

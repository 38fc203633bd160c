"""A Hugging Face hub on loopback: as much of its API as reading repositories of datasets and of models takes."""

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import pytest

from rerank_actor.storage import hub


class HubServer:
    """A hub whose repositories are dictionaries of files; `token` is asked for where it is set.

    Attributes:
        repositories: files by path, by commit, by repository; the last commit is `main`.
        branches: commit by repository and name, besides main.
        requests: method, path and Range of each request.
        fault: called with the number of a request, from 1; gives a status to answer with, -1 to reset the connection, or 0.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.token: str | None = None
        self.fault: Callable[[int], int] = lambda number: 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                self._answer(b"")

            def do_HEAD(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self._read())

            def do_PUT(self) -> None:
                self._answer(self._read())

            def _read(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _answer(self, body: bytes) -> None:
                server.requests.append((self.command, self.path, self.headers.get("Range", "")))
                fault = server.fault(len(server.requests))
                if fault < 0:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                url = urlsplit(self.path)
                is_known = self.headers.get("Authorization") == f"Bearer {server.token}"
                if fault:
                    status, headers, data = fault, {}, b"{}"
                elif server.token and not is_known and self.command != "PUT":
                    status, headers, data = 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
                elif (written := server.take(self.command, unquote(url.path), body)) is not None:
                    status, headers, data = 200, {"Content-Type": "application/json"}, json.dumps(written).encode()
                else:
                    form = parse_qs(body.decode() or url.query)
                    status, headers, data = server.answer(url.path, form, self.headers.get("Range", ""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit of a repository with just these files, and return its name."""
        commits = self.repositories.setdefault(repository, {})
        # As on the hub another commit has another name, by which files are cached on this machine.
        name = hashlib.sha1(repr((repository, len(commits), files)).encode()).hexdigest()
        commits[name] = files
        return name

    def take(self, method: str, path: str, body: bytes) -> Any:
        """Return what a request that writes is answered, None for one that reads."""
        return None

    def answer(self, path: str, form: dict[str, list[str]], wanted: str) -> tuple[int, dict[str, str], bytes]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        if not is_api and parts[0] != "datasets":
            parts = ["models", *parts]  # their files have no prefix
        commits = self.repositories.get("/".join(parts[1:3]), {})
        if parts[0] not in ("datasets", "models") or not commits:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        what, revision, rest = (parts[3:4] or [""])[0], (parts[4:5] or ["main"])[0], "/".join(parts[5:])
        named = self.branches.get(("/".join(parts[1:3]), revision), revision)
        commit = list(commits)[-1] if revision == "main" else named
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = commits[commit]
        if not is_api and what == "resolve":
            return _send_file(files.get(rest), commit, wanted)
        found: Any = None
        if what in ("", "revision"):
            found = {
                "_id": "0",
                "id": "/".join(parts[1:3]),
                "sha": commit,
                "private": self.is_private("/".join(parts[1:3])),
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": name} for name in files],
            }
        elif what == "tree":
            found = _list_tree(files, rest, form.get("recursive") == ["true"])
            if rest and not found:
                found = None
        elif what == "paths-info":
            found = [_describe(name, files[name]) for name in form["paths"] if name in files]
        if found is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    def is_private(self, repository: str) -> bool:
        return False

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class WritableHub(HubServer):
    """A hub that takes repositories, branches and commits too; files named as data go through its LFS store.

    Attributes:
        private: repositories that were created so.
        stored: the LFS objects by digest.
        uploads: digests that were sent, in order.
    """

    def __init__(self) -> None:
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.uploads: list[str] = []
        super().__init__()

    def is_private(self, repository: str) -> bool:
        return repository in self.private

    def take(self, method: str, path: str, body: bytes) -> Any:
        parts = path.strip("/").split("/")
        if method == "PUT":
            self.stored[parts[-1]] = body
            self.uploads.append(parts[-1])
            return {}
        if method != "POST" or parts[-1] == "paths-info" or "paths-info" in parts:
            return None
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            if name not in self.repositories:
                self.commit(name, {".gitattributes": b""})
                self.private |= {name} if values.get("private") or values.get("visibility") == "private" else set()
            return {"url": f"{self.endpoint}/datasets/{name}"}
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            return {"objects": [self._offer(one) for one in wanted]}
        repository, branch = "/".join(parts[2:4]), "/".join(parts[5:]) or "main"
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            return {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": modes[one["path"].endswith((".parquet", ".arrow"))],
                        "shouldIgnore": False,
                    }
                    for one in files
                ]
            }
        if parts[4] == "branch":
            self.branches.setdefault((repository, branch), list(self.repositories[repository])[-1])
            return {}
        assert parts[4] == "commit", path
        return self._commit(repository, branch, [json.loads(line) for line in body.splitlines()])

    def _offer(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return where an LFS object goes, nowhere where it is already."""
        if wanted["oid"] in self.stored:
            return {"oid": wanted["oid"], "size": wanted["size"]}
        return {**wanted, "actions": {"upload": {"href": f"{self.endpoint}/lfs/{wanted['oid']}"}}}

    def _commit(self, repository: str, branch: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        commits = self.repositories[repository]
        main = list(commits)[-1]
        files = dict(commits[main if branch == "main" else self.branches[repository, branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        name = self.commit(repository, files)
        if branch != "main":  # so that the last commit stays that of main
            self.branches[repository, branch] = name
            commits[main] = commits.pop(main)
        return {"commitUrl": f"{self.endpoint}/datasets/{repository}/commit/{name}", "commitOid": name}


def _list_tree(files: dict[str, bytes], folder: str, is_recursive: bool) -> list[dict[str, Any]]:
    start = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        if not name.startswith(start):
            continue
        pieces = name[len(start) :].split("/")
        for depth in range(1, len(pieces)):
            path = start + "/".join(pieces[:depth])
            if is_recursive or depth == 1:
                found[path] = {
                    "type": "directory",
                    "path": path,
                    "oid": hashlib.sha1(path.encode()).hexdigest(),
                    "size": 0,
                }
        if is_recursive or len(pieces) == 1:
            found[name] = _describe(name, data)
    return list(found.values())


def _describe(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def _send_file(data: bytes | None, commit: str, wanted: str) -> tuple[int, dict[str, str], bytes]:
    if data is None:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    if not wanted:
        return 200, headers, data
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    chunk = data[int(first) : int(last) + 1]
    return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, chunk


def serve_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Give a hub that this process takes for the real one, for a fixture to yield from."""
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)  # which it read as it was imported
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for cached in (hub.pin_revision, hub.look_at):
        cached.cache_clear()
    yield server
    server.close()
    for cached in (hub.pin_revision, hub.look_at):
        cached.cache_clear()

"""A Hugging Face hub on loopback: as much of its API as reading repositories of datasets and of models takes."""

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
                self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def _answer(self, body: bytes) -> None:
                server.requests.append((self.command, self.path, self.headers.get("Range", "")))
                fault = server.fault(len(server.requests))
                if fault < 0:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                if fault:
                    status, headers, data = fault, {}, b"{}"
                elif server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                    status, headers, data = 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
                else:
                    url = urlsplit(self.path)
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
                "private": False,
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

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


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

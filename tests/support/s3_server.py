"""An S3 server on this machine (moto) that takes down what it is asked and fails on demand."""

import io
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import boto3
import pyarrow as pa
import pyarrow.parquet as pq

SECRET = "planted-secret-0123456789"
CODES = {400: "ExpiredToken", 403: "AccessDenied", 500: "InternalError", 503: "SlowDown", 507: "XMinioStorageFull"}
TRICKLES = 20  # pieces that a slow answer comes in


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request besides a status.

    Attributes:
        kind: `reset`, the connection is reset before anything is done; `lost`, it is reset when all is done; `truncate`,
            the right headers and half of the body, then the end; `stall`, no answer for a while, then a reset; `slow`,
            the right answer, its body in pieces over a while, or that late where it has none.
        seconds: that while.
    """

    kind: Literal["reset", "lost", "truncate", "stall", "slow"]
    seconds: float = 0.0


class S3Server:
    """The server, and a client of its own that shares nothing with what is tested.

    Attributes:
        endpoint: address of the server.
        bucket: a bucket of the test at hand.
        requests: method and path with query of each request.
        key_ids: the access key of each request.
        fault: called with method and path, gives an HTTP status to answer with, a `Fault`, or 0 to answer rightly.
        before_answer: called with method and path before each request is answered rightly.
        answer_instead: called with method and path, gives the body of an answer with status 200, or "".
        page_size: objects in an answer to a listing, which a server may choose.
    """

    def __init__(self) -> None:
        self.bucket = ""
        self.requests: list[tuple[str, str]] = []
        self.key_ids: list[str] = []
        self.fault: Callable[[str, str], int | Fault] | None = None
        self.before_answer: Callable[[str, str], None] | None = None
        self.answer_instead: Callable[[str, str], str] | None = None
        self.page_size = 1000
        # Not at the top: vLLM looks through all modules when it starts and trips over Flask's proxies.
        from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        class QuietHandler(MotoRequestHandler):
            def log_request(self, *arguments: Any) -> None:
                pass

            def make_environ(self) -> Any:
                return {**super().make_environ(), "tests.handler": self}

        self._answer = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=QuietHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="tester",
            aws_secret_access_key="tester",
            region_name="us-east-1",
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a user would set."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "planted-id",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def begin_test(self, number: int) -> None:
        """Make a bucket for a test and forget what was before."""
        self.fault, self.before_answer, self.answer_instead, self.page_size = None, None, None, 1000
        self.bucket = f"data-{number}"
        self.client.create_bucket(Bucket=self.bucket)
        self.requests.clear()
        self.key_ids.clear()

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"] + (f"?{environ['QUERY_STRING']}" if environ.get("QUERY_STRING") else "")
        self.requests.append((environ["REQUEST_METHOD"], path))
        self.key_ids.append(environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0])
        fault = self.fault(environ["REQUEST_METHOD"], path) if self.fault else 0
        if isinstance(fault, Fault):
            return self._answer_badly(environ, start_response, path, fault)
        if not fault:
            return self._answer_rightly(environ, start_response, path)
        _take_body(environ)
        start_response(f"{fault} {CODES[fault]}", [("Content-Type", "application/xml")])
        if environ["REQUEST_METHOD"] == "HEAD":
            return []  # a body would be read as the answer to the connection's next request
        return [f"<Error><Code>{CODES[fault]}</Code><Message>on demand</Message></Error>".encode()]

    def _answer_rightly(self, environ: dict[str, Any], start_response: Callable[..., Any], path: str) -> Any:
        if self.before_answer:
            self.before_answer(environ["REQUEST_METHOD"], path)
        if body := self.answer_instead and self.answer_instead(environ["REQUEST_METHOD"], path):
            _take_body(environ)
            start_response("200 OK", [("Content-Type", "application/xml")])
            return [body.encode()]
        if "list-type=2" in path and "max-keys" not in path:
            environ["QUERY_STRING"] += f"&max-keys={self.page_size}"
        return self._answer(environ, start_response)

    def _answer_badly(
        self, environ: dict[str, Any], start_response: Callable[..., Any], path: str, fault: Fault
    ) -> Iterator[bytes]:
        if fault.kind in ("reset", "stall"):
            _take_body(environ)
            time.sleep(fault.seconds)
            _reset(environ)
        body = b"".join(self._answer_rightly(environ, start_response, path))
        if fault.kind == "lost":
            _reset(environ)
        if fault.kind == "slow":
            time.sleep(0 if body else fault.seconds)
            step = len(body) // TRICKLES + 1
            for piece in range(TRICKLES):
                time.sleep(fault.seconds / TRICKLES)
                yield body[piece * step : (piece + 1) * step]
        elif len(body) < 2:
            _reset(environ)
        else:
            yield body[: len(body) // 2]
            _end_connection(environ)

    def uri(self, key: str) -> str:
        """Return the URI of a key in the test's bucket."""
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Write the files of a local folder below a prefix."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""
        return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def read_all(self, prefix: str) -> dict[str, bytes]:
        """Return all objects below a prefix by key."""
        return {key: self.read(key) for key in self.list_keys(prefix)}

    def list_keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()


def _take_body(environ: dict[str, Any]) -> None:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _reset(environ: dict[str, Any]) -> None:
    """End the request's connection with a TCP reset, and this thread's part in it."""
    connection = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    dead, peer = socket.socketpair()
    peer.close()
    os.dup2(dead.fileno(), connection.fileno())  # closes the connection itself, which the server's own files keep open
    dead.close()
    _end_connection(environ)


def _end_connection(environ: dict[str, Any]) -> None:
    environ["tests.handler"].close_connection = True
    raise ConnectionResetError("on demand")


def put_table(s3: S3Server, key: str, table: pa.Table) -> None:
    """Write a Parquet shard to the bucket."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    s3.put(key, sink.getvalue())

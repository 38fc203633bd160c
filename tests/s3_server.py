"""An S3 server on this machine (moto) that takes down what it is asked and fails on demand."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

SECRET = "planted-secret-0123456789"
CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}


class S3Server:
    """The server, and a client of its own that shares nothing with what is tested.

    Attributes:
        endpoint: address of the server.
        bucket: a bucket of the test at hand.
        requests: method and path with query of each request.
        fault: called with both, gives an HTTP status to answer with, or 0 to answer rightly.
        page_size: objects in an answer to a listing, which a server may choose.
    """

    def __init__(self) -> None:
        self.bucket = ""
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int] | None = None
        self.page_size = 1000
        # Not at the top: vLLM looks through all modules when it starts and trips over Flask's proxies.
        from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        class QuietHandler(MotoRequestHandler):
            def log_request(self, *arguments: Any) -> None:
                pass

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
        self.fault, self.page_size = None, 1000
        self.bucket = f"data-{number}"
        self.client.create_bucket(Bucket=self.bucket)
        self.requests.clear()

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"] + (f"?{environ['QUERY_STRING']}" if environ.get("QUERY_STRING") else "")
        self.requests.append((environ["REQUEST_METHOD"], path))
        status = self.fault(environ["REQUEST_METHOD"], path) if self.fault else 0
        if not status:
            if "list-type=2" in path and "max-keys" not in path:
                environ["QUERY_STRING"] += f"&max-keys={self.page_size}"
            return self._answer(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{status} {CODES[status]}", [("Content-Type", "application/xml")])
        if environ["REQUEST_METHOD"] == "HEAD":
            return []  # a body would be read as the answer to the connection's next request
        return [f"<Error><Code>{CODES[status]}</Code><Message>on demand</Message></Error>".encode()]

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
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        keys = sorted(item["Key"] for page in pages for item in page.get("Contents", []))
        return {key: self.read(key) for key in keys}

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()

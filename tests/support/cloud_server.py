"""Google Cloud Storage and Azure Blob Storage on loopback: as much of their APIs as obstore asks, over dictionaries.

Sources: Google's XML API (`x-goog-if-generation-match`, `x-goog-generation`, listings with `list-type=2`), and Azure's REST
API (Put Blob with `If-Match` and `If-None-Match`, whose unmet conditions are 412 and 409; List Blobs with markers).
"""

import hashlib
import itertools
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "cGxhbnRlZC1rZXk="
PAGE_SIZE = 100
Answer = tuple[int, dict[str, str], bytes]


class Stored(NamedTuple):
    """An object: its bytes, its generation, and when it was written."""

    data: bytes
    generation: int
    modified: float


class CloudServer:
    """A server of one of the two.

    Attributes:
        objects: by bucket or container, and key.
        requests: method and path of each request.
        fault: called with method and path; gives a status to answer with, -1 to reset the connection, -2 to do what was
            asked and reset it then, or 0 to answer rightly.
    """

    def __init__(self, kind: Literal["gs", "az"]) -> None:
        self.kind = kind
        self.objects: dict[str, dict[str, Stored]] = {"data": {}}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int] | None = None
        self._generations = itertools.count(1_700_000_000_000_000)
        self._lock = threading.Lock()
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                cloud.requests.append((self.command, self.path))
                fault = cloud.fault(self.command, self.path) if cloud.fault else 0
                if fault == -1:
                    self._reset()
                    return
                status, headers, data = (fault, {}, b"<Error/>") if fault > 0 else cloud._answer(self, body)
                if fault == -2:
                    self._reset()
                    return
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def _reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a user would set."""
        if self.kind == "gs":
            return {"STORAGE_EMULATOR_HOST": self.endpoint}
        connection = f"AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={self.endpoint}/{ACCOUNT}"
        return {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{connection}"}

    def uri(self, key: str) -> str:
        """Return the URI of a key in the bucket `data`."""
        return f"{self.kind}://data/{key}"

    def put(self, key: str, data: bytes) -> None:
        """Write an object behind the project's back."""
        self.objects["data"][key] = Stored(data, next(self._generations), time.time())

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: Any, body: bytes) -> Answer:
        url = urlsplit(request.path)
        names = [unquote(part) for part in url.path.lstrip("/").split("/")]
        names = names[1:] if self.kind == "az" else names
        bucket, key = self.objects.get(names[0]), "/".join(names[1:])
        if bucket is None:
            return 404, {}, b"<Error><Code>NoSuchBucket</Code></Error>"
        with self._lock:
            if request.command == "POST":
                return self._delete_batch(bucket, body.decode(), request.headers["Content-Type"])
            if not key:
                return self._list(bucket, {name: value[0] for name, value in parse_qs(url.query).items()})
            if request.command == "PUT":
                return self._put(bucket, key, body, request.headers)
            if request.command == "DELETE":
                return (202 if self.kind == "az" else 204) if bucket.pop(key, None) else 404, {}, b""
            return self._get(bucket.get(key), request.headers.get("Range") or request.headers.get("x-ms-range") or "")

    def _put(self, bucket: dict[str, Stored], key: str, body: bytes, headers: Any) -> Answer:
        there = bucket.get(key)
        if self.kind == "gs":
            wanted = headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != (there.generation if there else 0):
                return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        elif headers.get("If-None-Match") == "*" and there:
            return 409, {}, b"<Error><Code>BlobAlreadyExists</Code></Error>"
        elif headers.get("If-Match") and (not there or self._describe(there)["ETag"] != headers["If-Match"]):
            return 412, {}, b"<Error><Code>ConditionNotMet</Code></Error>"
        bucket[key] = Stored(body, next(self._generations), time.time())
        return 201 if self.kind == "az" else 200, self._describe(bucket[key]), b""

    def _delete_batch(self, bucket: dict[str, Stored], body: str, content_type: str) -> Answer:
        """Azure's Blob Batch: requests of their own in the parts of one body, answered likewise."""
        boundary = content_type.partition("boundary=")[2]
        answers = []
        for number, part in enumerate(re.findall(r"DELETE (\S+) HTTP", body)):
            key = unquote(urlsplit(part).path).split("/", 3)[3]
            status = "202 Accepted" if bucket.pop(key, None) else "404 The specified blob does not exist."
            answers.append(
                f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\n"
                "x-ms-version: 2023-11-03\r\nx-ms-error-code: BlobNotFound\r\n\r\n"
            )
        text = "".join(answers) + f"--{boundary}--\r\n"
        return 202, {"Content-Type": f"multipart/mixed; boundary={boundary}"}, text.encode()

    def _get(self, there: Stored | None, wanted: str) -> Answer:
        if there is None:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        headers, data = self._describe(there), there.data
        if not wanted:
            return 200, {**headers, "Content-Length": str(len(data))}, data
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b"<Error><Code>InvalidRange</Code></Error>"
        chunk = data[int(first) : int(last) + 1]
        return 206, {**headers, "Content-Range": f"bytes {first}-{int(first) + len(chunk) - 1}/{len(data)}"}, chunk

    def _describe(self, there: Stored) -> dict[str, str]:
        if self.kind == "gs":
            marks = {
                "ETag": f'"{hashlib.md5(there.data).hexdigest()}"',
                "x-goog-generation": str(there.generation),
            }
        else:
            marks = {"ETag": f'"0x{there.generation:X}"', "x-ms-blob-type": "BlockBlob"}
        return {**marks, "Last-Modified": formatdate(there.modified, usegmt=True)}

    def _list(self, bucket: dict[str, Stored], query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found = sorted(key for key in bucket if key.startswith(prefix))
        if delimiter:
            found = [key for key in found if delimiter not in key[len(prefix) :]]
        after = query.get("continuation-token") or query.get("marker") or ""
        found = [key for key in found if key > after]
        page, token = found[:PAGE_SIZE], found[PAGE_SIZE - 1] if len(found) > PAGE_SIZE else ""
        entries = "".join(self._write_entry(key, bucket[key]) for key in page)
        if self.kind == "gs":
            more = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
            text = f"<ListBucketResult>{entries}<IsTruncated>{str(bool(token)).lower()}</IsTruncated>{more}</ListBucketResult>"
        else:
            text = f"<EnumerationResults><Blobs>{entries}</Blobs><NextMarker>{escape(token)}</NextMarker></EnumerationResults>"
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def _write_entry(self, key: str, there: Stored) -> str:
        marks = self._describe(there)
        if self.kind == "gs":
            modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(there.modified))
            return (
                f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}</LastModified>"
                f"<ETag>{escape(marks['ETag'])}</ETag><Size>{len(there.data)}</Size></Contents>"
            )
        return (
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{marks['Last-Modified']}</Last-Modified>"
            f"<Etag>{marks['ETag'].strip(chr(34))}</Etag><Content-Length>{len(there.data)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
        )

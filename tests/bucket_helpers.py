"""Buckets in memory behind as much of the JSON interface of Google Cloud Storage as gcsfs and TensorStore (of Orbax)
use: generations and their conditions, ranges, uploads in parts, listing.

https://cloud.google.com/storage/docs/json_api/v1
"""

import email
import http.server
import itertools
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

import pytest

BUCKET, FORBIDDEN = "bucket", "forbidden"


class Buckets(http.server.ThreadingHTTPServer):
    """The server; `objects` has (content, generation) of every object by its name in BUCKET."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.generations, self.lock, self.calls = itertools.count(1), threading.RLock(), []
        self.failures: list[int] = []  # statuses of the next answers
        self.url = f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """Variables by which the clients find it."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask for the kind of bucket by gRPC
            "NO_GCE_CHECK": "true",
        }

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def fetch(self, prefix: str, folder: pathlib.Path) -> pathlib.Path:
        """Copies what is below a name to a folder of this machine."""
        for name in self.names(f"{prefix}/"):
            path = folder / name.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.objects[name][0])
        return folder


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Buckets

    def log_message(self, *_) -> None:
        pass

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        with self.server.lock:
            self.server.calls.append(f"{self.command} {urllib.parse.unquote(self.path)}")
            status = self.server.failures.pop(0) if self.server.failures else 0
            self.answer(*((status, {"error": {"code": status, "message": "injected"}}) if status else
                          self.respond(self.command, url.path, query, body)))  # fmt: skip

    do_GET = do_POST = do_PUT = do_DELETE = do

    def respond(self, method: str, path: str, query: dict, body: bytes) -> tuple:
        """(status, JSON or bytes, headers) of a request."""
        if path == "/batch/storage/v1":
            return self.batch(body)
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path)
        if not found:
            return 501, {"error": {"code": 501, "message": f"{method} {path}"}}
        kind, bucket, name = found.groups()
        if bucket != BUCKET:
            return (403, {"error": {"code": 403, "message": "no access"}}) if bucket == FORBIDDEN else missing()
        name = urllib.parse.unquote(name or query.get("name", ""))
        if kind == "/upload":
            return self.upload(name, query, body)
        if not path.partition("/b/")[2].partition("/")[2]:
            return 200, {"kind": "storage#bucket", "name": bucket}
        if not name:
            return self.listing(query)
        return self.delete(name, query) if method == "DELETE" else self.get(name, query, kind)

    def get(self, name: str, query: dict, kind: str | None) -> tuple:
        if name not in self.server.objects:
            return missing()
        content, generation = self.server.objects[name]
        if kind != "/download" and query.get("alt") != "media":
            return 200, described(name, content, generation)
        told = {"X-Goog-Generation": str(generation), "ETag": str(generation)}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", told
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return refused()
        whole = len(content)
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not found:
            return 200, content, told
        first, last = found.groups()
        start = int(first) if first else max(whole - int(last), 0)
        end = min(int(last) + 1, whole) if first and last else whole
        if start >= whole:
            return 416, {"error": {"code": 416, "message": "invalid range"}}
        return 206, content[start:end], told | {"Content-Range": f"bytes {start}-{end - 1}/{whole}"}

    def listing(self, query: dict) -> tuple:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], []
        for name in self.server.names(prefix):
            if not query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if not cut:
                items.append(described(name, *self.server.objects[name]))
            elif f"{prefix}{head}/" not in prefixes:
                prefixes.append(f"{prefix}{head}/")
        return 200, {"kind": "storage#objects", "items": items, "prefixes": prefixes}

    def upload(self, name: str, query: dict, body: bytes) -> tuple:
        if "upload_id" in query:
            return self.part(self.server.uploads[query["upload_id"]], query, body)
        if query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
            upload = str(next(self.server.generations))
            self.server.uploads[upload] = bytearray()
            where = urllib.parse.urlencode(query | {"upload_id": upload, "name": name})
            return 200, {}, {"Location": f"{self.server.url}/upload/storage/v1/b/{BUCKET}/o?{where}"}
        return self.put(name, query, body)

    def part(self, sent: bytearray, query: dict, body: bytes) -> tuple:
        """A part of an upload; the object is there with the last one."""
        sent += body
        size = self.headers["Content-Range"].partition("/")[2]
        if size == "*" or len(sent) < int(size):
            return 308, b"", {"Range": f"bytes=0-{len(sent) - 1}"}
        return self.put(query["name"], query, bytes(sent))

    def put(self, name: str, query: dict, content: bytes) -> tuple:
        if not self.holds(name, query):
            return refused()
        self.server.objects[name] = content, next(self.server.generations)
        return 200, described(name, *self.server.objects[name])

    def delete(self, name: str, query: dict) -> tuple:
        if name not in self.server.objects:
            return missing()
        if not self.holds(name, query):
            return refused()
        del self.server.objects[name]
        return 204, b""

    def holds(self, name: str, query: dict) -> bool:
        """Whether the object has the generation that is asked for; 0: there is none."""
        wanted = query.get("ifGenerationMatch")
        return wanted is None or int(wanted) == self.server.objects.get(name, (b"", 0))[1]

    def batch(self, body: bytes) -> tuple:
        kind = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        answers = []
        for part in email.message_from_bytes(kind + body).get_payload():
            method, path, _ = part.get_payload().split(" ", 2)
            status, *_ = self.respond(method, urllib.parse.urlsplit(path).path, {}, b"")
            answers.append(f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{part['Content-ID']}>"
                           f"\r\n\r\nHTTP/1.1 {status} -\r\n\r\n\r\n")  # fmt: skip
        answer = "".join(answers) + "--batch--\r\n"
        return 200, answer.encode(), {"Content-Type": "multipart/mixed; boundary=batch"}

    def answer(self, status: int, content: dict | bytes, headers: dict | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def missing() -> tuple:
    return 404, {"error": {"code": 404, "message": "not found"}}


def refused() -> tuple:
    return 412, {"error": {"code": 412, "message": "the condition does not hold"}}


def described(name: str, content: bytes, generation: int) -> dict:
    return {
        "kind": "storage#object", "bucket": BUCKET, "name": name, "size": str(len(content)),
        "generation": str(generation), "metageneration": "1", "updated": "2026-01-01T00:00:00.000Z",
        "timeCreated": "2026-01-01T00:00:00.000Z", "etag": str(generation),
    }  # fmt: skip


@pytest.fixture(scope="module")
def buckets() -> Iterator[Buckets]:
    """A server that runs and is found by this process; one for all tests of a file, as clients keep its address."""
    server = Buckets()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server
    server.shutdown()
    server.server_close()


def main() -> None:
    """Serves until it is ended, and says where."""
    server = Buckets()
    print("\n".join(f"export {key}={value}" for key, value in server.environment().items()), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

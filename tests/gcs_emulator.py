"""A small Google Cloud Storage on loopback: what of its JSON API gcsfs, google-cloud-storage and tensorstore use.

The emulators of the package index lack what a lock and tensorstore's index rest on: gcp-storage-emulator 2026.7 knows
no `ifGenerationMatch`, fake-gcs-server 1.54 ignores it for plain uploads and for deletions. Here every request is
answered under one lock, so that it holds as there: an object appears whole or not at all, whoever lists sees all that
is written, and of two writers for one generation the second gets 412.

    python tests/gcs_emulator.py          # prints its address, serves until it is killed
"""

import base64
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import google_crc32c


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass
class Store:
    """Buckets of objects: name → (bytes, metadata). `locked` asks for credentials, `read-only` is that."""

    buckets: dict[str, dict[str, tuple[bytes, dict[str, Any]]]] = field(default_factory=lambda: {"read-only": {}})
    uploads: dict[str, tuple[str, dict[str, str], dict[str, Any], bytes]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    last: int = 0

    def bucket(self, name: str) -> dict[str, tuple[bytes, dict[str, Any]]]:
        if name == "locked":
            raise RefusedError(401, "Anonymous caller does not have storage.objects.list access.")
        if name not in self.buckets:
            raise RefusedError(404, "The specified bucket does not exist.")
        return self.buckets[name]

    def get(self, bucket: str, name: str, query: dict[str, str]) -> tuple[bytes, dict[str, Any]]:
        objects = self.bucket(bucket)
        self.check(objects.get(name), query, "if")
        if (
            name not in objects
            or query.get("generation", objects[name][1]["generation"]) != objects[name][1]["generation"]
        ):
            raise RefusedError(404, f"No such object: {bucket}/{name}")
        return objects[name]

    def put(self, bucket: str, name: str, data: bytes, query: dict[str, str], told: dict[str, Any]) -> dict[str, Any]:
        objects = self.bucket(bucket)
        self.check(objects.get(name), query, "if")
        self.last = max(self.last + 1, time.time_ns() // 1000)
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        meta = {
            "kind": "storage#object", "id": f"{bucket}/{name}/{self.last}", "name": name, "bucket": bucket,
            "generation": str(self.last), "metageneration": "1", "size": str(len(data)), "storageClass": "STANDARD",
            "timeCreated": now, "updated": now, "contentType": told.get("contentType", "application/octet-stream"),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode(),
            "metadata": told.get("metadata", {}),
        }  # fmt: skip
        objects[name] = data, meta
        return meta

    def delete(self, bucket: str, name: str, query: dict[str, str]) -> None:
        self.get(bucket, name, query)
        del self.buckets[bucket][name]

    def check(self, found: tuple[bytes, dict[str, Any]] | None, query: dict[str, str], prefix: str) -> None:
        now = "0" if found is None else found[1]["generation"]
        if query.get(f"{prefix}GenerationMatch", now) != now:
            raise RefusedError(412, "At least one of the pre-conditions you specified did not hold.")
        if query.get(f"{prefix}GenerationNotMatch") == now:
            raise RefusedError(304 if found else 404, "not modified")

    def listed(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        """A page of names in order; what lies behind a delimiter is one prefix."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, end, after = query.get("startOffset", ""), query.get("endOffset"), query.get("pageToken", "")
        most = int(query.get("maxResults", 1000))
        items: list[Any] = []
        prefixes: list[str] = []
        last = ""
        for name in sorted(self.bucket(bucket)):
            if not name.startswith(prefix) or name < first or (end and name >= end):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            shown = name if cut < 0 else name[: cut + len(delimiter or "")]
            if (after and shown <= after) or shown in prefixes[-1:]:
                continue
            if len(items) + len(prefixes) == most:
                return {"kind": "storage#objects", "items": items, "prefixes": prefixes, "nextPageToken": last}
            last = shown
            if cut < 0:
                items.append(self.buckets[bucket][name][1])
            else:
                prefixes.append(shown)
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer leaves in one piece
    store: Store
    address: str

    def handle(self) -> None:
        with suppress(ConnectionError):  # whoever asked may have been killed
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        url = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        body = self._body()
        try:
            with self.store.lock:
                status, data, headers = self.route(self.command, url.path, query, body)
        except RefusedError as refused:
            status, headers = refused.status, {"Content-Type": "application/json"}
            data = json.dumps({"error": {"code": status, "message": str(refused)}}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status in (204, 304):
            data = b""
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if self.command != "HEAD" else b"")
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = answer  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def route(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        store = self.store
        if path == "/batch/storage/v1":
            return self.batch(body)
        path = re.sub(
            r"^/(resumable/|download/)?(upload/)?storage/v1", lambda m: f"/{m[2]}".rstrip("/") if m[2] else "", path
        )
        if path.startswith("/upload/b/"):
            return self.upload(method, unquote(path.split("/")[3]), query, body)
        if path.endswith("/iam/testPermissions"):
            store.bucket(bucket := path.split("/")[2])
            asked = [v for k, v in parse_qsl(urlsplit(self.path).query) if k == "permissions"]
            may = [right for right in asked if bucket != "read-only" or right.endswith((".get", ".list"))]
            return _json({"permissions": may})
        match = re.fullmatch(
            r"/b(?:/([^/]+)(?:/(o|storageLayout)(?:/([^/]+)(?:/(rewriteTo|copyTo|compose)(?:/b/([^/]+)/o/([^/]+))?)?)?)?)?",
            path,
        )
        if match is None:
            raise RefusedError(501, f"{method} {path} is not emulated")
        bucket, kind, name, verb, to_bucket, to_name = (unquote(x) if x else "" for x in match.groups())
        if kind == "storageLayout":
            raise RefusedError(501, "is not emulated")
        if not bucket:
            if method == "POST":
                store.buckets.setdefault(json.loads(body)["name"], {})
                return _json({"kind": "storage#bucket", "name": json.loads(body)["name"]})
            return _json({"kind": "storage#buckets", "items": [{"name": b} for b in store.buckets]})
        if not kind:
            store.bucket(bucket)
            return _json({"kind": "storage#bucket", "name": bucket, "id": bucket, "storageClass": "STANDARD"})
        if not name:
            return _json(store.listed(bucket, query))
        if verb in ("rewriteTo", "copyTo"):
            data, meta = store.get(bucket, name, {})
            made = store.put(to_bucket, to_name, data, query, meta)
            whole = {"kind": "storage#rewriteResponse", "done": True, "totalBytesRewritten": made["size"],
                     "objectSize": made["size"], "resource": made}  # fmt: skip
            return _json(whole if verb == "rewriteTo" else made)
        if verb == "compose":
            asked = json.loads(body)
            parts = [store.get(bucket, part["name"], {})[0] for part in asked["sourceObjects"]]
            return _json(store.put(bucket, name, b"".join(parts), query, asked.get("destination", {})))
        if method == "DELETE":
            store.delete(bucket, name, query)
            return 204, b"", {}
        data, meta = store.get(bucket, name, query)
        if query.get("alt") != "media":
            return _json(meta)
        headers = {"Content-Type": meta["contentType"], "X-Goog-Generation": meta["generation"],
                   "X-Goog-Hash": f"crc32c={meta['crc32c']},md5={meta['md5Hash']}",
                   "X-Goog-Stored-Content-Length": meta["size"], "ETag": f'"{meta["generation"]}"'}  # fmt: skip
        asked_range = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked_range is None:
            return 200, data, headers
        begin, end = asked_range.groups()
        start = int(begin) if begin else max(0, len(data) - int(end))
        stop = min(len(data), int(end) + 1) if begin and end else len(data)
        if start >= len(data):
            raise RefusedError(416, "The requested range cannot be satisfied.")
        return 206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    def upload(self, method: str, bucket: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        store, how = self.store, query.get("uploadType")
        if "upload_id" in query:
            return self.resumed(query["upload_id"], body)
        if how == "media":
            return _json(store.put(bucket, query["name"], body, query, {}))
        if how == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert boundary is not None
            told, content = body.split(b"--" + boundary[1].encode())[1:3]
            meta = json.loads(_split(told)[1])
            meta.setdefault("contentType", "application/octet-stream")
            data = _split(content)[1].removesuffix(b"\n").removesuffix(b"\r")
            return _json(store.put(bucket, query.get("name") or meta["name"], data, query, meta))
        if how == "resumable":
            meta = json.loads(body or b"{}")
            store.bucket(bucket)
            number = str(next(store.numbers))
            store.uploads[number] = bucket, query, meta, b""
            place = f"{self.address}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return 200, b"", {"Location": place, "X-GUploader-UploadID": number}
        raise RefusedError(501, f"{method} uploadType={how} is not emulated")

    def resumed(self, number: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if number not in self.store.uploads:
            raise RefusedError(410, "No such upload")
        bucket, query, meta, data = self.store.uploads[number]
        told = self.headers.get("Content-Range", "")
        data += body
        self.store.uploads[number] = bucket, query, meta, data
        whole = told.rpartition("/")[2]
        if told and (whole == "*" or len(data) < int(whole)):
            return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
        del self.store.uploads[number]
        return _json(self.store.put(bucket, query.get("name") or meta["name"], data, query, meta))

    def batch(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Requests in one, each answered by itself."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        answers = []
        for part in BytesParser().parsebytes(head + body).get_payload():
            method, target, *_ = part.get_payload().lstrip().split()
            url = urlsplit(target)
            query = {k: v[-1] for k, v in parse_qs(url.query).items()}
            try:
                status, data, _headers = self.route(method, url.path, query, b"")
            except RefusedError as refused:
                status, data = (
                    refused.status,
                    json.dumps({"error": {"code": refused.status, "message": str(refused)}}).encode(),
                )
            number = part.get("Content-ID", "<0>").strip("<>")
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                f"HTTP/1.1 {status} x\r\nContent-Length: {len(data)}\r\n\r\n{data.decode()}\r\n"
            )
        return 200, ("".join(answers) + "--batch--\r\n").encode(), {"Content-Type": "multipart/mixed; boundary=batch"}


def _split(part: bytes) -> tuple[bytes, bytes]:
    """(headers, content) of a part, whichever way its lines end."""
    end = re.search(rb"\r?\n\r?\n", part)
    assert end is not None
    return part[: end.start()], part[end.end() :]


def _json(value: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8"}


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.store, Handler.address = Store(), f"http://127.0.0.1:{server.server_port}"
    print(Handler.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()

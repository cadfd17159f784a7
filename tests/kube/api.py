"""An API server that speaks HTTP as Kubernetes does, as far as the official client is used here.

It keeps objects, checks them against the schemas of a real version, lists them by labels and fields, streams watches
and logs, refuses what tests ask it to refuse, and breaks connections. Nothing in it knows torchfab.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kubernetes_validate

Object = dict[str, Any]
TOKEN = "a-token"
_PATH = re.compile(r"/(?:api|apis)/(?:[^/]+/)?v1(?:alpha2)?/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(/log)?")
_KINDS = {"pods": "Pod", "jobs": "Job", "jobsets": "JobSet", "services": "Service", "secrets": "Secret",
          "events": "Event", "persistentvolumeclaims": "PersistentVolumeClaim"}  # fmt: skip


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, for some times."""

    method: str
    path: str
    times: int
    status: int = 0  # 0: the connection breaks; -1: after the request was acted on
    message: str = ""
    after: int = 0  # so many bytes or events


@dataclass
class Log:
    """The log of a container: lines with their times, and whether more may come."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    open: bool = True


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class _Server(ThreadingHTTPServer):
    """Says nothing about clients that read only a part of an answer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report other errors, as the base class does."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class API:
    """The objects of a cluster, and the server that answers for them; a context manager."""

    def __init__(self, version: str = "1.31") -> None:
        self.version = version
        self.namespaces = {"default", "ml"}
        self.has_jobsets = False
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.logs: dict[str, Log] = {}
        self.changes: list[tuple[str, str, Object]] = []
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.on_create: Callable[[str, Object], None] = lambda plural, item: None
        self.on_delete: Callable[[str, Object, int], bool] = lambda plural, item, grace_s: True
        self.moved = threading.Condition(threading.RLock())
        self.numbers = itertools.count(1)
        self.closing = False
        self.server = _Server(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True

    def __enter__(self) -> API:
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.moved:
            self.closing = True
            self.moved.notify_all()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def kubeconfig(self, token: str = TOKEN) -> str:
        """Give the text of a kubeconfig with two contexts: `test`, the current one, and `ml`, with that namespace."""
        cluster = {"name": "c", "cluster": {"server": self.url}}
        user = {"name": "u", "user": {"token": token}}
        contexts = [
            {"name": "test", "context": {"cluster": "c", "user": "u"}},
            {"name": "ml", "context": {"cluster": "c", "user": "u", "namespace": "ml"}},
        ]
        return json.dumps(
            {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user],
             "contexts": contexts, "current-context": "test"}
        )  # fmt: skip

    # ---- objects

    def names(self) -> list[str]:
        """Return the existing objects, as `jobs/gpt2`."""
        with self.moved:
            return sorted(f"{plural}/{name}" for _, plural, name in self.objects if plural != "events")

    def get(self, plural: str, name: str, namespace: str = "default") -> Object:
        with self.moved:
            return self.objects[namespace, plural, name]

    def put(self, plural: str, item: Object, namespace: str = "default") -> Object:
        """Add an object, or a change to it, and tell the watchers."""
        meta = item["metadata"]
        meta.setdefault("namespace", namespace)
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", stamp(time.time()))
        with self.moved:
            key = (meta["namespace"], plural, meta["name"])
            kind = "MODIFIED" if key in self.objects else "ADDED"
            meta["resourceVersion"] = str(next(self.numbers))
            self.objects[key] = item
            self._tell(kind, plural, item)
        return item

    def remove(self, plural: str, name: str, namespace: str = "default") -> None:
        """Remove an object, and the objects that it owns."""
        with self.moved:
            item = self.objects.pop((namespace, plural, name), None)
            if item is None:
                return
            self._tell("DELETED", plural, item)
            if plural == "pods" and name in self.logs:
                self.close_log(name)
            owned = [
                (each[1], each[2], owned)
                for each, owned in self.objects.items()
                if any(
                    owner["uid"] == item["metadata"]["uid"] for owner in owned["metadata"].get("ownerReferences", ())
                )
            ]
        for kind, own, _ in owned:
            self.delete(kind, own, namespace, None)

    def delete(self, plural: str, name: str, namespace: str, grace_s: int | None) -> None:
        """Do as a DELETE request asks."""
        with self.moved:
            item = self.objects[namespace, plural, name]
            if plural == "pods":
                if grace_s is None:
                    grace_s = item["spec"].get("terminationGracePeriodSeconds", 30)
                item["metadata"].setdefault("deletionTimestamp", stamp(time.time() + grace_s))
                item["metadata"]["deletionGracePeriodSeconds"] = grace_s
                self.put(plural, item, namespace)
        if self.on_delete(plural, item, grace_s or 0):
            self.remove(plural, name, namespace)

    def _tell(self, kind: str, plural: str, item: Object) -> None:
        self.changes.append((kind, plural, json.loads(json.dumps(item))))
        self.moved.notify_all()

    def event(self, about: str, reason: str, message: str) -> None:
        """Add a warning about an object."""
        item = {
            "metadata": {"name": f"event-{next(self.numbers)}"},
            "involvedObject": {"name": about, "kind": "Pod"},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": stamp(time.time()),
        }
        self.put("events", item)

    def write(self, pod: str, text: str, when: float | None = None) -> None:
        """Add a line to a pod's log."""
        with self.moved:
            self.logs.setdefault(pod, Log()).lines.append((when or time.time(), text))
            self.moved.notify_all()

    def close_log(self, pod: str) -> None:
        """End a pod's log: its container has ended."""
        with self.moved:
            self.logs.setdefault(pod, Log()).open = False
            self.moved.notify_all()

    # ---- faults

    def fail(self, method: str, path: str, status: int = 0, message: str = "", times: int = 1, after: int = 0) -> None:
        """Refuse matching requests with a status, or break their connections (status 0; -1 after acting on them)."""
        self.faults.append(Fault(method, path, times, status, message, after))

    def fault(self, method: str, path: str) -> Fault | None:
        with self.moved:
            for each in self.faults:
                if each.times and each.method == method and re.search(each.path, path):
                    each.times -= 1
                    return each
        return None


def stamp(when: float, fraction: bool = False) -> str:
    """Write a time as Kubernetes does."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))
    return f"{whole}.{int(when % 1 * 1e9):09}Z" if fraction else f"{whole}Z"


def _handler(api: API) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.api = api
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: API

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.api.moved:
            self.api.requests.append(f"{self.command} {self.path}")
        fault = self.api.fault(self.command, self.path)
        try:
            if fault and fault.status > 0:
                raise Refused(fault.status, fault.message)
            if fault and fault.status == 0 and not fault.after:
                raise ConnectionAbortedError
            answer = self._answer(json.loads(body) if body else {}, fault)
            if fault and fault.status == -1:
                raise ConnectionAbortedError
            if answer is not None:
                self._send(200 if self.command != "POST" else 201, answer)
        except Refused as error:
            self._send(error.status, {"kind": "Status", "status": "Failure", "message": error.message,
                                      "code": error.status})  # fmt: skip
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve  # noqa: N815  # names that http.server asks for

    def _answer(self, body: Object, fault: Fault | None) -> Object | None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized")
        url = urlsplit(self.path)
        match = _PATH.fullmatch(url.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if not match or (match[2] == "jobsets" and not self.api.has_jobsets):
            raise Refused(404, "the server could not find the requested resource")
        namespace, plural, name, log = (unquote(each) if each else each for each in match.groups())
        if log:
            self._log(namespace, name, query, fault)
            return None
        if self.command == "POST":
            return self._create(namespace, plural, body)
        if name:
            return self._one(namespace, plural, name, body)
        if query.get("watch") in ("true", "True", "1"):
            self._watch(namespace, plural, query, fault)
            return None
        with self.api.moved:
            items = [item for item in self._all(namespace, plural) if _matches(item, query)]
            items = json.loads(json.dumps(items))
        return {"kind": f"{_KINDS[plural]}List", "apiVersion": "v1", "items": items,
                "metadata": {"resourceVersion": str(next(self.api.numbers))}}  # fmt: skip

    def _all(self, namespace: str, plural: str) -> list[Object]:
        return [item for key, item in self.api.objects.items() if key[:2] == (namespace, plural)]

    def _create(self, namespace: str, plural: str, item: Object) -> Object:
        name, kind = item["metadata"]["name"], _KINDS[plural]
        if namespace not in self.api.namespaces:
            raise Refused(404, f'namespaces "{namespace}" not found')
        if item["metadata"].get("namespace", namespace) != namespace:
            raise Refused(400, "the namespace of the object does not match the namespace of the request")
        if kind != "JobSet":
            try:
                kubernetes_validate.validate(item, self.api.version, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise Refused(422, f'{kind} "{name}" is invalid: {error.message}') from None
        with self.api.moved:
            if (namespace, plural, name) in self.api.objects:
                raise Refused(409, f'{plural} "{name}" already exists')
            if "stringData" in item:
                item = {**item, "data": item["stringData"]}
            self.api.put(plural, {**item, "status": {}}, namespace)
        self.api.on_create(plural, item)
        return item

    def _one(self, namespace: str, plural: str, name: str, body: Object) -> Object:
        with self.api.moved:
            item = self.api.objects.get((namespace, plural, name))
            if item is None:
                raise Refused(404, f'{plural} "{name}" not found')
            uid = body.get("preconditions", {}).get("uid")
            if self.command == "DELETE" and uid and uid != item["metadata"]["uid"]:
                raise Refused(409, "the UID in the precondition does not match")
        if self.command == "DELETE":
            self.api.delete(plural, name, namespace, body.get("gracePeriodSeconds"))
        return json.loads(json.dumps(item))  # type: ignore[no-any-return]

    # ---- streams

    def _watch(self, namespace: str, plural: str, query: dict[str, str], fault: Fault | None) -> None:
        with self.api.moved:
            position = 0 if "resourceVersion" not in query else len(self.api.changes)
        self._begin_stream("application/json")
        sent = 0
        while True:
            if fault and sent >= fault.after:
                if fault.status == 0:
                    raise ConnectionAbortedError
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                break
            with self.api.moved:
                if position >= len(self.api.changes):
                    self.api.moved.wait(0.2)
                news = self.api.changes[position:]
                position += len(news)
            for kind, each, item in news:
                if each == plural and item["metadata"]["namespace"] == namespace and _matches(item, query):
                    self._chunk(json.dumps({"type": kind, "object": item}).encode() + b"\n")
                    sent += 1
            if self.api.closing:
                break
        self._chunk(b"")

    def _log(self, namespace: str, pod: str, query: dict[str, str], fault: Fault | None) -> None:
        with self.api.moved:
            if (namespace, "pods", pod) not in self.api.objects:
                raise Refused(404, f'pods "{pod}" not found')
            if pod not in self.api.logs:
                raise Refused(400, f'container "trainer" in pod "{pod}" is waiting to start: ContainerCreating')
        self._begin_stream("text/plain")
        left = int(query.get("limitBytes", 1 << 60))
        for sent, (when, text) in enumerate(self._lines(pod, query)):
            if fault and sent >= fault.after:
                raise ConnectionAbortedError
            mark = f"{stamp(when, fraction=True)} " if query.get("timestamps") == "true" else ""
            line = f"{mark}{text}\n".encode(errors="surrogateescape")[:left]
            self._chunk(line)
            left -= len(line)
            if not left:
                break
        self._chunk(b"")

    def _lines(self, pod: str, query: dict[str, str]) -> Iterator[tuple[float, str]]:
        api = self.api
        with api.moved:
            log = api.logs[pod]
            since = _since(query) or time.time() - float(query.get("sinceSeconds", "1e9"))
            start = max(len(log.lines) - int(query.get("tailLines", len(log.lines))), 0)
            past = [line for line in log.lines[start:] if line[0] >= since]
            position = len(log.lines)
        yield from past
        while query.get("follow") == "true":
            with api.moved:
                if position >= len(log.lines):
                    if not log.open or api.closing:
                        return
                    api.moved.wait(0.2)
                news = log.lines[position:]
                position += len(news)
            yield from news

    def _begin_stream(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, status: int, answer: Object) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _since(query: dict[str, str]) -> float:
    given = query.get("sinceTime")
    return datetime.fromisoformat(given).timestamp() if given else 0.0


def _matches(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    wanted = [each.split("=", 1) for each in query.get("labelSelector", "").split(",") if each]
    fields = dict(each.split("=", 1) for each in query.get("fieldSelector", "").split(",") if each)
    name = fields.get("involvedObject.name", item.get("involvedObject", {}).get("name"))
    return (
        all(labels.get(key) == value for key, value in wanted)
        and item.get("involvedObject", {}).get("name") == name
        and item.get("type") == fields.get("type", item.get("type"))
    )

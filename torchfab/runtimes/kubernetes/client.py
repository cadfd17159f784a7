"""A connection to a cluster by the official client: objects as plain JSON, errors in words.

The only module that imports the client, which takes half a second.
"""

# mypy: allow-untyped-calls
# (The client has types, but not for all.)
from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kubernetes import client, config, watch
from urllib3.exceptions import HTTPError, ReadTimeoutError

from torchfab.core.errors import TorchfabError, UsageError
from torchfab.runtimes.kubernetes.redaction import Hide, hidden
from torchfab.transport.schema import cleaned

PLURALS = {"Service": "services", "Secret": "secrets", "Job": "jobs", "JobSet": "jobsets", "Pod": "pods"}
VERSIONS = {"Job": "batch/v1", "JobSet": "jobset.x-k8s.io/v1alpha2"}  # all others: v1
_QUIET_S = 60.0  # a log stream that is silent for so long is opened again: its connection may be dead
_WATCH_S = 300


class ClusterError(TorchfabError):
    """The cluster cannot be reached, or refuses.

    Parameters
    ----------
    status : int
        HTTP's; 0 when there was no answer.
    """

    def __init__(self, message: str, fix: str = "", status: int = 0) -> None:
        super().__init__(message, fix)
        self.status = status


@dataclass(frozen=True)
class ClusterScope:
    """Which cluster, and where in it: by the names of the kubeconfig.

    Parameters
    ----------
    kubeconfig : str
        Path of the file, or several with `:` between them; empty inside a pod of the cluster.
    context, namespace : str
        Both known: what was left open is that of the kubeconfig.
    """

    kubeconfig: str
    context: str
    namespace: str


# ---- the connection


def detect_scope(context: str, namespace: str) -> ClusterScope:
    """Return the cluster that a launch means, with what the flags leave open taken from the kubeconfig.

    Raises
    ------
    UsageError
        There is no kubeconfig, or no such context in it.
    """
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not any(os.path.exists(each) for each in path.split(os.pathsep)):
        if "KUBERNETES_SERVICE_HOST" in os.environ and not context:
            return ClusterScope("", "", namespace or _own_namespace())
        raise UsageError(f"no Kubernetes cluster is set up: there is no {path}", "set KUBECONFIG to its kubeconfig")
    try:
        known, current = _contexts(path)
    except Exception as error:  # a text that is no YAML, or no kubeconfig, breaks the client in many ways
        raise UsageError(f"{path} is no kubeconfig: {_one_line(error)}", "kubectl config view") from None
    name, words = context or current, ", ".join(sorted(known)) or "none"
    if not name:
        raise UsageError(f"{path} has no current context", f"choose one with --context; its contexts: {words}")
    if name not in known:
        raise UsageError(f"{path} has no context {name!r}", f"its contexts: {words}")
    return ClusterScope(_absolute(path), name, namespace or known[name].get("namespace") or "default")


def _contexts(path: str) -> tuple[dict[str, Any], str]:
    """Return the contexts by name, and which is the current one; empty where none is, which is no fault of a file."""
    merged = config.kube_config.KubeConfigMerger(path).config
    contexts = [each.value for each in merged["contexts"]]
    return {each["name"]: each.get("context") or {} for each in contexts}, merged.safe_get("current-context") or ""


def _own_namespace() -> str:
    try:
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
    except OSError:
        return "default"


def _absolute(path: str) -> str:
    return os.pathsep.join(os.path.abspath(each) for each in path.split(os.pathsep))


class Cluster:
    """One namespace of a cluster.

    Parameters
    ----------
    place : Place
        Which.
    timeout_s : float
        How long to wait for a connection, and for an answer.
    """

    def __init__(self, place: ClusterScope, timeout_s: float = 30.0) -> None:
        self.place = place
        self.timeout_s = timeout_s
        self.hide: Hide | None = None  # known once the pods of a job were seen
        settings = client.Configuration()
        settings.retries = False  # what is to be tried again is known better where it was asked
        settings.connection_pool_maxsize = 128
        try:
            self._load(settings)
        except Exception as error:  # whatever a wrong kubeconfig, or a plugin that logs in, brings about
            words = f"context {place.context!r} of {place.kubeconfig} cannot be used: {_one_line(error)}"
            raise UsageError(words, "kubectl config view") from None
        self.server: str = self._api.configuration.host

    def _load(self, settings: Any) -> None:
        if not self.place.kubeconfig:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(self.place.kubeconfig, self.place.context, client_configuration=settings)
        self._api = client.ApiClient(configuration=settings)

    # ---- objects

    def create(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; raise ClusterError with status 409 if one of its name is there."""
        return self._json("POST", self._path(item["kind"]), body=dict(item))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object; None when there is none of that name."""
        try:
            return self._json("GET", self._path(kind, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        """Return the objects that have the labels and the fields."""
        query = [("labelSelector", labels), ("fieldSelector", fields)]
        answer = self._json("GET", self._path(kind), query=[each for each in query if each[1]])
        return list(answer.get("items") or ())

    def delete(self, kind: str, name: str, grace_s: int | None = None, uid: str = "") -> None:
        """Ask for an object's end, and that of all that it made; one that is not there is no error.

        Parameters
        ----------
        grace_s : int, optional
            Seconds that a pod gets to end by itself; None: what it says itself.
        uid : str
            Only the object with this id, not another of its name.
        """
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self._json("DELETE", self._path(kind, name), body=body)
        except ClusterError as error:
            if error.status != 404:
                raise

    def _path(self, kind: str, name: str = "") -> str:
        version = VERSIONS.get(kind, "v1")
        plural = PLURALS.get(kind, kind.lower() + "s")
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        path = f"{root}/namespaces/{quote(self.place.namespace)}/{plural}"
        return f"{path}/{quote(name)}" if name else path

    def _json(self, method: str, path: str, query: Any = (), body: Any = None) -> dict[str, Any]:
        response = self._call(method, path, query, body, (self.timeout_s, self.timeout_s))
        try:
            answer = cleaned(json.loads(response.read() or b"{}"))
            if not isinstance(answer, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            raise ClusterError(f"{self.server} does not answer as a Kubernetes cluster does") from None
        except HTTPError as error:
            raise self._unreachable(error) from None
        return answer

    def _call(self, method: str, path: str, query: Any, body: Any, timeout_s: Any) -> Any:
        headers = {"Accept": "application/json", **({"Content-Type": "application/json"} if body else {})}
        try:
            words = self._api.param_serialize(
                method, path, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            answered = self._api.call_api(*words, _request_timeout=timeout_s)
        except client.ApiException as error:  # TLS
            raise self._unreachable(error) from None
        except HTTPError as error:
            raise self._unreachable(error) from None
        response = answered.response
        if not 200 <= response.status < 300:
            raise self._refused(response.status, self._read(response), path)
        return response

    def _read(self, response: Any) -> bytes:
        try:
            return bytes(response.read())
        except HTTPError:
            return b""

    # ---- streams

    def log(self, pod: str, follow: bool, **query: Any) -> Iterator[bytes]:
        """Yield the log of a pod's container in blocks, each line beginning with its time, as RFC 3339 writes it.

        The secrets of the job whose pods were seen last are hidden in it.
        When nothing comes for a minute while following, it ends.
        """
        words = {"timestamps": "true", "follow": str(follow).lower(), **query}
        path = self._path("Pod", pod) + "/log"
        quiet_s = _QUIET_S if follow else self.timeout_s
        response = self._call("GET", path, list(words.items()), None, (self.timeout_s, quiet_s))
        try:
            yield from hidden(response.stream(65536), self.hide)
        except ReadTimeoutError:
            if not follow:
                raise self._unreachable(TimeoutError("no answer")) from None
        except HTTPError as error:
            raise self._unreachable(error) from None
        finally:
            response.close()

    def changes(self, labels: str) -> Iterator[None]:
        """Yield whenever a pod with the labels changes, for some minutes; raise ClusterError 410 if it expires."""
        call = client.CoreV1Api(self._api).list_namespaced_pod
        timeout = (self.timeout_s, _WATCH_S + 30.0)
        stream = watch.Watch().stream(
            *(call, self.place.namespace),
            label_selector=labels, timeout_seconds=_WATCH_S, _request_timeout=timeout,
        )  # fmt: skip
        try:
            for _ in stream:
                yield None
        except client.ApiException as error:
            raise ClusterError(_one_line(error.reason or error), status=error.status or 0) from None
        except (HTTPError, ValueError, KeyError) as error:
            raise self._unreachable(error) from None

    # ---- errors in words

    def _unreachable(self, error: Exception) -> ClusterError:
        words = f"cannot reach the cluster at {self.server}: {_cause(error)}"
        return ClusterError(words, f"see whether the context {self.place.context!r} is the right one, and the network")

    def _refused(self, status: int, body: bytes, path: str) -> ClusterError:
        try:
            message = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            message = body.decode(errors="replace").strip()[:200]
        words, fix = _words_of(status, message, path, self.place)
        return ClusterError(words, fix, status)


def _words_of(status: int, message: str, path: str, place: ClusterScope) -> tuple[str, str]:
    if status == 401:
        return f"the cluster does not accept your credentials: {message}", f"log in again for context {place.context!r}"
    if status == 403:
        return f"the cluster refuses: {message}", "ask for that right, or choose another --namespace or --context"
    if status == 404 and message.startswith("namespaces "):
        return f"there is no namespace {place.namespace!r}", "choose another --namespace, or another --context"
    if status == 404 and "jobset" in path:
        return "this cluster has no JobSets", "leave --jobset out, or have the JobSet controller installed"
    if status in (429, 500, 502, 503, 504):
        return f"the cluster is busy or in trouble ({status}): {message}", "try again later"
    return f"the cluster refuses ({status}): {message}", ""


def _cause(error: Exception) -> str:
    text = _one_line(error)
    return text.rsplit("Failed to establish a new connection: ", 1)[-1].rstrip(")'\"") or type(error).__name__


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]

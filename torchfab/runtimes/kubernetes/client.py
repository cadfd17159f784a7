"""Client of one Kubernetes cluster, on top of the official one: objects as plain JSON, errors as readable messages.

Only this module imports the official client: the import takes half a second.
"""

# mypy: allow-untyped-calls
# (The client is typed only in part.)
from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torchfab.core import extras
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.runtimes.kubernetes.redaction import Redact, redact_blocks
from torchfab.transport.messages import cleaned

try:
    from kubernetes import client, config, watch
    from urllib3.exceptions import HTTPError, ReadTimeoutError
except ModuleNotFoundError:
    raise extras.missing("kubernetes", "kubernetes", "a job on Kubernetes") from None

PLURALS = {"Service": "services", "Secret": "secrets", "Job": "jobs", "JobSet": "jobsets", "Pod": "pods"}
VERSIONS = {"Job": "batch/v1", "JobSet": "jobset.x-k8s.io/v1alpha2"}  # all others: v1
_QUIET_S = 60.0  # reopen a log stream that is silent for this long: its connection may be dead
_WATCH_S = 300
_log = logging.getLogger(__name__)


class ClusterError(TorchfabError):
    """The cluster cannot be reached, or rejected a request.

    Parameters
    ----------
    message : str
        The problem.
    fix : str
        How to solve it.
    status : int
        HTTP status; 0 if there was no answer.
    """

    def __init__(self, message: str, fix: str = "", status: int = 0) -> None:
        super().__init__(message, fix)
        self.status = status


@dataclass(frozen=True)
class ClusterScope:
    """A namespace of a cluster, by the names in the kubeconfig.

    Parameters
    ----------
    kubeconfig : str
        Path of the file, or several separated by `:`; empty inside a pod of the cluster.
    context, namespace : str
        Resolved names: defaults are taken from the kubeconfig.
    """

    kubeconfig: str
    context: str
    namespace: str


# ---- the connection


def detect_scope(context: str, namespace: str) -> ClusterScope:
    """Resolve the cluster and namespace of a launch from its flags and the kubeconfig.

    Parameters
    ----------
    context : str
        Context in the kubeconfig; empty: the current one.
    namespace : str
        Namespace; empty: the context's, else `default`.

    Returns
    -------
    ClusterScope
        The resolved names.

    Raises
    ------
    UsageError
        There is no kubeconfig, or it has no such context.
    """
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not any(os.path.exists(each) for each in path.split(os.pathsep)):
        if "KUBERNETES_SERVICE_HOST" in os.environ and not context:
            return ClusterScope("", "", namespace or _own_namespace())
        raise UsageError(f"no Kubernetes cluster is set up: there is no {path}", "set KUBECONFIG to its kubeconfig")
    try:
        known, current = _contexts(path)
    except Exception as error:  # the client raises many exception types for a file that is not a kubeconfig
        raise UsageError(f"{path} is not a kubeconfig: {_one_line(error)}", "kubectl config view") from None
    name, names = context or current, ", ".join(sorted(known)) or "none"
    if not name:
        raise UsageError(f"{path} has no current context", f"choose one with --context; its contexts: {names}")
    if name not in known:
        raise UsageError(f"{path} has no context {name!r}", f"its contexts: {names}")
    return ClusterScope(_absolute(path), name, namespace or known[name].get("namespace") or "default")


def _contexts(path: str) -> tuple[dict[str, Any], str]:
    """Return the contexts by name, and the name of the current one; empty if none is set, which is valid."""
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
    """Client of one namespace of a cluster.

    Parameters
    ----------
    scope : ClusterScope
        The cluster and the namespace.
    timeout_s : float
        Seconds to wait for a connection, and for an answer.

    Raises
    ------
    UsageError
        The kubeconfig or its login plugin does not work.
    """

    def __init__(self, scope: ClusterScope, timeout_s: float = 30.0) -> None:
        self.scope = scope
        self.timeout_s = timeout_s
        self.redact: Redact | None = None  # set after the pods of a job were listed
        settings = client.Configuration()
        settings.retries = False  # callers decide which requests to retry
        settings.connection_pool_maxsize = 128
        try:
            self._load(settings)
        except Exception as error:  # any error of a malformed kubeconfig or of a login plugin
            problem = f"context {scope.context!r} of {scope.kubeconfig} cannot be used: {_one_line(error)}"
            raise UsageError(problem, "kubectl config view") from None
        self.server: str = self._api.configuration.host

    def _load(self, settings: Any) -> None:
        if not self.scope.kubeconfig:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(self.scope.kubeconfig, self.scope.context, client_configuration=settings)
        self._api = client.ApiClient(configuration=settings)

    # ---- objects

    def create(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object.

        Parameters
        ----------
        item : Mapping
            The object as JSON.

        Returns
        -------
        dict
            The object as the cluster created it.

        Raises
        ------
        ClusterError
            The cluster rejected it; status 409 if an object of its name exists.
        """
        return self._json("POST", self._path(item["kind"]), body=dict(item))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object.

        Parameters
        ----------
        kind, name : str
            Kind and name of the object.

        Returns
        -------
        dict, optional
            The object as JSON; None if it does not exist.

        Raises
        ------
        ClusterError
            The cluster cannot be reached, or rejected the request.
        """
        try:
            return self._json("GET", self._path(kind, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind that match both selectors.

        Parameters
        ----------
        kind : str
            Kind of the objects.
        labels, fields : str
            Label selector and field selector; empty: no restriction.

        Returns
        -------
        list of dict
            The objects as JSON.
        """
        query = [("labelSelector", labels), ("fieldSelector", fields)]
        answer = self._json("GET", self._path(kind), query=[each for each in query if each[1]])
        return list(answer.get("items") or ())

    def delete(self, kind: str, name: str, grace_s: int | None = None, uid: str = "") -> None:
        """Request the deletion of an object and of the objects that it owns. A missing object is not an error.

        Parameters
        ----------
        kind, name : str
            Kind and name of the object.
        grace_s : int, optional
            Termination grace period of a pod. Default: the one in its spec.
        uid : str
            Delete only the object with this UID, not another one of the same name.

        Raises
        ------
        ClusterError
            The cluster cannot be reached, or rejected the request.
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
        path = f"{root}/namespaces/{quote(self.scope.namespace)}/{plural}"
        return f"{path}/{quote(name)}" if name else path

    def _json(self, method: str, path: str, query: Any = (), body: Any = None) -> dict[str, Any]:
        response = self._call(method, path, query, body, (self.timeout_s, self.timeout_s))
        try:
            data = response.read()
            _log.debug("answer: %d bytes", len(data), extra={"host": self.scope.context})
            answer = cleaned(json.loads(data or b"{}"))
            if not isinstance(answer, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            raise ClusterError(f"{self.server} does not answer as a Kubernetes cluster does") from None
        except HTTPError as error:
            raise self._unreachable(error) from None
        return answer

    def _call(self, method: str, path: str, query: Any, body: Any, timeout_s: Any) -> Any:
        headers = {"Accept": "application/json", **({"Content-Type": "application/json"} if body else {})}
        started, extra = time.monotonic(), {"host": self.scope.context}
        _log.debug("request to %s: %s %s", self.server, method, path, extra=extra)
        try:
            arguments = self._api.param_serialize(
                method, path, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            answered = self._api.call_api(*arguments, _request_timeout=timeout_s)
        except client.ApiException as error:  # TLS
            raise self._unreachable(error) from None
        except HTTPError as error:
            raise self._unreachable(error) from None
        response = answered.response
        _log.debug("answer: status %d after %.3f s", response.status, time.monotonic() - started, extra=extra)
        if not 200 <= response.status < 300:
            raise self._rejection(response.status, self._read_body(response), path)
        return response

    def _read_body(self, response: Any) -> bytes:
        try:
            return bytes(response.read())
        except HTTPError:
            return b""

    # ---- streams

    def log(self, pod: str, follow: bool, **query: Any) -> Iterator[bytes]:
        """Yield the log of a pod's container in blocks. Each line starts with its time in RFC 3339 format.

        The secrets of the job whose pods were listed last are redacted.

        Parameters
        ----------
        pod : str
            Name of the pod.
        follow : bool
            Wait for new lines. The stream ends after 60 seconds without one.
        **query
            Further query parameters of the API, such as `tailLines`.

        Returns
        -------
        iterator of bytes
            The log, cut anywhere.

        Raises
        ------
        ClusterError
            The cluster cannot be reached, or has no such log (status 404).
        """
        parameters = {"timestamps": "true", "follow": str(follow).lower(), **query}
        path = self._path("Pod", pod) + "/log"
        quiet_s = _QUIET_S if follow else self.timeout_s
        response = self._call("GET", path, list(parameters.items()), None, (self.timeout_s, quiet_s))
        try:
            yield from redact_blocks(response.stream(65536), self.redact)
        except ReadTimeoutError:
            if not follow:
                raise self._unreachable(TimeoutError("no answer")) from None
        except HTTPError as error:
            raise self._unreachable(error) from None
        finally:
            response.close()

    def changes(self, labels: str) -> Iterator[None]:
        """Yield None whenever a pod that matches the selector changes, for at most 300 seconds.

        Parameters
        ----------
        labels : str
            Label selector.

        Returns
        -------
        iterator of None
            One item per change.

        Raises
        ------
        ClusterError
            The watch broke, or expired (status 410).
        """
        call = client.CoreV1Api(self._api).list_namespaced_pod
        timeout = (self.timeout_s, _WATCH_S + 30.0)
        stream = watch.Watch().stream(
            *(call, self.scope.namespace),
            label_selector=labels, timeout_seconds=_WATCH_S, _request_timeout=timeout,
        )  # fmt: skip
        try:
            for _ in stream:
                yield None
        except client.ApiException as error:
            raise ClusterError(_one_line(error.reason or error), status=error.status or 0) from None
        except (HTTPError, ValueError, KeyError) as error:
            raise self._unreachable(error) from None

    # ---- error messages

    def _unreachable(self, error: Exception) -> ClusterError:
        problem = f"cannot reach the cluster at {self.server}: {_cause(error)}"
        return ClusterError(
            problem, f"check that the context {self.scope.context!r} is the right one, and that the network is up"
        )

    def _rejection(self, status: int, body: bytes, path: str) -> ClusterError:
        try:
            message = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            message = body.decode(errors="replace").strip()[:200]
        problem, fix = _describe_rejection(status, message, path, self.scope)
        return ClusterError(problem, fix, status)


def _describe_rejection(status: int, message: str, path: str, scope: ClusterScope) -> tuple[str, str]:
    if status == 401:
        return f"the cluster does not accept your credentials: {message}", f"log in again for context {scope.context!r}"
    if status == 403:
        return f"the cluster refuses: {message}", "ask for that permission, or choose another --namespace or --context"
    if status == 404 and message.startswith("namespaces "):
        return f"there is no namespace {scope.namespace!r}", "choose another --namespace, or another --context"
    if status == 404 and "jobset" in path:
        return "this cluster has no JobSets", "omit --jobset, or have the JobSet controller installed"
    if status in (429, 500, 502, 503, 504):
        return f"the cluster is overloaded or faulty ({status}): {message}", "try again later"
    return f"the cluster refuses ({status}): {message}", ""


def _cause(error: Exception) -> str:
    text = _one_line(error)
    return text.rsplit("Failed to establish a new connection: ", 1)[-1].rstrip(")'\"") or type(error).__name__


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]

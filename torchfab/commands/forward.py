"""`fab forward`: forward a port of this machine to a port of a node, until Ctrl-C."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence

from torchfab import runtimes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import HostError, HostsFailedError, TorchfabError, UsageError
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.launching import job_lookup
from torchfab.launching.context import CommandContext
from torchfab.launching.hosts import read_nodes
from torchfab.records import launch_request
from torchfab.transport.messages.forward import Listener, ListenersRequest
from torchfab.transport.session_pool import request_all

TENSORBOARD = "tensorboard"
_SPEC = re.compile(rf"(?:(\d{{1,5}}):)?(\d{{1,5}}|{TENSORBOARD})")


@dataclass(frozen=True)
class Spec:
    """What to forward.

    Parameters
    ----------
    local_port : int
        The port on this machine; 0: the same number as on the node.
    port : int
        The port on the node; 0: the port on which TensorBoard listens.
    """

    local_port: int
    port: int


@dataclass(frozen=True)
class Target:
    """The destination of a forwarded port.

    Parameters
    ----------
    node : Node
        The node.
    address, port : str, int
        The address and port, as the node itself connects to them.
    """

    node: Node
    address: str
    port: int


@dataclass(frozen=True)
class Hosts:
    """The candidate nodes.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    settings : ConnectionSettings
        How to reach them.
    workdir : str
        The working directory of the job on the nodes.
    """

    nodes: Sequence[Node]
    settings: ConnectionSettings
    workdir: str


def run(words: Sequence[str], host: str, ctx: CommandContext) -> int:
    """Forward a port until Ctrl-C.

    Parameters
    ----------
    words : sequence of str
        The name of a job (optional), then `tensorboard`, a port, or `LOCAL:PORT`.
    host : str
        The node's host, label or rank; empty: the first node, or the node on which TensorBoard runs.
    ctx : CommandContext
        Records and settings.

    Returns
    -------
    int
        Exit code: 0.

    Raises
    ------
    UsageError
        A word is invalid, or the local port is in use.
    TorchfabError
        The node is unreachable or refuses forwarding, or no TensorBoard runs.
    """
    target, local_port, settings = target_of(words, host, ctx)
    if target.node.is_local and local_port == target.port:
        raise UsageError(f"port {target.port} is already on this machine: http://127.0.0.1:{target.port}")
    return _forward(target, local_port, settings)


def target_of(words: Sequence[str], host: str, ctx: CommandContext) -> tuple[Target, int, ConnectionSettings]:
    """Return what to forward, and the port of this machine.

    Parameters
    ----------
    words, host, ctx
        As in `run`.

    Returns
    -------
    Target, int, ConnectionSettings

    Raises
    ------
    UsageError, TorchfabError
        As in `run`.
    """
    job, spec = split_words(words)
    hosts = find_hosts(job, host, ctx)
    target = _tensorboard(hosts) if not spec.port else Target(hosts.nodes[0], "localhost", spec.port)
    return target, spec.local_port or target.port, hosts.settings


def _forward(target: Target, local_port: int, settings: ConnectionSettings) -> int:
    from torchfab.transport.ssh import forward

    with forward.listen(local_port, target.port) as listener:
        try:
            tunnel = forward.Tunnel(target.node, settings, target.address, target.port)
            try:
                _check(tunnel.connect, target)
                write_out(f"http://{forward.LOOPBACK}:{local_port}")
                write_err(f"forwarding to port {target.port} of {target.node.label}; press Ctrl-C to end")
                forward.serve(listener, tunnel, lambda error: write_err(f"{target.node.label}: {error.message}"))
            finally:
                tunnel.close()
        except KeyboardInterrupt:  # the normal way to end it
            return 0
        except HostError as error:
            raise HostsFailedError("forwarding failed", {target.node.label: error}) from None
    return 0


def _check(connect: Callable[[], object], target: Target) -> None:
    """Try a connection; print a note if nothing listens yet."""
    from torchfab.transport.ssh.forward import NothingListensError

    try:
        connect().close()  # type: ignore[attr-defined]
    except NothingListensError as error:
        write_err(f"note: {error.message.replace('there', f'of {target.node.label} yet')}")


def split_words(words: Sequence[str]) -> tuple[str, Spec]:
    """Return the job and what to forward.

    Parameters
    ----------
    words : sequence of str
        The words of the command line.

    Returns
    -------
    tuple of str and Spec
        The job is empty if the words name none.

    Raises
    ------
    UsageError
        A word is invalid.
    """
    form = "a job's name (optional), then tensorboard, PORT or LOCAL:PORT: fab forward gpt2 16006:6006"
    if not 1 <= len(words) <= 2:
        raise UsageError(f"fab forward takes {form}")
    match = _SPEC.fullmatch(words[-1])
    ports = [int(text) for text in match.groups() if text and text != TENSORBOARD] if match else [0]
    if match is None or not all(1 <= port <= 65535 for port in ports):
        raise UsageError(f"fab forward takes {form}; got {words[-1]!r}")
    port = 0 if match[2] == TENSORBOARD else int(match[2])
    return words[0] if len(words) == 2 else "", Spec(int(match[1] or 0), port)


def find_hosts(job: str, host: str, ctx: CommandContext) -> Hosts:
    """Return the nodes of a job, or of `-H`, or the one that `--host` names.

    Parameters
    ----------
    job, host, ctx
        As in `run`.

    Returns
    -------
    Hosts
        With at least one node.

    Raises
    ------
    UsageError
        There is no such job or node.
    """
    if ctx.hosts and not job:
        return Hosts(_named(read_nodes("", ctx), host), ctx.settings, ctx.cwd)
    record = job_lookup.find(job, ctx)
    nodes = read_nodes("", ctx) if ctx.hosts else [node for node, _ in runtimes.load(record.runtime).machines(record)]
    workdir = launch_request.workdir_of(record.folder, record.defaults) or ctx.cwd
    return Hosts(_named(nodes, host), record.settings, workdir)


def _named(nodes: Sequence[Node], name: str) -> Sequence[Node]:
    chosen = [node for node in nodes if name in ("", node.host, node.label, str(node.rank))]
    if not chosen:
        raise UsageError(
            f"no host {name!r} among the hosts of this command", f"its hosts: {fold([node.label for node in nodes])}"
        )
    return chosen


# ---- tensorboard


def _tensorboard(hosts: Hosts) -> Target:
    """Return the node and port on which a TensorBoard of this user listens."""
    found: list[tuple[Node, Listener]] = []
    failed: dict[str, TorchfabError] = {}
    request = ListenersRequest(program=TENSORBOARD)
    for node, answer in request_all(hosts.nodes, hosts.settings, lambda _: request, hosts.settings.answer_timeout_s):
        if isinstance(answer, TorchfabError):
            failed[node.label] = answer
        else:
            found += [(node, listener) for listener in answer.value.listeners]
    if len(found) == 1:
        node, listener = found[0]
        return Target(node, listener.address, listener.port)
    if failed and not found:
        raise HostsFailedError("no TensorBoard was found on the hosts that answered; the others failed", failed)
    raise none_found(hosts) if not found else several_found(found)


def none_found(hosts: Hosts) -> UsageError:
    """Return the error for hosts without TensorBoard, with the command that starts one.

    Parameters
    ----------
    hosts : Hosts
        The nodes that were searched.

    Returns
    -------
    UsageError
    """
    node = hosts.nodes[0]
    serve = "nohup tensorboard --logdir runs --port 6006 >/dev/null 2>&1 &"
    line = shlex.join(
        ["fab", "-H", node.label, "run", "--workdir", node.workdir or hosts.workdir, "--", "bash", "-c", serve]
    )
    asked = fold([each.label for each in hosts.nodes])
    return UsageError(f"no TensorBoard of this user listens on {asked}", f"start one: {line}")


def several_found(found: Sequence[tuple[Node, Listener]]) -> UsageError:
    """Return the error for more than one TensorBoard.

    Parameters
    ----------
    found : sequence of tuple of Node and Listener
        The nodes and their listening ports.

    Returns
    -------
    UsageError
    """
    listed = "; ".join(f"{node.label} port {listener.port}: {listener.command[:80]}" for node, listener in found[:9])
    node, listener = found[0]
    return UsageError(
        f"TensorBoard listens on several ports: {listed}", f"fab forward {listener.port} --host {node.label}"
    )

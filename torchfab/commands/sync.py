"""`fab sync`: copy the working directory to all nodes at once, and verify that all of them have the same files."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torchfab import documents
from torchfab.cli.flags import SyncFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import progress, write_err, write_out
from torchfab.core.errors import HostsFailedError, TorchfabError, UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.launching.context import CommandContext
from torchfab.launching.hosts import read_nodes
from torchfab.remote.host import workdir_files
from torchfab.runtimes.tmux import ssh_argv
from torchfab.sync import gitignore, marker, rsync
from torchfab.sync.processes import RsyncProcesses
from torchfab.sync.results import SyncResult, as_json, summary_lines
from torchfab.transport.messages.sync import FilesRequest, WorkdirRequest
from torchfab.transport.session import Session
from torchfab.transport.session_pool import SessionPool

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncRequest:
    """What to copy, and where.

    Parameters
    ----------
    source, workdir : str
        The directory on this machine, and the one on every node; absolute paths.
    delete : bool
        Remove files on the nodes that do not exist here.
    rules : tuple of str
        rsync filters that include files which git tracks but rsync, with .gitignore as its filter, excludes.
    """

    source: str
    workdir: str
    delete: bool
    rules: tuple[str, ...] = ()


# ---- the command


def run(flags: SyncFlags, ctx: CommandContext) -> int:
    """Copy the working directory to all nodes, verify the copies, and print the results.

    Parameters
    ----------
    flags : SyncFlags
        The flags of `fab sync`.
    ctx : CommandContext
        Working directory and settings.

    Returns
    -------
    int
        Exit code: 0 if all nodes have the same files, else 1.

    Raises
    ------
    UsageError
        A flag is invalid, or rsync is not installed here.
    HostsFailedError
        One reason per failed node. The copies to the other nodes are complete.
    """
    request = SyncRequest(ctx.cwd, flags.workdir or ctx.cwd, flags.delete)
    if not request.workdir.startswith("/"):
        raise UsageError(f"--workdir must be an absolute path, got {request.workdir!r}")
    nodes = read_nodes(flags.hostfile, ctx)
    check_rsync()
    request = replace(request, rules=_rules(request.source, ctx))
    if flags.dry_run:
        for node in nodes:
            write_out(shlex.join(_argv(request, node, ctx.settings)))
        return 0
    return _sync(request, nodes, flags.json, ctx)


def check_rsync() -> None:
    """Check that rsync is installed on this machine.

    Raises
    ------
    UsageError
        rsync is not installed.
    """
    if shutil.which("rsync") is None:
        raise UsageError("rsync is not installed on this machine", "install it: sudo apt-get install -y rsync")


def _sync(request: SyncRequest, nodes: Sequence[Node], print_json: bool, ctx: CommandContext) -> int:
    started = time.monotonic()
    digests = _local_digests(request, ctx.settings.sync_timeout_s)
    with _marker_file(request.source, ctx.token) as token:
        results, failed = _copy_to_all(request, nodes, token, digests, ctx.settings)
    if print_json:
        write_out(documents.encode(as_json(results, failed, len(digests))))
    else:
        for line in summary_lines(results, len(digests), time.monotonic() - started):
            write_out(line)
    if failed:
        raise HostsFailedError(f"{len(failed)} of {len(nodes)} hosts failed; the others were copied to", failed)
    return 1 if any(result.differs for result in results) else 0


def _rules(source: str, ctx: CommandContext) -> tuple[str, ...]:
    """Return the filters that exclude the records of jobs, and the exceptions of .gitignore."""
    timeout_s = ctx.settings.sync_timeout_s
    records = gitignore.exclude_rule(source, os.path.abspath(ctx.records.root))
    tracked = gitignore.list_git_files(source, timeout_s)
    included = gitignore.include_rules(tracked, _list_files(source, records, timeout_s)) if tracked else ()
    return (*records, *included)


def _list_files(source: str, rules: Sequence[str], timeout_s: float) -> list[str]:
    """Return the files that rsync would copy, relative to the directory."""
    try:
        argv = rsync.list_argv(source, rules)
        done = subprocess.run(argv, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        fix = "check whether its disk responds; for more time, raise the setting sync_timeout_s (fab config)"
        raise TorchfabError(f"{source} could not be listed within {timeout_s:g} s", fix) from None
    if done.returncode:
        last_line = "".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])
        raise TorchfabError(f"rsync cannot read {source}: {last_line or done.returncode}", "check its permissions")
    return rsync.parse_list(done.stdout)


def _local_digests(request: SyncRequest, timeout_s: float) -> dict[str, str]:
    names = _list_files(request.source, request.rules, timeout_s)
    digests = workdir_files.digests(request.source, names, timeout_s)
    return {name: digest for name, digest in digests.items() if digest}


@contextmanager
def _marker_file(source: str, token: str) -> Iterator[str]:
    """Create a file by which a node recognizes a shared directory, and remove it; yield "" if it cannot be created."""
    with ExitStack() as stack:
        try:
            name = stack.enter_context(marker.marker_file(source, token))
        except OSError as error:
            name, why = "", error.strerror
            write_err(f"{source} cannot be written ({why}): shared directories are not detected")
        yield name


# ---- the nodes


def _copy_to_all(
    request: SyncRequest, nodes: Sequence[Node], token: str, digests: Mapping[str, str], settings: ConnectionSettings
) -> tuple[list[SyncResult], dict[str, TorchfabError]]:
    copies = RsyncProcesses()
    found: dict[int, SyncResult] = {}
    failed: dict[int, TorchfabError] = {}

    def copy(node: Node, session: Session) -> SyncResult:
        return _copy_to(request, node, token, digests, session, copies, settings)

    try:
        with SessionPool(nodes, settings) as sessions:
            for node, result in sessions.map(copy):
                if isinstance(result, TorchfabError):
                    failed[node.rank] = result
                else:
                    found[node.rank] = result
                progress("copying", len(found) + len(failed), len(nodes))
    finally:
        copies.end()
    return [found[rank] for rank in sorted(found)], {nodes[rank].label: failed[rank] for rank in sorted(failed)}


def _copy_to(
    request: SyncRequest,
    node: Node,
    token: str,
    digests: Mapping[str, str],
    session: Session,
    copies: RsyncProcesses,
    settings: ConnectionSettings,
) -> SyncResult:
    workdir = node.workdir or request.workdir
    look = WorkdirRequest(workdir=workdir, token=token)
    if session.request(look, settings.answer_timeout_s).shared:
        return SyncResult(node, shared=True)
    argv = _argv(request, node, settings)
    _log.debug("rsync: starting %s", shlex.join(argv), extra={"host": node.label})
    stats = rsync.parse_stats(copies.run(argv))
    _log.debug("rsync: done", extra={"host": node.label})
    check = FilesRequest(workdir=workdir, digests=dict(digests), within_s=settings.sync_timeout_s)
    files = session.request(check, settings.sync_timeout_s + settings.answer_timeout_s)
    return SyncResult(node, False, stats, files.checked, files.missing, files.differing, tuple(files.names))


def _argv(request: SyncRequest, node: Node, settings: ConnectionSettings) -> tuple[str, ...]:
    host, shell = rsh_command(node, settings)
    return rsync.copy_argv(
        request.source,
        node.workdir or request.workdir,
        host,
        shell,
        request.delete,
        rules=request.rules,
        timeout_s=settings.sync_timeout_s,
    )


def rsh_command(node: Node, settings: ConnectionSettings) -> tuple[str, tuple[str, ...]]:
    """Return the host as rsync names it, and the remote shell for `rsync -e`.

    Parameters
    ----------
    node : Node
        The node.
    settings : ConnectionSettings
        How to reach it.

    Returns
    -------
    tuple of str and tuple of str
        Both empty for this machine.
    """
    if node.is_local:
        return "", ()
    non_interactive = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(settings.connect_timeout_s))}")
    return node.host, (*ssh_argv(node, settings), *non_interactive)

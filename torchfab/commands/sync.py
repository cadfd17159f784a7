"""`fab sync`: copy the working directory to all nodes at once, and prove that all of them hold the same files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchfab.cli.flags import SyncFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import progress, write_err, write_out
from torchfab.core.errors import HostsFailedError, TorchfabError, UsageError
from torchfab.core.specs import Node
from torchfab.launch.context import CommandContext
from torchfab.launch.hosts import read_nodes
from torchfab.remote.host import file_tree
from torchfab.runtimes.tmux import ssh_argv
from torchfab.sync import gitignore, rsync
from torchfab.sync.results import Result, as_document, words
from torchfab.transport.pool import SessionPool, problem_in
from torchfab.transport.session import Session


@dataclass(frozen=True)
class Wish:
    """What is to be copied where.

    Parameters
    ----------
    source, workdir : str
        The directory here, and the one on every node; absolute paths.
    delete : bool
        Remove what is there and not here.
    rules : tuple of str
        What git holds though rsync's reading of .gitignore leaves it out, as filters of rsync.
    """

    source: str
    workdir: str
    delete: bool
    rules: tuple[str, ...] = ()


# ---- the command


def run(flags: SyncFlags, ctx: CommandContext) -> int:
    """Copy and check; print what was done. Return 0 if all nodes hold the same files, else 1.

    Raises
    ------
    UsageError
        A flag is wrong, or rsync is not installed here.
    HostsFailedError
        With one reason for each node that failed; the others were copied to.
    """
    wish = Wish(ctx.cwd, flags.workdir or ctx.cwd, flags.delete)
    if not wish.workdir.startswith("/"):
        raise UsageError(f"--workdir must be an absolute path, got {wish.workdir!r}")
    nodes = read_nodes(flags.hostfile, ctx)
    if shutil.which("rsync") is None:
        raise UsageError("rsync is not installed on this machine", "./run fab sync installs it")
    wish = replace(wish, rules=_rules(wish.source, ctx.settings.sync_timeout_s))
    if flags.dry_run:
        for node in nodes:
            write_out(shlex.join(_argv(wish, node, ctx.settings)))
        return 0
    return _sync(wish, nodes, flags.json, ctx)


def _sync(wish: Wish, nodes: Sequence[Node], as_json: bool, ctx: CommandContext) -> int:
    begun = time.monotonic()
    digests = _digests_here(wish, ctx.settings.sync_timeout_s)
    with _token(wish.source, ctx.token) as token:
        results, failed = _copy_to_all(wish, nodes, token, digests, ctx.settings)
    if as_json:
        write_out(json.dumps(as_document(results, failed, len(digests)), indent=2))
    else:
        for line in words(results, len(digests), time.monotonic() - begun):
            write_out(line)
    if failed:
        raise HostsFailedError(f"{len(failed)} of {len(nodes)} hosts failed; the others were copied to", failed)
    return 1 if any(result.is_odd for result in results) else 0


def _rules(source: str, timeout_s: float) -> tuple[str, ...]:
    known = gitignore.in_git(source, timeout_s)
    return gitignore.rules(known, _listed(source, (), timeout_s)) if known else ()


def _listed(source: str, rules: Sequence[str], timeout_s: float) -> list[str]:
    """Return what rsync would copy, relative to the directory."""
    try:
        with tempfile.TemporaryDirectory() as nowhere:
            argv = rsync.list_argv(source, nowhere, rules)
            done = subprocess.run(argv, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        fix = "see whether its disk answers; more time: sync_timeout_s in fabric.yaml"
        raise TorchfabError(f"{source} could not be listed within {timeout_s:g} s", fix) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise TorchfabError(f"rsync cannot read {source}: {''.join(said) or done.returncode}", "see to its rights")
    return rsync.listed(done.stdout)


def _digests_here(wish: Wish, timeout_s: float) -> dict[str, str]:
    names = _listed(wish.source, wish.rules, timeout_s)
    return {name: text for name, text in file_tree.digests(wish.source, names, timeout_s).items() if text}


@contextmanager
def _token(source: str, token: str) -> Iterator[str]:
    """Make a file for the nodes to see, and remove it; empty where none can be made."""
    path = Path(source, f".torchfab-sync-{token}")
    try:
        path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        write_err(
            f"{source} cannot be written ({error.strerror}): whether a node sees the same directory is not looked for"
        )
        yield ""
        return
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


# ---- the nodes


@dataclass
class _Copies:
    """The copies that run, so that none outlives us."""

    running: set[subprocess.Popen[str]] = field(default_factory=set)

    def run(self, argv: Sequence[str]) -> str:
        """Run one to its end; return what it printed.

        Raises
        ------
        HostError
            It failed.
        """
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
        self.running.add(process)
        try:
            stdout, stderr = process.communicate()
        finally:
            self.running.discard(process)
        if process.returncode:
            raise rsync.problem(process.returncode, stderr)
        return stdout

    def end(self) -> None:
        """End those that still run."""
        for process in list(self.running):
            process.terminate()


def _copy_to_all(
    wish: Wish, nodes: Sequence[Node], token: str, digests: Mapping[str, str], settings: ConnectionSettings
) -> tuple[list[Result], dict[str, TorchfabError]]:
    copies = _Copies()
    found: dict[int, Result] = {}
    failed: dict[int, TorchfabError] = {}

    def act(node: Node, session: Session) -> Result:
        return _copy_to(wish, node, token, digests, session, copies, settings)

    try:
        with SessionPool(nodes, settings) as sessions:
            for node, result in sessions.map(act):
                if isinstance(result, TorchfabError):
                    failed[node.rank] = result
                else:
                    found[node.rank] = result
                progress("copying", len(found) + len(failed), len(nodes))
    finally:
        copies.end()
    return [found[rank] for rank in sorted(found)], {nodes[rank].label: failed[rank] for rank in sorted(failed)}


def _copy_to(
    wish: Wish,
    node: Node,
    token: str,
    digests: Mapping[str, str],
    session: Session,
    copies: _Copies,
    settings: ConnectionSettings,
) -> Result:
    place = {"workdir": wish.workdir}
    if _ask(session, {"op": "tree_look", **place, "token": token}, settings.answer_timeout_s)["shared"]:
        return Result(node, shared=True)
    stats = rsync.stats(copies.run(_argv(wish, node, settings)))
    request = {"op": "tree_check", **place, "digests": digests, "within_s": settings.sync_timeout_s}
    told = _ask(session, request, settings.sync_timeout_s + settings.answer_timeout_s)
    counts = {name: told[name] for name in ("checked", "missing", "differing")}
    return Result(node, False, stats, **counts, names=tuple(told["names"]))


def _ask(session: Session, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
    answer = session.ask(request, timeout_s)
    problem = problem_in(answer)
    if problem is not None:
        raise problem
    return answer


def _argv(wish: Wish, node: Node, settings: ConnectionSettings) -> tuple[str, ...]:
    host, shell = _way(node, settings)
    return rsync.copy_argv(
        wish.source, wish.workdir, host, shell, wish.delete, rules=wish.rules, silent_s=settings.sync_timeout_s
    )


def _way(node: Node, settings: ConnectionSettings) -> tuple[str, tuple[str, ...]]:
    """Return the host as rsync is to name it, and the command that reaches it."""
    if node.is_local:
        return "", ()
    unattended = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(settings.connect_timeout_s))}")
    return node.host, (*ssh_argv(node, settings), *unattended)

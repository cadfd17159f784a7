"""`fab env push`: create the same virtual environment with the project's packages on every node."""

from __future__ import annotations

import os
import posixpath
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torchfab import documents
from torchfab.cli.flags import PushEnvFlags
from torchfab.core import requirements_file
from torchfab.core.console import progress, write_err, write_out
from torchfab.core.errors import HostsFailedError, TorchfabError, UsageError
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.requirements_file import PackageList
from torchfab.core.specs import Node
from torchfab.launching.context import CommandContext
from torchfab.launching.hosts import read_nodes
from torchfab.transport.messages.env import PushEnvAnswer, PushEnvRequest
from torchfab.transport.session_pool import request_all

_EXPORT = ("uv", "export", "--frozen", "--no-emit-project", "--no-header", "--format", "requirements-txt")
_EXPORT_TIMEOUT_S = 60


@dataclass(frozen=True)
class Push:
    """The environment to create on the nodes.

    Parameters
    ----------
    packages : PackageList
        The package list; its digest tells whether an existing environment is up to date.
    text : str
        The packages in pip's requirements format.
    path : str
        Folder of the environment: absolute, or relative to the working directory of each node.
    workdir, python : str
        The working directory of nodes that have no own one, and the interpreter that creates the environment.
    timeout_s : float
        Time limit for each node, in seconds.
    requires : str
        Versions of Python that the project needs. Default: any.
    """

    packages: PackageList
    text: str
    path: str
    workdir: str
    python: str
    timeout_s: float
    requires: str = ""

    def request(self, node: Node) -> PushEnvRequest:
        """Return the request for a node."""
        workdir = node.workdir or self.workdir
        return PushEnvRequest(
            folder=self.folder(node),
            workdir=workdir,
            python=self.python,
            requirements=self.text,
            digest=self.packages.digest,
            source=self.packages.source,
            timeout_s=self.timeout_s,
            requires=self.requires,
        )

    def folder(self, node: Node) -> str:
        """Return the folder of the environment on a node."""
        return posixpath.normpath(posixpath.join(node.workdir or self.workdir, self.path))


def run(words: Sequence[str], flags: PushEnvFlags, ctx: CommandContext) -> int:
    """Create the environment on all nodes, and print the result.

    Parameters
    ----------
    words : sequence of str
        The words after `env`: push.
    flags : PushEnvFlags
        The flags.
    ctx : CommandContext
        Working directory, project and settings.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    UsageError
        A flag is invalid, or no package list exists.
    HostsFailedError
        One reason per failed node. The environments of the other nodes are complete.
    """
    if tuple(words) != ("push",):
        raise UsageError(f"env expects the word push, got {shlex.join(words) or 'nothing'}", "fab env push")
    push = make_push(flags, ctx)
    nodes = read_nodes(flags.hostfile, ctx, flags.hostfile_format)
    answers: dict[str, PushEnvAnswer] = {}
    reasons: dict[str, TorchfabError] = {}
    for node, result in request_all(nodes, ctx.settings, push.request, push.timeout_s + 10):
        if isinstance(result, TorchfabError):
            reasons[node.label] = result
        else:
            answers[node.label] = result.value
        progress("installing", len(answers), len(nodes))
    _print(push, nodes, answers, flags.json)
    if reasons:
        summary = f"{len(reasons)} of {len(nodes)} hosts failed; the environments of the others are complete"
        raise HostsFailedError(summary, {each.label: reasons[each.label] for each in nodes if each.label in reasons})
    return 0


def make_push(flags: PushEnvFlags, ctx: CommandContext) -> Push:
    """Build the description of the environment from the flags and the project.

    Parameters
    ----------
    flags : PushEnvFlags
        The flags.
    ctx : CommandContext
        Working directory and project.

    Returns
    -------
    Push

    Raises
    ------
    UsageError
        No package list exists, or it cannot be sent.
    """
    workdir = flags.workdir or ctx.cwd
    if not workdir.startswith("/"):
        raise UsageError(f"--workdir must be an absolute path, got {workdir!r}")
    found = Path(ctx.cwd, flags.requirements) if flags.requirements else requirements_file.find(ctx.root)
    if found is None:
        names = " and no ".join(requirements_file.NAMES)
        raise UsageError(f"{ctx.root} has no {names}", "create one, or give a package list with --requirements")
    packages = replace(requirements_file.read(found), source=_source(found, ctx.root))
    text = _export(found) if found.name == requirements_file.LOCK else packages.text
    requires = requirements_file.requires_python(found)
    return Push(packages, text, flags.path, workdir, flags.python, flags.timeout, requires)


def _source(path: Path, root: Path) -> str:
    """Return the path of a package list: relative to the project, or absolute if it is outside."""
    whole = Path(os.path.abspath(path))
    return str(whole.relative_to(root)) if whole.is_relative_to(root) else str(whole)


def _export(lock: Path) -> str:
    """Convert uv.lock to pip's requirements format with `uv export`."""
    if shutil.which("uv") is None:
        raise UsageError(
            f"uv is needed to read {lock}, and it is not on PATH here", "install uv, or give --requirements FILE"
        )
    try:
        done = subprocess.run(
            _EXPORT,
            cwd=lock.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_EXPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TorchfabError(f"uv export did not end within {_EXPORT_TIMEOUT_S} s", f"run it in {lock.parent}") from None
    if done.returncode:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise UsageError(f"uv cannot export {lock}: {last or done.returncode}", f"try it: {shlex.join(_EXPORT)}")
    return done.stdout


# ---- the outcome


def _print(push: Push, nodes: Sequence[Node], answers: dict[str, PushEnvAnswer], as_json: bool) -> None:
    done = [(node, answers[node.label]) for node in nodes if node.label in answers]
    if as_json:
        hosts = [
            {"host": node.label, "path": push.folder(node), "made": answer.made, "tool": answer.tool}
            | {"python": answer.python, "duration_s": answer.seconds}
            for node, answer in done
        ]
        listed = {"source": push.packages.source, "digest": push.packages.digest}
        write_out(documents.encode({**listed, "hosts": hosts}))
        return
    for line in outcome_lines(push, done):
        write_out(line)
    versions = {answer.python for _, answer in done}
    if len(versions) > 1:
        write_err(f"note: the nodes have different versions of Python: {', '.join(sorted(versions))}; see --python")


def outcome_lines(push: Push, done: Sequence[tuple[Node, PushEnvAnswer]]) -> list[str]:
    """Return the result lines: one line per group of hosts with the same result.

    Parameters
    ----------
    push : Push
        The requested environment.
    done : sequence of tuple of Node and PushEnvAnswer
        The nodes that have the environment, with their answers.

    Returns
    -------
    list of str
    """
    hosts: dict[str, list[str]] = {}
    slowest: dict[str, float] = {}
    for node, answer in done:
        how = f"created with {answer.tool}" if answer.made else "is up to date"
        text = f"{push.folder(node)} {how}, Python {answer.python}"
        hosts.setdefault(text, []).append(node.label)
        slowest[text] = max(slowest.get(text, 0.0), answer.seconds)
    timed = {text: f" ({slowest[text]:.1f} s)" if slowest[text] else "" for text in hosts}
    lines = [f"{fold(labels)}: {text}{timed[text]}" for text, labels in hosts.items()]
    folders = {push.folder(node) for node, _ in done}
    lines += [f"launch with it: --python {shlex.quote(f'{folder}/bin/python')}" for folder in sorted(folders)]
    return lines

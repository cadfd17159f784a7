"""`fab pull`: copy files of a job from the nodes into a local folder."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torchfab import runtimes
from torchfab.commands.sync import check_rsync, rsh_command
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core import inventory
from torchfab.core.console import write_out
from torchfab.core.errors import HostError, HostsFailedError, Interrupted, TorchfabError, UsageError
from torchfab.core.format import format_bytes, plural
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import NAME_PATTERN, Node
from torchfab.launching import job_lookup
from torchfab.launching.context import CommandContext
from torchfab.launching.hosts import read_nodes
from torchfab.monitoring.job_status import ask_status
from torchfab.records import Record, launch_request
from torchfab.sync import pull, rsync
from torchfab.sync.processes import RsyncProcesses
from torchfab.sync.pull import Match, Place, Transfer
from torchfab.transport.messages.pull import FileDigestsRequest, FileMatch, FindFilesAnswer, FindFilesRequest
from torchfab.transport.session import Session
from torchfab.transport.session_pool import SessionPool

FOLDER = "pulled"  # of a pull without --to
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PullRequest:
    """The files to copy, their hosts, and the local folder.

    Parameters
    ----------
    nodes : sequence of Node
        The hosts.
    settings : ConnectionSettings
        How to reach them.
    workdir : str
        Base of relative paths on hosts that have no own workdir.
    patterns : sequence of str
        Paths and glob patterns.
    folder : str
        The local folder; an absolute path.
    """

    nodes: Sequence[Node]
    settings: ConnectionSettings
    workdir: str
    patterns: Sequence[str]
    folder: str


def run(words: Sequence[str], to: str, rank: str, ctx: CommandContext) -> int:
    """Copy the files, and print what was copied.

    Parameters
    ----------
    words : sequence of str
        Paths. If there are several words, the first one may be the name of a job.
    to : str
        The local folder; empty: `pulled/<job>`.
    rank : str
        Copy only from the nodes of these ranks: `0,2-5`; empty: from all nodes.
    ctx : CommandContext
        Working directory, records and settings.

    Returns
    -------
    int
        Exit code: 0.

    Raises
    ------
    UsageError
        A flag or a path is invalid, or no host has a file of that name.
    HostsFailedError
        One reason per failed host. The files of the other hosts were copied.
    Interrupted
        Ctrl-C. Running the same command again continues partial files.
    """
    pull_files(words, to, rank, ctx)
    return 0


def pull_files(words: Sequence[str], to: str, rank: str, ctx: CommandContext) -> Path:
    """Copy the files, print what was copied, and return the folder here.

    Parameters
    ----------
    words, to, rank, ctx
        As `run` takes them.

    Returns
    -------
    Path
        Absolute.

    Raises
    ------
    UsageError, HostsFailedError, Interrupted
        As `run` raises them.
    """
    check_rsync()
    request = build_request(words, to, rank, ctx)
    try:
        _pull(request, None if to else Path(ctx.cwd, FOLDER))
        return Path(request.folder)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; complete files are kept", "run the same command again to continue") from None


def build_request(words: Sequence[str], to: str, rank: str, ctx: CommandContext) -> PullRequest:
    """Build the request from the flags.

    Parameters
    ----------
    words, to, rank, ctx
        As in `run`.

    Returns
    -------
    PullRequest

    Raises
    ------
    UsageError
        A flag or a path is invalid.
    """
    job, patterns = split_words(words, lambda name: _is_job(name, ctx))
    if ctx.hosts and not job:  # hosts without a job
        if rank:
            raise UsageError("--rank needs a job", "name it: fab pull JOB PATH --rank 0")
        nodes = read_nodes("", ctx)
        return PullRequest(nodes, ctx.settings, ctx.cwd, patterns, _folder(to, "hosts", ctx))
    record = job_lookup.find(job, ctx)
    machines = (
        list(read_nodes("", ctx)) if ctx.hosts else [node for node, _ in runtimes.load(record.runtime).machines(record)]
    )
    workdir = launch_request.workdir_of(record.folder, record.defaults) or ctx.cwd
    chosen = _nodes_of_ranks(record, machines, rank) if rank else machines
    return PullRequest(chosen, record.settings, workdir, patterns, _folder(to, record.name, ctx))


def _is_job(name: str, ctx: CommandContext) -> bool:
    return bool(NAME_PATTERN.fullmatch(name)) and (ctx.records.root / name / "record.json").is_file()


def split_words(words: Sequence[str], is_job: Callable[[str], bool]) -> tuple[str, tuple[str, ...]]:
    """Split the words of the command line into the job and the paths.

    Parameters
    ----------
    words : sequence of str
        The words.
    is_job : callable
        Returns whether a job of this name exists.

    Returns
    -------
    tuple of str and tuple of str
        The job is empty, for the latest one, if the words name none.

    Raises
    ------
    UsageError
        No path is given.
    """
    example = "for example: fab pull checkpoints/step-100 'runs/*.json'"
    if not words:
        raise UsageError("fab pull needs a path", example)
    if not is_job(words[0]):
        return "", tuple(words)
    if len(words) == 1:
        raise UsageError(f"{words[0]} is a job; fab pull needs a path too", f"if it is a path: fab pull ./{words[0]}")
    return words[0], tuple(words[1:])


def _folder(to: str, job: str, ctx: CommandContext) -> str:
    folder = os.path.join(ctx.cwd, os.path.expanduser(to) if to else os.path.join(FOLDER, job))
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UsageError(f"--to {to} is a file", "name a folder")
    return os.path.normpath(folder)


def _make_ignored(folder: Path) -> None:
    """Create the default folder, with a .gitignore so that git and `fab sync` skip it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".gitignore").exists():
        (folder / ".gitignore").write_text("*\n")


def _nodes_of_ranks(record: Record, nodes: Sequence[Node], text: str) -> list[Node]:
    wanted = set(inventory.parse_ranks(text))
    too_high = sorted(rank for rank in wanted if rank >= record.world_size)
    if too_high and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {too_high[0]}")
    ranks_by_node = {node.node.rank: {each.rank for each in node.ranks} for node in ask_status(record).nodes}
    chosen = [node for node in nodes if ranks_by_node.get(node.rank, set()) & wanted]
    if not chosen:
        raise UsageError(f"no node ran rank {text}", f"fab status {record.name} shows which ranks ran, and where")
    return chosen


# ---- the copy


def _pull(request: PullRequest, ignored: Path | None) -> int:
    started = time.monotonic()
    failed: dict[int, TorchfabError] = {}
    processes = RsyncProcesses()
    try:
        with SessionPool(request.nodes, request.settings) as sessions:
            matches = _find(request, sessions, failed)
            differing = pull.differing_names(matches, _digests(matches, sessions, request.settings))
            transfers = pull.transfers(matches, differing)
            if ignored is not None:
                _make_ignored(ignored)
            _copy_all(transfers, request, sessions, processes, failed)
    finally:
        processes.end()
    done = [each for each in transfers if each.node.rank not in failed]
    unchanged = [] if failed else matches  # what equals a file that did not arrive is not here either
    for line in summary(done, unchanged, request.folder, time.monotonic() - started):
        write_out(line)
    if failed:
        reasons = {node.label: failed[node.rank] for node in request.nodes if node.rank in failed}
        hosts = plural(len(request.nodes), "host")
        raise HostsFailedError(f"{len(failed)} of {hosts} failed; their files may be missing here", reasons)
    return 0


def _find(request: PullRequest, sessions: SessionPool, failed: dict[int, TorchfabError]) -> list[Match]:
    """Query the matching files of every host; raise if a pattern matches nothing on any host."""
    found: dict[int, list[FileMatch]] = {}

    def ask(node: Node, session: Session) -> FindFilesAnswer:
        look = FindFilesRequest(workdir=node.workdir or request.workdir, patterns=list(request.patterns))
        answer = session.request(look, request.settings.sync_timeout_s)
        for match in answer.matches:
            for name in [*(name for name, _ in match.files), *(name for name, _ in match.links)]:
                pull.check_name(name)
        return answer

    for node, answer in sessions.map(ask):
        if isinstance(answer, TorchfabError):
            failed[node.rank] = answer
            continue
        found[node.rank] = answer.matches
        if answer.unreadable:
            failed[node.rank] = HostError(
                f"{', '.join(answer.unreadable[:3])} cannot be read", "check the permissions there"
            )
    _check_found(request, found, failed)
    return [
        Match(node, each.base, each.name, dict(each.files), dict(each.links))
        for node in request.nodes
        for each in found.get(node.rank, ())
    ]


def _check_found(
    request: PullRequest, found: Mapping[int, Sequence[FileMatch]], failed: Mapping[int, TorchfabError]
) -> None:
    seen = {each.pattern for matches in found.values() for each in matches if each.files or each.links}
    missing = [pattern for index, pattern in enumerate(request.patterns) if index not in seen]
    if not missing:
        return
    if not found or any(rank in failed for rank in (node.rank for node in request.nodes)):
        reasons = {node.label: failed[node.rank] for node in request.nodes if node.rank in failed}
        raise HostsFailedError(f"{missing[0]} was not found, and {plural(len(failed), 'host')} failed", reasons)
    asked = fold([node.label for node in request.nodes])
    where = sorted({node.workdir or request.workdir for node in request.nodes})
    looked = missing[0] if missing[0].startswith(("/", "~")) else f"{missing[0]} in {', '.join(where)}"
    look = f"list the files: fab run --workdir {shlex.quote(where[0])} -- ls"
    raise UsageError(f"no files match {looked} on {asked}; nothing was copied", f"{look}; quote patterns: 'runs/*'")


def _digests(matches: Sequence[Match], sessions: SessionPool, settings: ConnectionSettings) -> dict[Place, str]:
    """Query the digests of the files that several hosts have."""
    by_rank: dict[int, list[Place]] = {}
    for places in pull.shared_files(matches).values():
        for place in places:
            by_rank.setdefault(place[0], []).append(place)
    nodes = list({match.node.rank: match.node for match in matches if match.node.rank in by_rank}.values())

    def ask(node: Node, session: Session) -> list[tuple[Place, str]]:
        places = by_rank[node.rank]
        look = FileDigestsRequest(files=[place[1:] for place in places], within_s=settings.sync_timeout_s)
        answer = session.request(look, settings.sync_timeout_s + settings.answer_timeout_s)
        return list(zip(places, answer.digests, strict=False))

    answers = sessions.map(ask, nodes) if nodes else iter(())
    return {place: digest for _, answer in answers if isinstance(answer, list) for place, digest in answer}


def _copy_all(
    transfers: Sequence[Transfer],
    request: PullRequest,
    sessions: SessionPool,
    processes: RsyncProcesses,
    failed: dict[int, TorchfabError],
) -> None:
    by_rank: dict[int, list[Transfer]] = {}
    for each in transfers:
        by_rank.setdefault(each.node.rank, []).append(each)
    nodes = [node for node in request.nodes if node.rank in by_rank]

    def copy(node: Node, session: Session) -> None:
        for each in by_rank[node.rank]:
            _copy(each, request, processes, meter.of(each) if meter.shown else None)

    with Meter(sum(each.size_bytes for each in transfers)) as meter:
        for node, error in sessions.map(copy, nodes) if nodes else ():
            if error is not None:
                failed[node.rank] = error


def _copy(
    transfer: Transfer, request: PullRequest, processes: RsyncProcesses, progress: Callable[[str], None] | None
) -> None:
    """Copy the files of one transfer; raise if a file is missing afterwards."""
    folder = os.path.join(request.folder, transfer.folder)
    os.makedirs(folder, exist_ok=True)
    if transfer.files:
        host, shell = rsh_command(transfer.node, request.settings)
        timeout_s = request.settings.sync_timeout_s
        argv = rsync.pull_argv(transfer.base, folder, host, shell, timeout_s, progress is not None)
        _log.debug("rsync: starting %s", shlex.join(argv), extra={"host": transfer.node.label})
        processes.run(argv, b"\0".join(map(os.fsencode, transfer.files)) + b"\0", progress)
        _log.debug("rsync: done", extra={"host": transfer.node.label})
    for name, target in transfer.links.items():
        _link(os.path.join(folder, name), target)
    gone = [name for name in transfer.files if not os.path.isfile(os.path.join(folder, name))]
    if gone:
        raise HostError(
            f"{gone[0]} was not copied; it may have been removed on the host meanwhile", "run the command again"
        )


def _link(path: str, target: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(path):
        os.unlink(path)
    if not os.path.lexists(path):
        os.symlink(target, path)


class Meter:
    """The progress of a copy, on one terminal line."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.shown = sys.stderr.isatty()
        self.copied: dict[int, int] = {}
        self.started = self.last = time.monotonic()
        self.lock = threading.Lock()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def of(self, transfer: Transfer) -> Callable[[str], None]:
        """Return the callback for the output of rsync.

        Parameters
        ----------
        transfer : Transfer
            The transfer.

        Returns
        -------
        callable
            Takes a part of the output.
        """

        def take(text: str) -> None:
            with self.lock:
                if copied := rsync.parse_progress(text):
                    self.copied[id(transfer)] = copied
                if time.monotonic() - self.last > 0.2:
                    self.last = time.monotonic()
                    sys.stderr.write(f"\r{self.line()}\x1b[K")
                    sys.stderr.flush()

        return take

    def line(self) -> str:
        """Return the progress line: `copying 1.2 GiB of 3 GiB (40 %), 120 MiB/s`."""
        copied = sum(self.copied.values())
        rate = copied / max(0.1, self.last - self.started)
        share = 100 * copied // max(1, self.total_bytes)
        total, speed = format_bytes(self.total_bytes), format_bytes(int(rate))
        return f"copying {format_bytes(copied)} of {total} ({share} %), {speed}/s"


def summary(transfers: Sequence[Transfer], matches: Sequence[Match], folder: str, seconds: float) -> Iterator[str]:
    """Yield the summary of what was copied.

    Parameters
    ----------
    transfers : sequence of Transfer
        The finished transfers.
    matches : sequence of Match
        The matching files of all hosts.
    folder : str
        The local folder.
    seconds : float
        Duration of the copy.

    Yields
    ------
    str
        A line for each transfer, and one for all.
    """
    shown = os.path.relpath(folder)
    shown = folder if shown.startswith("..") else shown
    for each in transfers:
        where = os.path.join(shown, each.folder) if each.folder else shown
        yield f"{each.node.label}: {plural(len(each.files), 'file')}, {format_bytes(each.size_bytes)}, into {where}"
    if any(each.folder for each in transfers):
        yield "files of the same name differ between hosts: each host has its own folder"
    others = {each.node.label for each in matches} - {each.node.label for each in transfers}
    if others:
        yield f"{fold(sorted(others))}: the same files; nothing to copy"
    files = sum(len(each.files) for each in transfers)
    size = format_bytes(sum(each.size_bytes for each in transfers))
    yield f"{plural(files, 'file')}, {size}, in {shown} ({seconds:.1f} s)"

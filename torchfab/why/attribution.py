"""Attribute the end of a rank or of a launcher process to a cause, by its logs, exit code, records and kernel log."""

from __future__ import annotations

import re
from dataclasses import replace

from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.log_lines import strip_controls
from torchfab.core.status import ProcessStatus, describe_exit_code
from torchfab.remote.host import kernel_log
from torchfab.why import signal_sender
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import Disk, Label, Log, NodeEvidence, RankEnd, Report
from torchfab.why.frames import crashed_in
from torchfab.why.log_reading import NO_NEWS, EvidenceLine, Reading
from torchfab.why.signature import Fact, Match
from torchfab.why.speakers import Speaker, speaker_of_line
from torchfab.why.tracebacks import Role

_SUPERVISOR_SIGNALS = {
    "SIGHUP": "its tmux window was closed",
    "SIGINT": "Ctrl-C was typed into its tmux window, or SIGINT was sent to its supervisor",
    "SIGTERM": "SIGTERM was sent to its supervisor, and not by fab stop",
    "SIGQUIT": "SIGQUIT was sent to its supervisor, or typed into its tmux window",
}
KILL, _ABORT, _BUS = -9, -6, -7
# The exit code of a shell or a wrapper whose program was ended by a signal.
_SHELL_CODES = {128 + number: -number for number in (4, 6, 7, 8, 9, 11)}
_MIN_FREE_BYTES = 64 * 1024
_SMALL_SHM_BYTES = 1024**3
_OOM_FIX = "less memory per rank (data loader workers, caches), or a higher limit of its control group"
_WITHOUT = "fab doctor; launch without that node"
_OOM_BEFORE_S = 30.0
# Xids of hardware, not those that a script's own kernel causes (13, 31, 43, 45).
_GPU_FAULT = re.compile(r"fallen off the bus|Xid \([^)]*\): (?:48|61|62|63|64|74|79|92|94|95|119|120|140|143)\b")
# Those after which a GPU does no more work: also where no exception names CUDA, as when all ranks only wait in vain.
_DEAD_GPU = re.compile(
    r"GPU has fallen off the bus|Xid \([^)]*\): (?:48|62|74|79|95|119|120|140|143)\b|GPU recovery action|RESET_REQUIRED"
)
_XID_PID = re.compile(r"\bpid='?(\d+)'?")
# Lines of NCCL and libibverbs before an exception or a timeout that does not name its cause.
_NCCL_WARNING = re.compile(
    r"NCCL WARN (.*(?:fail|error|timed? ?out|refused|closed|abort|reset|mismatch|couldn't|could not|unable|invalid"
    r"|not (?:found|supported|enough)).*)|(\bmlx\d: .*got completion with error.*)"
    r"|^\[ERROR\] (HCCL\(.*)|^(\S*/nvshmem/\S+: non-zero status: .*)",
    re.IGNORECASE | re.MULTILINE,
)
_LAST_WARNINGS = 8
# Signatures of a library's errors whose exception only says that it failed.
_VAGUE = ("nccl-error", "hccl-error", "mpi-error", "nvshmem-error")
_NO_CUDA = re.compile(r"CUDA initialization: ")
# What a script raises, or asserts, if it finds no GPU.
_GPUS = r"(?:GPUs?|CUDA|accelerators?|(?:CUDA |GPU )?devices?)\b"
_MISSES_GPUS = re.compile(
    r"is_available\(\)|device_count\(\)"
    rf"|\b(?:no|needs?|requires?|without|cannot|can't|unable|not (?:find|found|have|see|detect))\b.{{0,40}}\b{_GPUS}"
    rf"|\b{_GPUS}.{{0,40}}\b(?:not|unavailable|missing|required|needed)\b",
    re.IGNORECASE,
)
_LAST_CHARS = 400  # of a traceback: its last frames and its message
_PRINTED_BEFORE = "before, it had printed"
_OOM_LINE = re.compile(r"Killed process (\d+)\b")
_CHILD_KILLED = re.compile(
    r"(?:signal|code)s?:? (?:SIGKILL|9\b|-9\b|137\b)|died with <Signals\.SIGKILL|killed by signal: Killed"
    r"|exitcode:? -9\b"
)
_STORAGE_LINE = re.compile(kernel_log.STORAGE, re.IGNORECASE)
_FAULTY_MEMORY_LINE = re.compile(kernel_log.FAULTY_MEMORY, re.IGNORECASE)
_SERVER_LINE = re.compile(r"nfs: server .* not responding|Lustre: .*Connection to .* was lost", re.IGNORECASE)

CERTAIN, PROBABLE, POSSIBLE = "certain", "probable", "possible"


@dataclass(frozen=True)
class Attribution:
    """Why one process ended.

    Parameters
    ----------
    cause : Cause
        The cause.
    certainty : str
        CERTAIN, PROBABLE or POSSIBLE.
    lines : tuple of EvidenceLine
        The log lines that support it.
    speaker : Speaker, optional
        The source of the report; None if the cause is derived from records alone.
    by_traceback : bool
        Whether an exception in a log names it.
    """

    cause: Cause
    certainty: str
    lines: tuple[EvidenceLine, ...] = ()
    speaker: Speaker | None = None
    by_traceback: bool = False


def logs_of(node: NodeEvidence, label: Label | None) -> list[Log]:
    """Return the logs of a rank or of the launcher, the most recently written first.

    A rank that ended before its supervisor detected it has its logs under `local N`.

    Parameters
    ----------
    node : NodeEvidence
        The node that it ran on.
    label : int, str or None
        The rank, or `agent` for the launcher.

    Returns
    -------
    list of Log
        The logs with this label; without any, all logs of `local N`.
    """
    own = [log for log in node.logs if log.label == label]
    own = own or [log for log in node.logs if isinstance(log.label, str) and log.label.startswith("local ")]
    return sorted(own, key=lambda log: -log.written)


def reports_of(node: NodeEvidence, label: Label | None, attempt: int | None = None) -> list[Report]:
    """Return the error file of a rank or launcher.

    Parameters
    ----------
    node : NodeEvidence
        The node that it ran on.
    label : int, str or None
        The rank, or `agent` for the launcher.
    attempt : int, optional
        Use only the error file of this attempt: an earlier attempt may have failed for another reason. Default: that
        of the last attempt.

    Returns
    -------
    list of Report
        At most one.
    """
    own = [report for report in node.reports if report.label == label and attempt in (None, report.attempt)]
    return sorted(own, key=lambda report: -report.attempt)[:1]


def last_lines(text: str, count: int = 5) -> tuple[str, ...]:
    """Return the last non-blank lines of a log that belong to no dump of frames, without terminal control sequences.

    Parameters
    ----------
    text : str
        The log.
    count : int
        Number of lines. Default 5.

    Returns
    -------
    tuple of str
        Each line cut to 300 characters.
    """
    lines = [strip_controls(line) for line in text.splitlines() if line.strip()]
    news = [line for line in lines if not NO_NEWS.search(line)] or lines
    return tuple(line[:300] for line in news[-count:])


# ---- attribution


def attribute(
    node: NodeEvidence,
    process: ProcessStatus,
    rank: RankEnd,
    reading: Reading,
    others: tuple[NodeEvidence, ...] = (),
) -> Attribution:
    """Return why a rank, or a process that is not a rank, ended.

    Parameters
    ----------
    node : NodeEvidence
        The node that it ran on.
    process : ProcessStatus
        The process itself, or the launcher process that started the rank, as the node reports it.
    rank : RankEnd
        How it ended.
    reading : Reading
        The content of its logs.
    others : tuple of NodeEvidence
        The other nodes of the job, which facts are compared with.

    Returns
    -------
    Attribution
        Of kind UNKNOWN if nothing explains the end.
    """
    code = rank.code
    if (
        found := _from_signal(node, process, rank, reading)
        or _from_facts(node, rank, reading)
        or _from_exception(node, code, reading, others)
    ):
        return found
    is_open = reading.traceback is None or code is None or code < 0 or reading.is_wrapper
    if (lines := reading.from_lines) and (is_open or _explanation(reading)):
        return _confirmed(node, lines, reading, others, PROBABLE)
    if not reading.traceback and code and (cause := _full_log_disk(node, others)):
        return Attribution(cause, CERTAIN)
    if rank.rank is None:
        return Attribution(_launcher_cause(process.name, code, reading), POSSIBLE, _lines(node, reading))
    return _script_attribution(node, code, reading)


def _names_killer(cause: Cause, code: int | None) -> bool:
    """Return whether a cause that was read in log lines names the killer of the rank: the kernel, or the scheduler."""
    is_oom = (code == KILL and cause.name == "host-memory") or cause.name == "memory-limit"
    return is_oom or (cause.kind is Kind.KILLED and not cause.is_symptom)


def _from_signal(node: NodeEvidence, process: ProcessStatus, rank: RankEnd, reading: Reading) -> Attribution | None:
    """Return the sender of the signal that ended a process; None if no signal did."""
    code, lines = rank.code, reading.from_lines
    if lines and _names_killer(lines.cause, code):
        return _confirmed(node, lines, reading, (), CERTAIN)
    if code != KILL and not signal_sender.is_signal_exit(code, rank.rank, node):
        return None
    cause = _signal_cause(node, process, code, rank.pid) if code is not None else None
    if cause is None:
        return None
    if cause.name == "killed" and (fault := _memory_fault(node, rank)):  # by the kernel, after a memory error
        return fault
    is_known = cause.kind in (Kind.MEMORY, Kind.STOPPED)
    return Attribution(cause, CERTAIN if is_known else PROBABLE, _records(node, cause))


def attribute_log(node: NodeEvidence, reading: Reading, others: tuple[NodeEvidence, ...] = ()) -> Attribution | None:
    """Attribute a rank that did not fail itself, by its log.

    Parameters
    ----------
    node : NodeEvidence
        The node that it ran on.
    reading : Reading
        The content of its logs.
    others : tuple of NodeEvidence
        The other nodes of the job.

    Returns
    -------
    Attribution or None
        None if the log holds no exception, or only exceptions after which the rank continued.
    """
    traceback = reading.traceback
    if traceback is None or not reading.is_final or reading.is_wrapper or traceback.role not in (Role.MAIN, Role.CHILD):
        return None
    found = _from_exception(node, None, reading, others) or _script_attribution(node, 1, reading)
    return replace(found, certainty=PROBABLE if found.certainty == CERTAIN else found.certainty)


def _from_exception(
    node: NodeEvidence, code: int | None, reading: Reading, others: tuple[NodeEvidence, ...]
) -> Attribution | None:
    """Return the cause of the signature that matches the exception which ended the process."""
    if reading.match is None or not (reading.is_final or code in (1, None)):
        return None
    if _explanation(reading):
        return None
    is_main = reading.traceback is not None and reading.traceback.role is Role.MAIN and reading.is_final
    found = _confirmed(node, reading.match, reading, others, CERTAIN if is_main else PROBABLE)
    return replace(found, by_traceback=True)


def _explanation(reading: Reading) -> Match | None:
    """Return the cause from the lines outside the traceback, if the exception itself names none."""
    lines = reading.from_lines
    if lines is None or lines.cause.is_symptom:
        return None
    is_vague = reading.match is not None and reading.match.signature.name in _VAGUE
    is_vague = is_vague and speaker_of_line(lines.line) is Speaker.COMMUNICATION
    return lines if reading.is_wrapper or is_vague or _misses_gpu(reading, lines) else None


def _misses_gpu(reading: Reading, lines: Match) -> bool:
    """Return whether a script's own exception about GPUs follows a warning of torch that CUDA could not start."""
    if reading.traceback is None or reading.match is not None:
        return False
    return bool(_NO_CUDA.search(lines.line) and _MISSES_GPUS.search(reading.traceback.text[-_LAST_CHARS:]))


def _confirmed(
    node: NodeEvidence, match: Match, reading: Reading, others: tuple[NodeEvidence, ...], certainty: str
) -> Attribution:
    """Return the cause of a signature, of kind NODE only if another fact of the node confirms it."""
    cause, lines = match.cause, _lines(node, reading, match.line)
    if cause.kind is Kind.NODE and match.signature.confirm is not Fact.NONE:
        fact = _fact(match.signature.confirm, match, node, others)
        if fact is None:
            cause, certainty = replace(cause, kind=Kind.SCRIPT), min(certainty, PROBABLE, key=_rank_of)
        else:
            cause = replace(cause, words=f"{cause.words} ({fact})")
    extra = _known_facts(match, node, others) or _nccl_warning(match, reading) or _said_before(match, reading)
    if extra := extra or _raised_after(match, reading):
        cause = replace(cause, words=f"{cause.words}; {extra}")
    elif "most often" in match.signature.words:  # and no fact of the node confirms it
        certainty = min(certainty, PROBABLE, key=_rank_of)
    return Attribution(cause, certainty, lines, reading.speaker)


def _rank_of(certainty: str) -> int:
    return (POSSIBLE, PROBABLE, CERTAIN).index(certainty)


# ---- facts of the node


def _fact(fact: Fact, match: Match, node: NodeEvidence, others: tuple[NodeEvidence, ...]) -> str | None:
    """Describe the fact of a node that confirms a signature; None if there is none."""
    if fact is Fact.DISK:
        return _full_disk(match.line, node, others)
    if fact is Fact.FILE_SYSTEM:
        return _sick_file_system(match.line, node, others)
    if fact is Fact.NO_GPU:
        having = [each for each in others if each.gpus]
        return (
            f"{node.host} reports no GPU, {having[0].host} has {having[0].gpus}" if node.gpus == 0 and having else None
        )
    further = [each for each in others if each.status.ranks and not _prints(each, match)]
    if fact is Fact.ONLY_THERE and (len(further) < len(others) or not _prints_always(node, match)):
        return None
    return f"not on {further[0].host}" if further else None


def _prints(node: NodeEvidence, match: Match) -> bool:
    return any(match.signature.pattern.search(log.text) for log in node.logs)


def _prints_always(node: NodeEvidence, match: Match) -> bool:
    texts: dict[Label, str] = {}
    for log in node.logs:
        texts[log.label] = texts.get(log.label, "") + log.text
    return all(match.signature.pattern.search(text) for label, text in texts.items() if label != "agent")


def _disk_of(line: str, node: NodeEvidence) -> Disk | None:
    """Return the disk that holds the path in an error message."""
    paths = re.findall(r"['\"](/[^'\"]+)['\"]", line)
    holding = [disk for disk in node.disks for path in paths[-1:] if f"{path}/".startswith(f"{disk.path.rstrip('/')}/")]
    return max(holding, key=lambda disk: len(disk.path), default=None)


def _full_disk(line: str, node: NodeEvidence, others: tuple[NodeEvidence, ...]) -> str | None:
    named = _disk_of(line, node)
    candidates = [named] if named else [disk for disk in node.disks if disk.path != "/dev/shm"]
    full = next((disk for disk in candidates if disk.is_full and not _is_full_elsewhere(disk, others)), None)
    if full is None:
        return None
    return f"{full.path} has {full.free / 1e6:.1f} MB free" + (", and no inodes" if full.free_files == 0 else "")


def _is_full_elsewhere(disk: Disk, others: tuple[NodeEvidence, ...]) -> bool:
    """Return whether another node reports the same path as full: then they share the disk, or the job filled both."""
    return any(each.path == disk.path and each.is_full for node in others for each in node.disks)


def _sick_file_system(line: str, node: NodeEvidence, others: tuple[NodeEvidence, ...]) -> str | None:
    said = next((each.text for each in node.kernel if _STORAGE_LINE.search(each.text)), None)
    is_server = bool(said) and any(_SERVER_LINE.search(each.text) for other in others for each in other.kernel)
    if said and not is_server:
        return f"the kernel: {said[:120]}"
    named = _disk_of(line, node)
    if named and named.read_only and "ead-only" in line:
        writable = [each for each in others if (same := _disk_of(line, each)) and not same.read_only]
        if writable:
            return f"{named.path} is mounted read-only on {node.host}, and not on {writable[0].host}"
    return None


def _known_facts(match: Match, node: NodeEvidence, others: tuple[NodeEvidence, ...]) -> str:
    """Describe the facts about the node that explain a cause; empty if there are none."""
    ranks = [rank for rank in node.status.ranks if rank.rank is not None]
    if match.signature.name == "device-ordinal" and node.gpus is not None and ranks:
        return f"{node.host} has {node.gpus} GPUs and runs {len(ranks)} ranks"
    if match.signature.name == "shared-memory":
        shm = next((disk for disk in node.disks if disk.path == "/dev/shm"), None)
        return f"/dev/shm of {node.host}: {shm.free / 1e6:.0f} of {shm.size / 1e6:.0f} MB free" if shm else ""
    if match.signature.name == "disk-full":
        disk = next((disk for disk in node.disks if disk.is_full and disk.path != "/dev/shm"), None)
        return f"{disk.path} is full on other nodes too" if disk and _is_full_elsewhere(disk, others) else ""
    if match.signature.name in ("host-memory", "worker-died"):
        kill = _kernel_kill(node, match.line)
        return f"the kernel's log: {kill.text}" if kill else ""
    return ""


def _nccl_warning(match: Match, reading: Reading) -> str:
    """Return the lines of NCCL before an exception that names only a class of errors; empty if there are none."""
    if match.signature.name not in (*_VAGUE, "nccl-timeout") or "Last error" in match.cause.words:
        return ""
    warned = ["".join(groups) for groups in _NCCL_WARNING.findall(reading.text)][-_LAST_WARNINGS:]
    return f"{_PRINTED_BEFORE}: {warned[0].strip()[:200]}" if warned else ""  # the others follow from it


def _raised_after(match: Match, reading: Reading) -> str:
    """Return the script's own exception after torch's warning that CUDA could not start; empty if there is none."""
    is_warning = match is reading.from_lines and _misses_gpu(reading, match)
    return f"then it raised {reading.member.first_line[:200]}" if is_warning and reading.member else ""


def _said_before(match: Match, reading: Reading) -> str:
    """Return the last words of a process before an exception that only reports another's end; empty if none."""
    is_own = match is reading.match and reading.is_wrapper
    return f"{_PRINTED_BEFORE}: {reading.last_words}" if is_own and reading.last_words else ""


def _kernel_kill(node: NodeEvidence, text: str) -> EvidenceLine | None:
    """Return the line of the kernel's log that names a killed process whose pid is in a text."""
    for line in node.kernel:
        found = _OOM_LINE.search(line.text)
        if found and re.search(
            rf"^.*(?:pid|[Kk]illed|[Ww]orker).*(?<!\d){found[1]}(?!\d)|(?<!\d){found[1]} Killed", text, re.MULTILINE
        ):
            return EvidenceLine(node.host, "kernel log", 0, line.time, line.text)
    return None


def _from_facts(node: NodeEvidence, rank: RankEnd, reading: Reading) -> Attribution | None:
    """Return a cause that the kernel log or a device proves, if the job's log does not mention it."""
    code = _SHELL_CODES.get(rank.code or 0, rank.code)
    text = reading.text[-4000:]
    died = reading.match is not None and reading.match.signature.name == "worker-died"
    child_killed = reading.member is not None and bool(_CHILD_KILLED.search(reading.member.exception))
    child_killed |= reading.is_wrapper and _explanation(reading) is None
    kill = _kernel_kill(node, text) if code == KILL or died or child_killed or "Killed" in text else None
    is_named = kill is not None
    if kill is None and child_killed:
        kill = _recent_kill(node, rank)
    if kill:
        cause = Cause(
            Kind.MEMORY, "host-memory", f"the kernel's OOM killer ended one of its processes: {kill.text}", _OOM_FIX
        )
        return Attribution(cause, CERTAIN if is_named else PROBABLE, (kill,))
    if code == KILL and rank.code != KILL and reading.traceback is None and reading.from_lines is None:
        return _killed_below(node, rank)
    if (sick := _gpu_fault(node, reading) or (_memory_fault(node, rank) if code in (KILL, _BUS) else None)) is not None:
        return sick
    shm = next((disk for disk in node.disks if disk.path == "/dev/shm"), None)
    if code == _BUS and shm and (shm.is_full or shm.size < _SMALL_SHM_BYTES):
        words = f"SIGBUS ended it, and /dev/shm of {node.host} has {shm.free / 1e6:.0f} of {shm.size / 1e6:.0f} MB free"
        fix = "fewer data loader workers, or a larger /dev/shm (of containers: --shm-size)"
        return Attribution(Cause(Kind.MEMORY, "shared-memory", words, fix), PROBABLE)
    return None


def _gpu_fault(node: NodeEvidence, reading: Reading) -> Attribution | None:
    """Return the GPU fault that the driver reports, if the exception comes from CUDA."""
    if reading.member is None or not re.search(r"CUDA|cuda|NCCL|CUBLAS|CUDNN|HIP error", reading.member.exception):
        return None
    line = next((each for each in node.kernel if _GPU_FAULT.search(each.text)), None)
    if line is None:
        return None
    words = f"a GPU of the node does not work: {line.text} ({reading.member.first_line[:200]})"
    lines = (EvidenceLine(node.host, "kernel log", 0, line.time, line.text), *_lines(node, reading))
    cause = Cause(Kind.NODE, "gpu-sick", words, _WITHOUT)
    return Attribution(cause, CERTAIN, lines, reading.speaker, by_traceback=True)


def dead_gpu(node: NodeEvidence) -> tuple[EvidenceLine, int | None] | None:
    """Return the kernel's first report of a GPU that stopped working, and the pid that it names.

    A report that names a process of no rank of the job is about another job.

    Parameters
    ----------
    node : NodeEvidence
        The node.

    Returns
    -------
    tuple of (EvidenceLine, int or None), or None
        None if there is no such report.
    """
    pids = {rank.pid for rank in node.status.ranks}
    for line in node.kernel:
        if _DEAD_GPU.search(line.text):
            named = _XID_PID.search(line.text)
            pid = int(named[1]) if named else None
            if pid is None or pid in pids or not any(pids):
                return EvidenceLine(node.host, "kernel log", 0, line.time, line.text), pid
    return None


def gpu_cause(line: EvidenceLine) -> Cause:
    """Return the cause for the kernel's report of a GPU that stopped working.

    Parameters
    ----------
    line : EvidenceLine
        The report.

    Returns
    -------
    Cause
        Of kind NODE.
    """
    return Cause(Kind.NODE, "gpu-sick", f"a GPU of the node stopped working: {line.text}", _WITHOUT)


def _memory_fault(node: NodeEvidence, rank: RankEnd) -> Attribution | None:
    """Return the memory fault of the machine that the kernel reported shortly before a signal ended a process."""
    line = _recent_line(node, rank, _FAULTY_MEMORY_LINE)
    if line is None:
        return None
    cause = Cause(Kind.NODE, "memory-faulty", f"the memory of the node is faulty: {line.text}", _WITHOUT)
    return Attribution(cause, CERTAIN, (line,))


def _recent_kill(node: NodeEvidence, rank: RankEnd) -> EvidenceLine | None:
    """Return the line of the kernel's OOM killer that was written shortly before a process ended."""
    return _recent_line(node, rank, _OOM_LINE)


def _recent_line(node: NodeEvidence, rank: RankEnd, pattern: re.Pattern[str]) -> EvidenceLine | None:
    ended = (rank.ended or node.status.now) - node.status.skew_s
    recent = [line for line in node.kernel if 0 <= ended - line.time + 1 <= _OOM_BEFORE_S]
    line = next((line for line in recent if pattern.search(line.text)), None)
    return EvidenceLine(node.host, "kernel log", 0, line.time, line.text) if line else None


def _killed_below(node: NodeEvidence, rank: RankEnd) -> Attribution:
    """Return the cause if a shell or a wrapper reports that SIGKILL ended its program."""
    kill = _recent_kill(node, rank)
    how = f"it ended with exit code {rank.code}: SIGKILL ended the program that it ran"
    if kill:
        words = f"{how}, by the kernel's OOM killer: {kill.text}"
        return Attribution(Cause(Kind.MEMORY, "host-memory", words, _OOM_FIX), PROBABLE, (kill,))
    fix = f"most often the host's memory ran out: {_OOM_FIX}; {signal_sender.ASK}"
    return Attribution(Cause(Kind.MEMORY, "host-memory", f"{how}, most often because memory ran out", fix), POSSIBLE)


def _full_log_disk(node: NodeEvidence, others: tuple[NodeEvidence, ...]) -> Cause | None:
    """Return a cause if the disk of the logs is full: no traceback could be written then."""
    disk = next(iter(node.disks), None)  # the disk of the job's folder
    if disk is None or not disk.size or disk.free >= _MIN_FREE_BYTES:
        return None
    words = f"the disk that holds its logs is full, so no error could be logged: {disk.path}"
    kind = Kind.SCRIPT if _is_full_elsewhere(disk, others) else Kind.NODE
    return Cause(kind, "disk-full", words, "free space there, or set torchfab.node_dir to another disk")


# ---- causes without a signature


def _lines(node: NodeEvidence, reading: Reading, text: str = "") -> tuple[EvidenceLine, ...]:
    if not reading.path:
        return ()
    shown = text or (reading.member.first_line if reading.member else "")
    shown = shown or next(iter(last_lines(reading.text, 1)), "")
    if not shown.strip():
        return ()
    return (EvidenceLine(node.host, reading.path, reading.line, reading.time, " ".join(shown.split())[:300]),)


def _records(node: NodeEvidence, cause: Cause) -> tuple[EvidenceLine, ...]:
    line = next((each for each in node.kernel if each.text in cause.words), None)
    return (EvidenceLine(node.host, "kernel log", 0, line.time, line.text),) if line else ()


def _launcher_cause(name: str, code: int | None, reading: Reading) -> Cause:
    raised = reading.traceback.last_line[:300] if reading.traceback else ""
    how = f"raised {raised}" if raised else f"ended with {describe_exit_code(code or 0)}"
    fix = "see its last lines; to see what it runs: fab launch-... --dry-run"
    return Cause(Kind.UNKNOWN, "launcher", f"the {name} {how}", fix)


def describe_exception(reading: Reading) -> str:
    """Describe the exceptions that ended a process.

    Parameters
    ----------
    reading : Reading
        With a traceback.

    Returns
    -------
    str
        The cause first, then the last exception that followed from it.
    """
    assert reading.traceback is not None
    assert reading.member is not None
    members, first = reading.traceback.members, reading.member.first_line[:300]
    last = members[-1]
    link = reading.traceback.links[-1] if reading.traceback.links else ""
    if last is reading.member or link in ("nested", "group") or last.first_line == reading.member.first_line:
        others = (
            [each.first_line[:100] for each in members if each is not reading.member][:-1] if link == "group" else []
        )
        return first + (f" (and {'; '.join(others)})" if others else "")
    joint = "and because of it" if link == "direct" else "and, while handling it,"
    return f"{first} ({joint} {last.first_line[:200]})"


def _script_attribution(node: NodeEvidence, code: int | None, reading: Reading) -> Attribution:
    lines = _lines(node, reading)
    signal = _SHELL_CODES.get(code or 0, code)
    ended_by_python = code is None or code >= 0 or code == _ABORT  # torch's threads abort when an exception ends Python
    if reading.traceback and ended_by_python and (reading.is_final or code in (1, None)) and not (signal or 0) < _ABORT:
        is_main = reading.traceback.role is Role.MAIN and reading.is_final
        certainty = CERTAIN if is_main and not reading.is_wrapper else PROBABLE
        words = f"the script raised {describe_exception(reading)}"
        is_symptom = reading.speaker in (Speaker.DISTRIBUTED, Speaker.COMMUNICATION, Speaker.WORKER)
        is_symptom |= reading.is_wrapper and reading.speaker is not Speaker.SUBPROCESS
        fix = "see the traceback"
        if reading.is_wrapper and reading.last_words:
            words += f"; {_PRINTED_BEFORE}: {reading.last_words}"
            fix = "see what it printed before the traceback: fab logs"
        cause = Cause(Kind.SCRIPT, "exception", words, fix, is_symptom)
        return Attribution(cause, certainty, lines, reading.speaker, by_traceback=True)
    if signal is not None and signal < 0:
        how = describe_exit_code(signal) if signal == code else f"exit code {code}: {describe_exit_code(signal)}"
        how += f"; it printed: {reading.last_words}" if reading.last_words else ""
        fix = "fab logs shows its last lines; to see where: --env PYTHONFAULTHANDLER=1"
        if crashed_in(reading.text):
            fix = "see which library that line calls, and whether it fits the others that are installed: fab doctor"
        return Attribution(Cause(Kind.SCRIPT, "crash", f"it crashed in native code ({how})", fix), PROBABLE, lines)
    if reading.uncaught:
        words = f"its log reports {reading.uncaught}"
        return Attribution(Cause(Kind.SCRIPT, "exception", words, "see its last lines"), POSSIBLE, lines)
    if code is None:
        return Attribution(Cause(Kind.UNKNOWN, "unknown", "its exit code was not recorded"), POSSIBLE, lines)
    if code in signal_sender.SHELL_SIGNALS:
        how = f"it ended with exit code {code}, the usual one after {describe_exit_code(128 - code)}"
        cause = Cause(Kind.KILLED, "ended", f"{how}; its sender is unknown", signal_sender.ASK)
        return Attribution(cause, POSSIBLE, lines)
    return _exit_code_attribution(node, code, reading)


def _exit_code_attribution(node: NodeEvidence, code: int, reading: Reading) -> Attribution:
    words, lines = f"the script ended itself with exit code {code}", _lines(node, reading)
    if not reading.last_words:
        fix = "its log does not show why: see its last lines, and what the script does before this exit"
        return Attribution(Cause(Kind.SCRIPT, "exit-code", words, fix), POSSIBLE, lines)
    words += f"; it printed: {reading.last_words}"
    lines = _lines(node, reading, reading.last_words)
    return Attribution(Cause(Kind.SCRIPT, "exit-code", words, "see its last lines"), PROBABLE, lines)


# ---- signals


def _signal_cause(node: NodeEvidence, process: ProcessStatus, code: int, pid: int | None) -> Cause | None:
    """Return the signal that ended a process, and its sender; None if the exit code alone does not prove a signal."""
    end = node.exit_records.get(process.name, {})
    signal = end.get("asked")
    if node.status.stop_asked is not None:
        return Cause(Kind.STOPPED, "stopped", "fab stop ended it")
    if signal and (code != KILL or end.get("killed")):
        return Cause(Kind.KILLED, "asked", _SUPERVISOR_SIGNALS.get(signal, f"its supervisor received {signal}"))
    if code == KILL:
        found = _out_of_memory(node, process, pid) or signal_sender.sender_of(node, process, code, pid)
        return found or _external_kill(node)
    found = signal_sender.sender_of(node, process, code, pid) or signal_sender.external_sender(node, process, code, pid)
    return found or (_unknown_sender(code) if code < 0 else None)


def _out_of_memory(node: NodeEvidence, process: ProcessStatus, pid: int | None) -> Cause | None:
    by_kernel = next((line.text for line in node.kernel if pid and f"Killed process {pid} " in f"{line.text} "), "")
    count = node.exit_records.get(process.name, {}).get("oom_kills", 0)
    if by_kernel:
        return Cause(Kind.MEMORY, "host-memory", f"the kernel's OOM killer ended it: {by_kernel}", _OOM_FIX)
    if count > 0:
        times = "once" if count == 1 else f"{count} times"
        words = f"SIGKILL ended it, and the OOM killer struck {times} in its control group meanwhile"
        return Cause(Kind.MEMORY, "host-memory", words, _OOM_FIX)
    return None


def _external_kill(node: NodeEvidence) -> Cause:
    words = "SIGKILL came from outside: torchfab did not send it"
    if node.kernel_unread:
        words += f"; it may have been the OOM killer: the kernel's log cannot be read ({node.kernel_unread})"
        return Cause(
            Kind.KILLED, "killed", words, f"check the kernel log: sudo dmesg -T | grep -i kill (on {node.host})"
        )
    return Cause(Kind.KILLED, "killed", f"{words}, and neither did the kernel's OOM killer", signal_sender.ASK)


def _unknown_sender(code: int) -> Cause:
    words = f"{describe_exit_code(code)} ended it; its sender is unknown"
    return Cause(Kind.KILLED, "ended", words, signal_sender.ASK)

"""Read the logs of a rank: find the traceback that ended it, and what the lines around it report. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.log_lines import strip_controls
from torchfab.remote.job import log_search
from torchfab.why import signatures, tracebacks
from torchfab.why.evidence import Log, Report
from torchfab.why.signature import Match
from torchfab.why.speakers import Speaker, speaker_of
from torchfab.why.traceback_layouts import shortened
from torchfab.why.tracebacks import Member, Role, Traceback

# Exceptions that only report another failure: the search continues for what they wrap.
_WRAPPERS = re.compile(
    r"^(?:\w+\.)*(?:ChildFailedError|CalledProcessError|ProcessRaisedException|ProcessExitedException|RayTaskError"
    r"|DatasetGenerationError|TrainingFailedError|TuneError|RayActorError|ActorDiedError|WorkerCrashedError"
    r"|BackendCompilerFailed|RetryError|EngineDeadError|RemoteTraceback|_RemoteTraceback|ChildProcessError"
    r"|SubprocessError|SystemExit|InternalTorchDynamoError|ExceptionGroup|BaseExceptionGroup|TaskError|JobFailed\w*"
    r"|Empty|BrokenBarrierError|CancelledError"  # another thread or task had ended before
    r"|UserCodeException|SignalException|SIGTERMException|StartupError|WorkerError|RemoteError|CheckpointException)\b"
)
_PROCESS = r"(?:thread|process(?:es)?|proc\S*|workers?|actors?|child(?:ren)?|engines?)\b"

# Phrases of messages that refer to earlier output.
_LOOK, _ABOVE = r"\b(?i:see|check|look|refer|inspect|consult)\b", r"\b(?:above|below|earlier)\b"
_OUTPUT = r"\b(?:errors?|exceptions?|causes?|messages?|outputs?|logs?|(?:print )?statements?)\b"
_WRAPPING_WORDS = re.compile(
    r"(?:root cause|stack trace|traceback|logs?|error messages?|errors?|exception) (?:above|below)"
    r"|for (?:the )?root cause|due to an (?:exception|error) in a background"
    r"|Engine process failed"
    r"|Engine core initialization failed|[Ww]orker failed with error|^\w+: Caught \w+ in |returned non-zero exit status"
    r"|An error occurred while generating the dataset|process(?:es)? (?:terminated|exited|failed|died) with"
    r"|exited with (?:exit )?(?:code|status) \d|DataLoader worker \(pid\(s\) .*exited unexpectedly"
    r"|background (?:thread|process|loop|task) (?:has )?(?:failed|died|errored)|Error executing job with overrides"
    r"|one or more (?:of the )?(?:workers|(?:sub|child )?processes|ranks)|failed on rank \d+|see the (?:original|inner)"
    rf"|{_PROCESS}.{{0,60}}(?:(?:exited|die[ds]|ended|stopped|crashed|terminated) (?:unexpected|abnormal|abrupt)ly"
    r"|no longer (?:alive|running)|(?:is|are|was|were) dead\b)"
    rf"|{_LOOK}.{{0,60}}(?:\b(?:stack trace|traceback)\b|{_OUTPUT}.{{0,40}}{_ABOVE}|{_ABOVE}.{{0,40}}{_OUTPUT})"
    r"|Error (?:building|compiling) (?:the )?(?:extension|module)"
)
# Output of a dying process after its exception: it does not prove that the script continued.
_NOISE = re.compile(
    r"^\s|^$|frame #\d+: |^Exception raised from|\bNCCL\b|^\[?(?:rank\d+\]:)?\[?[WE]\d{3,4}|Warning: "
    r"|^wandb: |^terminate called"
    r"|leaked (?:semaphore|shared_memory)|^what\(\)|^Aborted|^Fatal Python error|^Current thread|^Thread 0x"
    r"|^={5,}|^-{5,}"
    r"|^Exception (?:ignored|in)|^\*\*\*|^#\d|destroy_process_group|core dumped|^Process |^Traceback|^Extension modules"
)
_UNCAUGHT = re.compile(
    r"(?:^|[\s:|\]>\"(])(?P<raised>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Failure)(?:\([\w.]+\))?: .+)"
)
NO_NEWS = re.compile(log_search.DUMPS)  # dumps of frames and memory
# Hints between two lines of one message.
_HINT = re.compile(r"^(?:note|hint|help|tip): |^\s*=+ (?:note|help)", re.IGNORECASE)
# Words that indicate a reason in the output of a program that fails without a traceback.
_SAYS_WHY = re.compile(
    r"\b(?:errors?|fail(?:ed|ure|s)?|fatal|abort(?:ed|ing)?|invalid|illegal|unrecognized|unknown|cannot|can't|could not"
    r"|couldn't|unable|unsupported|unexpected|not (?:found|exist|supported|allowed|permitted|enough|defined)|no such"
    r"|missing|denied|refused"
    r"|exceed\w*|mismatch\w*|nan|inf|diverge\w*|stopping|giving up|corrupt\w*|requires?|must|expected"
    r"|exceptions?|faults?|hang|hung|crash\w*|killed|died|SIG[A-Z]{3,4})\b"
    r"|MPI_ABORT|panicked|panic:|out of (?:bounds|range)|^what\(\):|smashing|double free|munmap_chunk|^Terminated",
    re.IGNORECASE,
)
_SAYS_LITTLE = re.compile(
    r"^usage: |\b(?:WARN|WARNING|INFO|DEBUG)\b|Warning: |^Failures?:|NO_OTHER_FAILURES|error_file|errors\.html"
    r"|^Try '|^NOTE: |--help|\bit/s\b|0 (?:errors|failed)|^terminate called without"
    r"|^Fatal Python error: (?:Aborted|Segmentation|Bus|Illegal|Floating)"
    r"|^ninja: build stopped|^compilation terminated|^make(?:\[\d+\])?: \*\*\*"
    r"|exits with return code = |sigkill_handler"
    r"|External init callback must run in same thread",  # torch's profiler, started by another thread than the main one
)
# Lines that hold the reason itself, where others of the same message only say that the program ends.
_REASON = re.compile(
    r"^\s*what\(\):|panicked at|\*\*\* Error in|^Abort\(|\b(?:FATAL|CRITICAL)\b|LLVM ERROR|\b[Cc]heck failed"
    r"|\bAssert(?:ion)?\b.*failed"
)
# A progress bar, whole or overwritten in its middle, that a message is appended to.
_BAR = re.compile(r"\d+%\|(?:[^|]*\|\s*\S+ \[[^\]]*\]|[\s#=>\u2580-\u259f]*)")
_LAST_WORDS_LINES = 25
_SUMMARY = re.compile(r"^Error Message Summary:\s*$")  # Paddle
# Exceptions whose message has the output of a compiler, and the line of it that names the error.
_COMPILES = re.compile(r"\b(?:CppCompileError|C\+\+ compile error|[Cc]ompilation failed|Error compiling)\b")
_COMPILER_ERROR = re.compile(
    r"(?::|\)|^(?:ptxas|nvlink|ld(?:\.\w+)?)) ?(?:fatal ?)?(?:error|fatal) *:|^nvcc fatal *:"
    r"|: (?:cannot find -l|undefined reference to)"
)
_MAX_COMPILER_LINES = 200
_MAX_TAIL_LINES = 60
# Lines after an exception by which a process went on from it: many, or some of them this much later, in seconds.
_MAX_LINES_AFTER, _MIN_LINES_AFTER, _WENT_ON_S = 12, 2, 15.0
_MESSAGE_S = 2.0  # all lines of one message are written within this time


@dataclass(frozen=True)
class EvidenceLine:
    """One line that supports a diagnosis.

    Parameters
    ----------
    host, path : str
        The node, and the file; for the kernel log and records, their name.
    line : int
        Its number in the file, from 1; 0 if unknown.
    time : float
        When it was written, in seconds since the epoch; 0 if unknown.
    text : str
        The line.
    """

    host: str
    path: str
    line: int
    time: float
    text: str


@dataclass(frozen=True)
class Reading:
    """The content of the logs of one process.

    Parameters
    ----------
    traceback : Traceback, optional
        The one that probably ended the process.
    member : Member, optional
        The exception in it that names the cause.
    speaker : Speaker
        The source of the exception.
    match : Match, optional
        The signature that the exception matches.
    is_wrapper : bool
        Whether the exceptions only report that something else failed.
    is_final : bool
        Whether the process printed almost nothing after it.
    from_lines : Match, optional
        The signature in the last lines outside tracebacks.
    uncaught : str
        The last exception in a line without a traceback.
    last_words : str
        The program's last line that gives a reason; if the traceback only wraps, the lines before it.
    path : str
        The log that holds the traceback, otherwise the one most recently written; empty if there is none.
    text : str
        The text of that log; without a traceback, of all logs.
    line, time : int, float
        Number in the file (0: unknown) of the traceback's last line or of the matched line, and when it was written.
    """

    traceback: Traceback | None = None
    member: Member | None = None
    speaker: Speaker = Speaker.SCRIPT
    match: Match | None = None
    is_wrapper: bool = False
    is_final: bool = False
    from_lines: Match | None = None
    uncaught: str = ""
    last_words: str = ""
    path: str = ""
    text: str = ""
    line: int = 0
    time: float = 0.0


def read(logs: Sequence[Log], reports: Sequence[Report] = ()) -> Reading:
    """Read the logs of one process.

    Parameters
    ----------
    logs : sequence of Log
        The most recently written first.
    reports : sequence of Report
        Its error files of the last attempt.

    Returns
    -------
    Reading
        Empty if there are no logs.
    """
    path = logs[0].path if logs else ""
    found = [(log, each) for log in reversed(logs) for each in tracebacks.all_tracebacks(log.text)]
    found.sort(key=lambda pair: pair[0].time_of(pair[1].raised))
    text = "\n".join(log.text for log in reversed(logs))
    lines, uncaught = _read_lines(logs)
    reported = [each for report in reports for each in tracebacks.all_tracebacks(report.traceback)]
    logs_by_id = {id(each): log for log, each in found}

    def went_on(before: Traceback, after: Traceback) -> bool:
        log = logs_by_id.get(id(before))
        until = after.line if log is logs_by_id.get(id(after)) else None
        return log is not None and _went_on(log, before, until)

    chosen = choose([each for _, each in found] + reported, went_on)
    if chosen is not None and chosen.role is not Role.MAIN:  # the process may have continued after it
        log = next((log for log, each in found if each is chosen), None)
        chosen = chosen if log is None or _is_final(log, chosen) else None
    if chosen is None:
        log = logs[0] if logs else None
        time = log.written if log else 0.0
        words = last_words(logs)
        return Reading(from_lines=lines, uncaught=uncaught, last_words=words, path=path, text=text, time=time)
    log = next((log for log, each in found if each is chosen), None)
    chosen = _with_summary(chosen, log) if log else chosen
    member, match = pick_member(chosen)
    words = _words_before(log, chosen) if log and is_wrapper(member) else last_words(logs)
    return Reading(
        chosen,
        member,
        speaker_of(chosen.members),
        match,
        is_wrapper=is_wrapper(member),
        is_final=log is None or _is_final(log, chosen),
        from_lines=lines,
        uncaught=uncaught,
        last_words=words,
        path=log.path if log else path,
        text=log.text if log else (logs[0].text if logs else ""),
        line=log.number_of(chosen.raised) if log else 0,
        time=log.time_of(chosen.raised) if log else (logs[0].written if logs else 0.0),
    )


# ---- selection of the traceback and its exception


def choose(
    found: Sequence[Traceback], went_on: Callable[[Traceback, Traceback], bool] = lambda before, after: False
) -> Traceback | None:
    """Return the traceback that shows why a process ended.

    This is the last one that Python does not mark as secondary. If it only reports that something else failed, earlier
    ones are considered.

    Parameters
    ----------
    found : sequence of Traceback
        All of one process, in the order in which they were written.
    went_on : callable
        Whether the process did something else between two of them. Default: never.

    Returns
    -------
    Traceback or None
        None if there is none, or only those of finalisers.
    """
    usable = [each for each in found if each.role is not Role.IGNORED]
    last = next((each for role in Role for each in reversed(usable) if each.role is role), None)
    if last is None:
        return None
    before = usable[: usable.index(last)]
    if _only_wraps(last) or _is_echo(last):
        real = [each for each in before if not _only_wraps(each) and each.role is not Role.WARNED]
        if not _only_wraps(last):  # what a process went on from did not end it when it lost another rank
            real = [each for each in real if not went_on(each, last)]
        own = [each for each in real if not _is_echo(each)] or (real if _only_wraps(last) else [])
        return own[-1] if own else last
    return last


def _only_wraps(traceback: Traceback) -> bool:
    return all(is_wrapper(member) for member in traceback.members)


def _is_echo(traceback: Traceback) -> bool:
    """Return whether a traceback only reports that another process of the rank, or another rank, had ended before."""
    if speaker_of(traceback.members) not in (Speaker.WORKER, Speaker.DISTRIBUTED, Speaker.COMMUNICATION):
        return False
    _, match = pick_member(traceback)
    return match is None or match.cause.is_symptom


def is_wrapper(member: Member | None) -> bool:
    """Return whether an exception only reports that something else failed.

    Parameters
    ----------
    member : Member, optional
        The exception.

    Returns
    -------
    bool
        False without an exception.
    """
    return member is not None and bool(
        _WRAPPERS.match(member.exception) or _WRAPPING_WORDS.search(member.exception.partition("\n")[0])
    )


def pick_member(traceback: Traceback) -> tuple[Member, Match | None]:
    """Return the exception of a traceback that names the cause, and the signature that it matches.

    Parameters
    ----------
    traceback : Traceback
        With all its members.

    Returns
    -------
    Member
        The first one that a signature explains; otherwise the first that wraps nothing.
    Match or None
        None if no signature matches.
    """
    speaker = speaker_of(traceback.members)
    members = [each for each in traceback.members if not is_wrapper(each)] or list(traceback.members)
    matches = [(member, signatures.find(_searched(member), speaker)) for member in members]
    known = [(member, match) for member, match in matches if match and not match.cause.is_symptom]
    return next(iter(known), next(((member, match) for member, match in matches if match), matches[0]))


def _searched(member: Member) -> str:
    """Return the text of an exception in which signatures are searched.

    For some exceptions the message lacks the semaphore that was being created, or the program that was being started.
    """
    frames = [(path.replace("\\", "/").rpartition("/")[2], function) for path, function in member.calls]
    if ("synchronize.py", "__init__") in frames[-1:]:
        return f"SemLock: {member.exception}"
    if any(file == "subprocess.py" for file, _ in frames[-3:]):
        return f"subprocess: {member.exception}"
    return member.exception


def _is_final(log: Log, traceback: Traceback) -> bool:
    """Return whether a process printed almost nothing after a traceback, apart from its consequences."""
    return not _went_on(log, traceback)


def _went_on(log: Log, traceback: Traceback, until: int | None = None) -> bool:
    """Return whether a process did something else after a traceback, before a line of its log."""
    inside = {
        number
        for each in tracebacks.all_tracebacks(log.text)
        if each.line != traceback.line  # they follow from it, or it would not be the one that was chosen
        for number in range(each.line, each.end)
    }
    numbers, raised = [], log.time_of(traceback.raised)
    for number, raw in [*enumerate(log.text.splitlines())][traceback.raised + 1 : until]:
        if number < traceback.end and log.time_of(number) - raised <= _MESSAGE_S:  # a line of its message
            continue
        line = shortened(strip_controls(raw))
        own = traceback.prefix.strip(line)
        if number not in inside and not _NOISE.search(line if own is None else own):
            numbers.append(number)
    if len(numbers) < _MIN_LINES_AFTER:
        return False
    return len(numbers) > _MAX_LINES_AFTER or log.time_of(numbers[-1]) - raised > _WENT_ON_S


def _with_summary(traceback: Traceback, log: Log) -> Traceback:
    """Return a traceback with the error summary that the library prints below it as its cause."""
    below = [strip_controls(line).strip() for line in log.text.splitlines()[traceback.end :]]
    if _COMPILES.search(traceback.last_line):
        return _with_compiler_error(traceback, below[:_MAX_COMPILER_LINES])
    at = next((at for at, line in enumerate(below) if _SUMMARY.match(line)), None)
    if at is None:
        return traceback
    words = [line for line in below[at + 1 : at + 8] if line and not set(line) <= {"-", "="}]
    if not words:
        return traceback
    cause = Member(" ".join(words[:2]), traceback.calls)
    members = (cause, *traceback.members)
    return replace(traceback, exception=cause.exception, members=members, links=("nested", *traceback.links))


def _with_compiler_error(traceback: Traceback, below: Sequence[str]) -> Traceback:
    """Return a traceback whose first exception names the first error that a compiler printed below it."""
    plain = [traceback.prefix.strip(line) or line for line in below]
    error = next((line.strip() for line in plain if _COMPILER_ERROR.search(line)), "")
    if not error:
        return traceback
    cause = replace(traceback.members[0], exception=f"{traceback.last_line}: {error[:300]}")
    return replace(traceback, exception=cause.exception, members=(cause, *traceback.members[1:]))


# ---- lines without a traceback


def last_words(logs: Sequence[Log]) -> str:
    """Return the last lines in which a program gives the reason for its failure.

    Parameters
    ----------
    logs : sequence of Log
        Of one process.

    Returns
    -------
    str
        The first and the last of consecutive such lines, of stderr if possible; otherwise the last line of stderr.
    """
    last = ""
    for log in sorted(logs, key=lambda log: not log.path.endswith("stderr.log")):
        lines = _plain(log.text.splitlines())
        if words := _saying_why(lines):
            return words
        if log.path.endswith("stderr.log") and lines and not _SAYS_LITTLE.search(lines[-1]):
            last = lines[-1][:300]  # what `sys.exit("...")` prints
    return last


def _words_before(log: Log, traceback: Traceback) -> str:
    """Return the lines before a traceback, outside other tracebacks, in which a program gives a reason."""
    inside = _inside_tracebacks(log)
    lines = [line for number, line in enumerate(log.text.splitlines()[: traceback.line]) if number not in inside]
    return _saying_why([line for line in _plain(lines) if not _WRAPPING_WORDS.search(line)])


def _inside_tracebacks(log: Log) -> set[int]:
    return {number for each in tracebacks.all_tracebacks(log.text) for number in range(each.line, each.end)}


def _plain(lines: Sequence[str]) -> list[str]:
    """Return the last non-blank lines, without frames and progress bars."""
    news = [line for line in lines if line.strip() and not NO_NEWS.search(line) and not _HINT.match(line)]
    plain = [_BAR.sub("", shortened(strip_controls(line))).strip(" │|\t") for line in news[-_LAST_WORDS_LINES:]]
    return [line for line in plain if line]


def _saying_why(lines: Sequence[str]) -> str:
    """Return the last lines that give a reason for a failure: the first and the last of consecutive ones."""
    said = [bool(_SAYS_WHY.search(line)) and not _SAYS_LITTLE.search(line) for line in lines]
    if not any(said):
        return ""
    last = first = len(said) - 1 - said[::-1].index(True)
    while first and said[first - 1]:
        first -= 1
    first = next((at for at in range(first, last + 1) if _REASON.search(lines[at])), first)
    if re.sub(r"\d+", "", lines[first]) == re.sub(r"\d+", "", lines[last]):
        return lines[last][:300]
    return f"{lines[first][:200]} ... {lines[last][:200]}"


def _news_backwards(log: Log) -> Iterator[str]:
    """Yield the relevant lines outside tracebacks, the last one first."""
    inside = _inside_tracebacks(log)
    for number, raw in reversed([*enumerate(log.text.splitlines())]):
        line = shortened(strip_controls(raw)) if number not in inside else ""
        if line.strip() and not NO_NEWS.search(line):
            yield line


def _read_lines(logs: Sequence[Log]) -> tuple[Match | None, str]:
    """Return the signature and the last exception in the last lines outside tracebacks."""
    lines: list[str] = []
    for log in reversed(logs):
        lines += [*itertools.islice(_news_backwards(log), _MAX_TAIL_LINES)][::-1]
    last = lines[-_MAX_TAIL_LINES:]
    raised = [match["raised"].strip() for line in last if (match := _UNCAUGHT.search(line))]
    return signatures.find("\n".join(last)), raised[-1][:300] if raised else ""

"""Profile a rank with torch's own profiler, from a thread of its worker server; loaded by `probe.py` when it is asked.

All threads are recorded. The trace is written into the folder of the probe as a Chrome trace; the answer says when it
began and ended by this machine's clock, and which collectives the flight recorder saw.

Two profilers of one process at once end it (torch 2.13: SIGSEGV). So it refuses where the script profiles itself, and a
profiler that the script starts meanwhile waits for the end. Standard library of Python 3.9, and torch.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NATIVE = "torch._C._distributed_c10d"
MAX_SECONDS = 60.0
_MAX_LEAD_S = 120.0
_EXIT_S = 30.0  # for the trace to be written
_CALLS_S = 60.0  # a collective may run so long after its call
_busy = threading.Lock()
_ended = threading.Event()  # the program ends


class ProfileError(Exception):
    """Why the rank is not profiled."""


def answer(request: Any, response: Any, path: str) -> None:
    """Answer a request of the node program.

    Parameters
    ----------
    request : object
        As the worker server gives it: `start` in seconds since the epoch, and `seconds`; `check`: only whether it can.
    response : object
        As the worker server gives it.
    path : str
        Where to write the trace: `*.json.gz`.
    """
    try:
        if request.get_param("check"):
            report = check()
        else:
            report = profile(float(request.get_param("start")), float(request.get_param("seconds")), path)
    except ProfileError as error:
        report = {"problem": str(error)}
    except Exception as error:  # it must not reach C++
        report = {"problem": f"{type(error).__name__}: {error}"}
    response.set_content(json.dumps(report), "application/json")


def check() -> dict[str, Any]:
    """Check whether this rank can be profiled.

    Returns
    -------
    dict
        `problem`: empty, because an exception says what is wrong; `torch`: its version.
    """
    torch: Any = sys.modules["torch"]
    _new_profile()
    _refuse_second()
    return {"problem": "", "torch": str(torch.__version__)}


def _new_profile() -> Any:
    torch: Any = sys.modules["torch"]
    if getattr(torch.__spec__, "_initializing", False):  # an import in this thread could wait for the main thread's
        raise ProfileError("the script still imports torch")
    try:
        from torch._C._profiler import _ExperimentalConfig
        from torch.profiler import profile as torch_profile

        return torch_profile(experimental_config=_ExperimentalConfig(profile_all_threads=True))
    except (ImportError, TypeError):
        raise ProfileError(f"torch {torch.__version__} cannot profile all threads; 2.13 can") from None


def _refuse_second() -> None:
    """Refuse where the script has a profiler that is active, or that warms up."""
    profiler: Any = sys.modules["torch.autograd.profiler"]
    if _busy.locked():
        raise ProfileError("another fab profile runs")
    if profiler._is_profiler_enabled or _has_schedule_at_work():
        raise ProfileError("the script profiles itself with torch.profiler, and torch bears only one at a time")


def _has_schedule_at_work() -> bool:
    import gc

    outer: Any = sys.modules["torch.profiler.profiler"]
    waiting = outer.ProfilerAction.NONE
    found = [each for each in gc.get_objects() if issubclass(type(each), outer.profile)]
    return any(getattr(each, "current_action", waiting) is not waiting and _is_entered(each) for each in found)


def _is_entered(profile: Any) -> bool:
    """Return whether it has begun to record: one that has ended keeps its last action, but has its results."""
    inner = getattr(profile, "profiler", None)
    return inner is not None and getattr(inner, "kineto_results", None) is None


def profile(start: float, seconds: float, path: str) -> dict[str, Any]:
    """Profile this rank, and write its trace.

    Parameters
    ----------
    start : float
        When to begin, in seconds since the epoch.
    seconds : float
        How long.
    path : str
        Where to write the trace.

    Returns
    -------
    dict
        `problem` (empty), `begun`, `ended`, `size` (bytes), `devices` (CUDA_VISIBLE_DEVICES), `groups`, `calls`: rows
        of group, number, operation, when it was called.
    """
    own = _new_profile()
    _refuse_second()
    if not _busy.acquire(blocking=False):
        raise ProfileError("another fab profile runs")
    try:
        begun, ended = _record_alone(own, start, min(seconds, MAX_SECONDS))
        if _ended.is_set():
            raise ProfileError("the rank ends")
        own.export_chrome_trace(path)
    finally:
        _busy.release()
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    times = {"begun": begun, "ended": ended, "size": os.path.getsize(path), "devices": devices}
    return {"problem": "", **times, "calls": calls(begun - _CALLS_S, ended)}


def _record_alone(own: Any, start: float, seconds: float) -> tuple[float, float]:
    release = hold_others()
    try:
        if sys.modules["torch.autograd.profiler"]._is_profiler_enabled:
            raise ProfileError("the script has started a profiler of its own")
        return _record(own, start, seconds)
    finally:
        release()


def _record(own: Any, start: float, seconds: float) -> tuple[float, float]:
    own.prepare_trace()  # the first time, CUPTI takes long
    _pause(min(_MAX_LEAD_S, max(0.0, start - time.time())))
    own.start_trace()
    begun = time.time()
    _pause(seconds)
    ended = time.time()
    own.stop_trace()
    return begun, ended


def _pause(seconds: float) -> None:
    """Sleep, or until the program ends."""
    _await(_ended.is_set, seconds)


def _await(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition, at most so long; a timed wait of a lock does not return under libfaketime."""
    until = time.monotonic() + seconds
    while not condition() and (left := until - time.monotonic()) > 0:
        time.sleep(min(0.05, left))


def hold_others() -> Any:
    """Let a profiler that the script starts wait until ours has ended.

    Returns
    -------
    callable
        Ends that.
    """
    inner: Any = sys.modules["torch.autograd.profiler"].profile
    original, ours, over = inner._prepare_trace, threading.get_ident(), threading.Event()

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != ours:
            _await(over.is_set, _MAX_LEAD_S + MAX_SECONDS)
        return original(self, *args, **kwargs)

    def release() -> None:
        inner._prepare_trace = original
        over.set()

    inner._prepare_trace = prepare
    return release


def end() -> None:
    """End a profile that runs, before the program ends: without that, torch may crash at the end of the process."""
    _ended.set()
    _await(lambda: not _busy.locked(), _EXIT_S)


def calls(since: float, until: float) -> list[list[Any]]:
    """Return the collectives that this rank has called, by torch's flight recorder.

    Parameters
    ----------
    since, until : float
        When, in seconds since the epoch.

    Returns
    -------
    list of list
        Rows of group, number, operation, when it was called; in the order of calling.
    """
    native, found = sys.modules[NATIVE], []
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        if hasattr(native, name):
            entries = json.loads(getattr(native, name)(True, False)).get("entries") or ()
            found += [each for each in entries if not each.get("is_p2p")]
    rows = [
        [
            str(each["process_group"][0]),
            each["collective_seq_id"],
            each["profiling_name"],
            each["time_created_ns"] / 1e9,
        ]
        for each in sorted(found, key=lambda each: each["record_id"])
    ]
    return [row for row in rows if since <= row[3] <= until]

"""Query the ranks' probes (`torchfab/remote/shims/probe.py`) for their collectives and stacks, and save the answers.

torch's worker server speaks HTTP over a Unix socket. Each query has its own socket, and all are sent at once, so that
a rank that does not answer does not delay others.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import select
import socket
import time

from torchfab.remote import job_files, procfs, thread_dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

FOLDER = "probe"
# Suffixes and prefix of the files in it, written by the supervisor, by the rank itself, and by NCCL's watchdog.
KEPT, OF_RANK, OF_NCCL = ".kept.json", ".json", "nccl-"
_IN_COLLECTIVE = "/torch/distributed/"
# The last one needs Python's lock in the rank, so it may not be answered although the others are.
RECORDER, NCCL_RECORDER, TRACEBACK, GROUPS = "fr_trace_json", "dump_nccl_trace_json", "dump_traceback", "torchfab"
QUESTIONS = (RECORDER, NCCL_RECORDER, TRACEBACK, GROUPS)
LATEST = 64  # calls of each process group that are returned
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_PATH_BYTES = 100


class Probe:
    """The probe of one rank.

    Parameters
    ----------
    folder : str
        The folder of its socket.
    name : str
        `RANK-PID`.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.path = os.path.join(folder, f"{name}.sock")
        rank, _, pid = name.partition("-")
        self.rank, self.pid = int(rank), int(pid)

    def is_alive(self) -> bool:
        """Return whether its process exists."""
        return procfs.is_running(self.pid)


def find(process_folder: str) -> list[Probe]:
    """Return the probes of the running ranks of a process.

    Parameters
    ----------
    process_folder : str
        The process's folder.

    Returns
    -------
    list of Probe
        Sorted by rank.
    """
    folder = os.path.join(process_folder, FOLDER)
    names = [name[: -len(".sock")] for name in _list(folder) if name.endswith(".sock")]
    probes = [Probe(folder, name) for name in names if _is_name(name)]
    return sorted((probe for probe in probes if probe.is_alive()), key=lambda probe: (probe.rank, probe.pid))


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # the job was launched without probes
        return []


def _is_name(name: str) -> bool:
    rank, dash, pid = name.partition("-")
    return bool(dash) and rank.isdigit() and pid.isdigit()


def collectives(folder: str, timeout_s: float) -> list[dict[str, Any]]:
    """Return the collectives of the running ranks on this node that have a probe.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    timeout_s : float
        Time limit for all probes together, in seconds.

    Returns
    -------
    list of dict
        As `describe` returns them, with `stack`: the main thread, the innermost frame first.
    """
    probes = [probe for name in job_files.processes(folder) for probe in find(os.path.join(folder, name))]
    answers = ask(probes, timeout_s)
    now = time.time()
    return [
        {**summarize(probe.rank, probe.pid, answer, now), "stack": _main_stack(answer)}
        for probe, answer in zip(probes, answers)
        if RECORDER in answer or NCCL_RECORDER in answer
    ]


def _main_stack(answer: dict[str, bytes]) -> list[Any]:
    threads = thread_dump.parse(answer.get(TRACEBACK, b"").decode(errors="replace"))
    return list(threads[0]["frames"]) if threads else []


# ---- answers saved for `fab why`


def keep(folder: str, timeout_s: float) -> None:
    """Write the collectives of the running ranks, which are about to end, into files beside their sockets.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    timeout_s : float
        Time limit for all probes together, in seconds.
    """
    probes = [probe for name in job_files.processes(folder) for probe in find(os.path.join(folder, name))]
    if not probes:
        return
    folders = {probe.pid: os.path.dirname(probe.path) for probe in probes}
    for found in collectives(folder, timeout_s):
        job_files.write_json(os.path.join(folders[found["pid"]], f"{found['rank']}-{found['pid']}{KEPT}"), found)


def kept(folder: str) -> list[dict[str, Any]]:
    """Return the saved collectives of the last process of each rank.

    The supervisor's file has precedence: the rank itself writes later, when other ranks may already have ended. The
    file of NCCL's watchdog contains no pid.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    list of dict
        As `collectives` returns them.
    """
    best: dict[int, tuple[bool, dict[str, Any]]] = {}
    places = [os.path.join(folder, name, FOLDER) for name in job_files.processes(folder)]
    paths = [os.path.join(place, name) for place in places for name in _list(place)]
    for path in sorted(paths, key=_modified):
        record = _read_kept(path)
        if record is None:
            continue
        is_best, known = best.get(record["rank"], (False, {}))
        if not known or not (record["pid"] == 0 or (is_best and record["pid"] == known["pid"])):
            best[record["rank"]] = path.endswith(KEPT), record
    return [best[rank][1] for rank in sorted(best)]


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _read_kept(path: str) -> dict[str, Any] | None:
    name = os.path.basename(path)
    try:
        if name.endswith(KEPT):
            with open(path, encoding="utf-8") as file:
                return dict(json.load(file))
        if name.endswith(OF_RANK):
            with open(path, encoding="utf-8") as file:
                return _of_rank(json.load(file))
        if name.startswith(OF_NCCL) and name[len(OF_NCCL) :].isdigit():
            with open(path, "rb") as raw:
                dump = _Unpickler(raw).load()
            return {**describe(int(name[len(OF_NCCL) :]), 0, _modified(path), [dump], {}, {}), "stack": []}
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, AttributeError, pickle.UnpicklingError):
        pass  # its process ended while writing it
    return None


def _of_rank(record: dict[str, Any]) -> dict[str, Any]:
    """Return the collectives that a rank wrote after an exception; the one that raised it counts as not ended."""
    stack, dump = record["stack"], record["recorder"]
    entries = dump.get("entries") or []
    if entries and stack and _IN_COLLECTIVE in stack[0][1]:
        last = max(entries, key=lambda entry: entry["record_id"])
        last.update(retired=False, state="started")
    found = describe(record["rank"], record["pid"], record["time"], [dump], record["groups"], {})
    return {**found, "stack": stack}


class _Unpickler(pickle.Unpickler):
    """Reads NCCL's dump, which consists of numbers, texts, lists and dicts; it executes no code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class for a name in the dump: only torch's typed lists are allowed."""
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _first
        raise pickle.UnpicklingError(f"{module}.{name}")


def _first(value: Any, _: str) -> Any:
    return value


# ---- queries


def ask(probes: Sequence[Probe], timeout_s: float, questions: Sequence[str] = QUESTIONS) -> list[dict[str, bytes]]:
    """Query all probes at once.

    Parameters
    ----------
    probes : sequence of Probe
        The probes.
    timeout_s : float
        Time limit for all of them together, in seconds.
    questions : sequence of str
        Names of handlers. Default: all.

    Returns
    -------
    list of dict of str to bytes
        The answers of each probe by name of the handler; missing or late answers are left out.
    """
    asked = [(at, question) for at in range(len(probes)) for question in questions]
    bodies = fetch([(probes[at].path, question) for at, question in asked], timeout_s)
    found: list[dict[str, bytes]] = [{} for _ in probes]
    for (at, question), body in zip(asked, bodies):
        if body is not None:
            found[at][question] = body
    return found


def fetch(asked: Sequence[tuple[str, str]], timeout_s: float) -> list[bytes | None]:
    """Send all requests at once, and return the answers that arrived in time.

    Parameters
    ----------
    asked : sequence of (str, str)
        Path of the socket, and name of the handler.
    timeout_s : float
        Time limit for all of them together, in seconds.

    Returns
    -------
    list of bytes or None
        The body of each answer; None for a missing answer, or an error.
    """
    deadline = time.monotonic() + timeout_s
    opened = {number: connection for number, each in enumerate(asked) if (connection := _connect(*each))}
    received = {number: bytearray() for number in opened}
    waiting = {connection.fileno(): number for number, connection in opened.items()}
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting and (left_s := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(1000 * left_s):
            if not _receive(opened[waiting[fd]], received[waiting[fd]]):
                poll.unregister(fd)
                del waiting[fd]
    for connection in opened.values():
        connection.close()
    late = set(waiting.values())
    return [_body(received[at]) if at in received and at not in late else None for at in range(len(asked))]


def _connect(path: str, handler: str) -> socket.socket | None:
    """Connect and send the request; HTTP 1.0: the server closes the connection after its answer."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    try:
        _connect_to(connection, path)
        connection.send(f"POST /handler/{handler} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
    except OSError:  # it has ended, or its queue of connections is full
        connection.close()
        return None
    return connection


def _connect_to(connection: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        connection.connect(path)
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def _receive(connection: socket.socket, received: bytearray) -> bool:
    """Receive the data that has arrived; return whether more may follow."""
    try:
        data = connection.recv(256 * 1024)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EINTR)
    received += data
    return bool(data) and len(received) < _MAX_ANSWER_BYTES


def _body(received: bytearray) -> bytes | None:
    head, separator, body = bytes(received).partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return body if separator and words[1:2] == [b"200"] else None


# ---- answers


def summarize(rank: int, pid: int, answers: dict[str, bytes], now: float) -> dict[str, Any]:
    """Return the collectives of a rank from the answers of its probe.

    Parameters
    ----------
    rank, pid : int
        The rank.
    answers : dict of str to bytes
        As `ask` returns them.
    now : float
        Time of the answers, in seconds since the epoch.

    Returns
    -------
    dict
        As `describe` returns it.
    """
    own = _object(answers.get(GROUPS, b""))
    dumps = [_object(answers[question]) for question in (RECORDER, NCCL_RECORDER) if question in answers]
    return describe(rank, pid, now, dumps, own.get("groups") or {}, own.get("frames") or {})


def describe(
    rank: int, pid: int, now: float, dumps: Iterable[dict[str, Any]], groups: dict[str, Any], frames: dict[str, Any]
) -> dict[str, Any]:
    """Return the collectives of a rank from dumps of the flight recorder (version 2 of its format).

    Parameters
    ----------
    rank, pid : int
        The rank.
    now : float
        Time of the dumps, in seconds since the epoch.
    dumps : iterable of dict
        The dumps: of CPU backends, of NCCL.
    groups : dict
        Description and ranks by the group's name.
    frames : dict
        As the probe returns them.

    Returns
    -------
    dict
        `rank`, `pid`, `time`; `groups`: rows of name, description, ranks (empty: not known); `calls`: rows of group,
        number, operation, sizes and types of the input, sizes and types of the output, whether it has ended, seconds
        since its call, and its frames, the latest of each group.
    """
    known = {name: [str(each[0]), [int(member) for member in each[1]]] for name, each in groups.items()}
    calls: list[list[Any]] = []
    for dump in dumps:
        for name, config in _groups_of(dump).items():
            known.setdefault(name, config)
        latest: dict[str, list[list[Any]]] = {}
        for entry in dump.get("entries") or ():
            if not entry.get("is_p2p"):
                call = _call(entry, frames, now)
                latest.setdefault(call[0], []).append(call)
                known.setdefault(call[0], [entry["process_group"][1], []])
        calls += [call for each in latest.values() for call in each[-LATEST:]]
    rows = [[name, *each] for name, each in known.items()]
    return {"rank": rank, "pid": pid, "time": now, "groups": rows, "calls": calls}


def _groups_of(dump: dict[str, Any]) -> dict[str, list[Any]]:
    found = {}
    for name, config in (dump.get("pg_config") or {}).items():
        ranks = config.get("ranks") or "[]"
        members = json.loads(ranks) if isinstance(ranks, str) else list(ranks)
        if name and members:
            found[name] = [config.get("desc", ""), members]
    return found


def _call(entry: dict[str, Any], frames: dict[str, Any], now: float) -> list[Any]:
    backend, _, operation = entry["profiling_name"].rpartition(":")
    own = entry.get("frames") or ()
    rows = [[frame["name"], frame["filename"], frame["line"]] for frame in own]
    ended = bool(entry.get("retired")) or entry.get("state") == "completed"
    age_s = max(0.0, now - entry["time_created_ns"] / 1e9)
    tensors = [entry.get(key) or [] for key in ("input_sizes", "input_dtypes", "output_sizes", "output_dtypes")]
    calls = rows or frames.get(f"{backend} {entry['record_id']}") or []
    return [entry["process_group"][0], entry["collective_seq_id"], operation, *tensors, ended, age_s, calls]


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

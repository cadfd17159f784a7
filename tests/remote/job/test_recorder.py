"""Questions to probes over real sockets, and the flight recorder's dumps as torch 2.13 writes them."""

from __future__ import annotations

import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote.job import recorder

# As torch 2.13 wrote it over gloo, without the fields that are not read.
ENTRY = {
    "collective_seq_id": 7,
    "input_dtypes": ["Float"],
    "input_sizes": [[4]],
    "is_p2p": False,
    "output_dtypes": ["Float"],
    "output_sizes": [[2, 4]],
    "process_group": ["0", "default_pg"],
    "profiling_name": "gloo:all_gather",
    "record_id": 7,
    "retired": False,
    "state": "scheduled",
    "time_created_ns": 1_795_961_547_000_000_000,
}
NOW = 1_795_961_549.5
GLOO = {"pg_config": {"": {"name": "", "desc": "", "ranks": "[]"}}, "entries": [ENTRY]}


class Server:
    """A server on a Unix socket that answers each path with a body; an empty one: never."""

    def __init__(self, path: Path, bodies: Mapping[str, bytes]) -> None:
        self.bodies, self.socket = bodies, socket.socket(socket.AF_UNIX)
        folder = os.open(path.parent, os.O_RDONLY)
        self.socket.bind(f"/proc/self/fd/{folder}/{path.name}")
        self.socket.listen(16)
        self.held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self._answer(connection, connection.recv(4096).split()[1].decode())

    def _answer(self, connection: socket.socket, path: str) -> None:
        self.held.append(connection)
        body = self.bodies.get(path.rpartition("/")[2])
        if body is None:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\nHandler not found")
        elif body:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        if body != b"":
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the sockets of a process, with a path beyond the kernel's limit."""
    path = tmp_path.joinpath("agent-" + 90 * "x", recorder.FOLDER)
    path.mkdir(parents=True)
    return path


def test_answers_come_by_question_and_what_is_missing_delays_nobody(folder: Path) -> None:
    pid = os.getpid()
    servers = [
        Server(folder / f"0-{pid}.sock", {"fr_trace_json": b"{}", "dump_traceback": b"T" * 300_000}),
        Server(folder / f"1-{pid}.sock", {"fr_trace_json": b"", "torchfab": b"x"}),
    ]
    (folder / f"2-{pid}.sock").touch()  # no socket
    probes = recorder.find(str(folder.parent))
    assert [probe.rank for probe in probes] == [0, 1, 2]
    begun = time.monotonic()
    zero, one, two = recorder.ask(probes, 0.5)
    assert 0.4 < time.monotonic() - begun < 5
    assert (zero, one, two) == ({"fr_trace_json": b"{}", "dump_traceback": b"T" * 300_000}, {"torchfab": b"x"}, {})
    for server in servers:
        server.socket.close()


def test_only_sockets_of_running_processes_are_probes(folder: Path) -> None:
    for name in ("0-99999999.sock", "x.sock", "1-2-3.sock", f"4-{os.getpid()}.json", "-1.sock"):
        (folder / name).touch()
    assert recorder.find(str(folder.parent)) == []
    assert recorder.find(str(folder / "none")) == []


def test_a_dump_becomes_rows_with_the_groups_of_the_probe() -> None:
    answers = {
        recorder.RECORDER: json.dumps(GLOO).encode(),
        recorder.GROUPS: b'{"groups": {"0": ["default_pg", [0, 1]]}, "frames": {"gloo 7": [["f", "t.py", 3]]}}',
    }
    found = recorder.summarize(1, 42, answers, NOW)
    assert found == {
        "rank": 1,
        "pid": 42,
        "time": NOW,
        "groups": [["0", "default_pg", [0, 1]]],
        "calls": [["0", 7, "all_gather", [[4]], ["Float"], [[2, 4]], ["Float"], False, 2.5, [["f", "t.py", 3]]]],
    }


def test_groups_are_those_of_the_calls_where_the_probe_is_silent() -> None:
    found = recorder.summarize(1, 42, {recorder.RECORDER: json.dumps(GLOO).encode()}, NOW)
    assert found["groups"] == [["0", "default_pg", []]]


@pytest.mark.parametrize("answer", [b"", b"[1]", b"no json", b"{}"])
def test_an_answer_that_is_none_gives_no_calls(answer: bytes) -> None:
    found = recorder.summarize(0, 1, {recorder.RECORDER: answer, recorder.GROUPS: answer}, NOW)
    assert (found["groups"], found["calls"]) == ([], [])


def test_only_the_latest_calls_of_each_group_are_kept_and_none_between_two_ranks() -> None:
    entries: list[dict[str, Any]] = [{**ENTRY, "collective_seq_id": number} for number in range(200)]
    entries += [{**ENTRY, "process_group": ["1", "dp"]}, {**ENTRY, "is_p2p": True, "process_group": ["2", ""]}]
    found = recorder.describe(0, 1, NOW, [{"entries": entries}], {}, {})
    assert [call[1] for call in found["calls"] if call[0] == "0"] == list(range(136, 200))
    assert [row[0] for row in found["groups"]] == ["0", "1"]


# The fields of NCCL's dump (version 2): groups with their ranks, a state, frames of the call.
NCCL_ENTRY = {
    **ENTRY,
    "profiling_name": "nccl:all_reduce",
    "state": "completed",
    "retired": False,
    "frames": [{"name": "step", "filename": "/w/train.py", "line": 9}],
}


@pytest.mark.parametrize("ranks", ["[0, 2]", [0, 2]])
def test_a_dump_of_nccl_has_groups_states_and_frames(ranks: Any) -> None:
    dump = {"pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": ranks}}, "entries": [NCCL_ENTRY]}
    found = recorder.describe(0, 1, NOW, [dump], {}, {})
    assert found["groups"] == [["0", "default_pg", [0, 2]]]
    (call,) = found["calls"]
    assert (call[2], call[7], call[9]) == ("all_reduce", True, [["step", "/w/train.py", 9]])


# ---- what is kept for fab why


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of a job with one process."""
    (tmp_path / "agent" / recorder.FOLDER).mkdir(parents=True)
    (tmp_path / "agent" / "spec.json").write_text("{}")
    return tmp_path


def put(job: Path, name: str, content: bytes, time_s: float) -> None:
    """Write a file into the probe's folder, with its time."""
    path = job / "agent" / recorder.FOLDER / name
    path.write_bytes(content)
    os.utime(path, (time_s, time_s))


def own_record(rank: int, pid: int, file: str) -> bytes:
    """Return what a rank writes after an exception in a file."""
    entry = {**ENTRY, "retired": True, "state": "completed"}
    stack = [["all_gather", file, 1], ["<module>", "/w/train.py", 9]]
    return json.dumps(
        {"rank": rank, "pid": pid, "time": NOW, "stack": stack, "recorder": {"entries": [entry]}, "groups": {}}
    ).encode()


def test_running_ranks_are_kept_as_they_answer(job: Path) -> None:
    pid = os.getpid()
    place = job / "agent" / recorder.FOLDER
    traceback = b'Thread 0x1 (most recent call first):\n  File "/w/train.py", line 3 in step\n'
    bodies = {"fr_trace_json": json.dumps(GLOO).encode(), "dump_traceback": traceback}
    server = Server(place / f"5-{pid}.sock", bodies)
    recorder.keep(str(job), 0.5)
    server.socket.close()
    (found,) = recorder.kept(str(job))
    assert (found["rank"], found["pid"], found["stack"]) == (5, pid, [["step", "/w/train.py", 3]])
    assert [call[2] for call in found["calls"]] == ["all_gather"]


def test_a_job_without_probes_keeps_nothing(job: Path) -> None:
    recorder.keep(str(job), 0.5)
    assert recorder.kept(str(job)) == []
    assert list((job / "agent" / recorder.FOLDER).iterdir()) == []


def test_the_collective_that_raised_counts_as_not_ended(job: Path) -> None:
    put(job, "0-7.json", own_record(0, 7, "/lib/torch/distributed/distributed_c10d.py"), 1.0)
    put(job, "1-8.json", own_record(1, 8, "/w/train.py"), 1.0)
    waits, ended = recorder.kept(str(job))
    assert ([call[7] for call in waits["calls"]], [call[7] for call in ended["calls"]]) == ([False], [True])


def test_of_a_rank_its_last_process_counts_and_what_its_supervisor_kept_of_it(job: Path) -> None:
    kept = {"rank": 0, "pid": 8, "time": NOW, "groups": [], "calls": [], "stack": []}
    put(job, "0-7.json", own_record(0, 7, "/w/old.py"), 1.0)
    put(job, "0-8.kept.json", json.dumps(kept).encode(), 2.0)
    put(job, "0-8.json", own_record(0, 8, "/w/late.py"), 3.0)
    put(job, "nccl-0", pickle.dumps({"entries": []}), 4.0)
    assert recorder.kept(str(job)) == [kept]


def test_the_dump_of_nccls_watchdog_is_read(job: Path) -> None:
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    dump = {"pg_config": config, "entries": [{**NCCL_ENTRY, "state": "started"}]}
    put(job, "nccl-3", pickle.dumps(dump, protocol=2), NOW)
    (found,) = recorder.kept(str(job))
    assert (found["rank"], found["time"], found["groups"]) == (3, NOW, [["0", "default_pg", [0, 1]]])
    assert found["calls"][0][7:] == [False, 2.5, [["step", "/w/train.py", 9]]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nccl-0", pickle.dumps(os.getcwd)),  # it would call a function
        ("nccl-0", b"\x80\x02}q"),
        ("nccl-0", pickle.dumps([1])),
        ("0-1.json", b'{"rank": 0'),
        ("0-1.json", b"[]"),
        ("0-1.kept.json", b""),
        ("nccl-x", b"?"),
    ],
)
def test_a_file_that_is_damaged_counts_as_none(job: Path, name: str, content: bytes) -> None:
    put(job, name, content, 1.0)
    assert recorder.kept(str(job)) == []

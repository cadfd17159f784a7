"""The profile of a job's ranks on a node, with sockets in the place of the ranks' probes."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote import job_files
from torchfab.remote.job import profile, recorder

REPORT = {"problem": "", "begun": 5.0, "ended": 6.0, "size": 7, "devices": "", "calls": []}
REQUEST = {"start": 5.0, "seconds": 1.0, "lead_s": 0.0, "timeout_s": 20.0, "ranks": None}


class Rank:
    """The probe of a rank: answers the check and the profile."""

    def __init__(self, folder: Path, rank: int, check: bytes, found: bytes) -> None:
        self.bodies = {"check=1": check}
        self.asked: list[str] = []
        self.found, self.socket = found, socket.socket(socket.AF_UNIX)
        folder_fd = os.open(folder, os.O_RDONLY)
        self.socket.bind(f"/proc/self/fd/{folder_fd}/{rank}-{os.getpid()}.sock")
        os.close(folder_fd)
        self.socket.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            query = connection.recv(4096).split()[1].decode().partition("?")[2]
            self.asked.append(query)
            body = self.bodies.get(query, self.found)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            connection.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the probes of a job of one process."""
    place = tmp_path / "agent" / recorder.FOLDER
    place.mkdir(parents=True)
    monkeypatch.setattr(job_files, "processes", lambda _: ["agent"])
    monkeypatch.setattr(job_files, "folder_of", lambda _: str(tmp_path))
    return place


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, running: int, **more: Any) -> list[dict[str, Any]]:
    """Profile a node with as many running ranks."""
    monkeypatch.setattr(profile, "_running_ranks", lambda _: dict.fromkeys(range(running), os.getpid()))
    profile.begin({**REQUEST, **more})
    return list(profile.result({})["ranks"])


def test_each_rank_has_a_report_or_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    able, good = b'{"problem": ""}', json.dumps(REPORT).encode()
    large = json.dumps({**REPORT, "size": profile.MAX_TRACE_BYTES + 1}).encode()
    ranks = [
        Rank(folder, 0, able, good),
        Rank(folder, 1, b'{"problem": "the script profiles itself"}', good),
        Rank(folder, 2, b"Handler not found", good),
        Rank(folder, 3, able, large),
    ]
    found = run(folder, monkeypatch, 5)
    for each in ranks:
        each.socket.close()
    assert found[0] == {"rank": 0, "pid": os.getpid(), **REPORT}
    assert [each["problem"] for each in found[1:]] == [
        "the script profiles itself",
        "its answer is not JSON",
        "its trace is larger than 512 MiB",
        "no probe",
    ]
    assert ranks[0].asked == ["check=1", "start=5.0&seconds=1.0"]
    assert ranks[1].asked == ["check=1"]  # one that cannot is not asked again


def test_only_the_wanted_ranks_are_profiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [Rank(folder, each, b'{"problem": ""}', json.dumps(REPORT).encode()) for each in range(2)]
    assert [each["rank"] for each in run(folder, monkeypatch, 2, ranks=[1])] == [1]
    for each in ranks:
        each.socket.close()
    assert ranks[0].asked == []
    assert profile.result({}) == {"ranks": []}  # it is fetched once


def test_a_trace_is_read_in_chunks_and_removed(folder: Path, tmp_path: Path) -> None:
    path = folder / "3-77.trace.json.gz"
    path.write_bytes(b"x" * 10)
    (folder / "nccl-3").write_text("kept")
    (folder / "4-78.trace.json.gz").symlink_to("/etc/passwd")
    request = {"rank": 3, "pid": 77, "offset": 4}
    assert base64.b64decode(profile.chunk(request)["data"]) == b"x" * 6
    assert "is gone" in profile.chunk({**request, "pid": 78})["problems"][0]["what"]
    with pytest.raises(OSError, match="symbolic links"):
        profile.chunk({"rank": 4, "pid": 78, "offset": 0})
    profile.remove({})
    assert os.listdir(folder) == ["nccl-3"]

"""The program around each rank, run here exactly as on a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.fab import eventually
from tests.remote.shims.programs import ended, run, start

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


@pytest.mark.parametrize(
    "variables",
    [
        {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
        {"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"},
        {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
    ],
    ids=["Open MPI", "MPICH", "torch"],
)
def test_a_rank_gets_the_variables_of_torch_distributed(place: Path, variables: Mapping[str, str]) -> None:
    code, stdout = run(place, "rank", "--logs", sys.executable, "-c", SHOW, "a b", "--", "$x", "", env=variables)
    assert (code, stdout) == (0, "")
    argv, env = json.loads((place / "logs" / "rank-3.log").read_text())
    assert argv == ["a b", "--", "$x", ""]
    expected = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert {name: env[name] for name in expected} == expected
    assert env["TORCHELASTIC_ERROR_FILE"] == str(place / "errors" / "rank-3.json")
    assert (place / "logs" / "rank-3.log").stat().st_mode & 0o777 == 0o600


def test_a_rank_reads_its_script_from_the_file_beside_it(place: Path) -> None:
    (place / "script.json").write_text(json.dumps([sys.executable, "-c", SHOW, "it's", "é"]))
    code, stdout = run(place, "rank", "--script", "--local_rank=0", env={"RANK": "0"})
    assert (code, json.loads(stdout)[0]) == (0, ["it's", "é", "--local_rank=0"])


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_a_rank_exits_as_its_script_does(place: Path, code: str, expected: int) -> None:
    assert (
        run(place, "rank", "--logs", sys.executable, "-c", f"import os, sys; {code}", env={"RANK": "0"})[0] == expected
    )


def test_a_rank_forwards_signals_and_waits_for_its_script(place: Path) -> None:
    code = """
import signal, sys, time
def end(*_):
    time.sleep(0.3)
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1], "w").close()
time.sleep(60)
"""
    process = start(place, "rank", "--logs", sys.executable, "-c", code, str(place / "up"), env={"RANK": "0"})
    assert eventually((place / "up").exists, 60)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 5


def test_a_rank_without_a_rank_number_fails(place: Path) -> None:
    code, _ = run(place, "rank", "--logs", "true")
    assert code == 1


def test_a_failing_rank_of_mpich_aborts_the_others(place: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    env = {"PMI_RANK": "0", "MPI_LOCALRANKID": "0", "PMI_SIZE": "1", "MPI_LOCALNRANKS": "1", "PMI_FD": str(writer)}
    argv = (sys.executable, str(place / "rank.py"), "--logs", sys.executable, "-c", "raise SystemExit(7)")
    done = subprocess.run(argv, env={**os.environ, **env}, pass_fds=[writer], check=False)
    assert (done.returncode, os.read(reader, 100)) == (7, b"cmd=abort exitcode=7\n")
    os.close(reader)
    os.close(writer)

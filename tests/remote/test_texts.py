"""Fuzzed text from other programs, the kernel and the job itself: none of it breaks the parsers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from tests.support import fuzzed
from tests.transport.requests import accepts
from tests.transport.test_messages_fuzz import JSON
from torchfab.launchers.per_node import RANK_LOGS
from torchfab.remote import job_files, procfs, server, tmux
from torchfab.remote.host import gpu_health, gpu_usage, host_usage, kernel_log, programs
from torchfab.remote.job import evidence, log_files, log_reader, status
from torchfab.remote.slurm import job
from torchfab.transport.messages.job import EvidenceRequest, LogsRequest, StatusRequest
from torchfab.transport.messages.slurm import SlurmStatusRequest

# Digits that int() refuses, more digits than it accepts, and field separators.
WORD = st.one_of(
    st.sampled_from(["0", "7", "²", "٣", "9" * 5000, "-1", "1.5", "nan", "[N/A]", ""]), st.text(max_size=6)
)


def lines_of(*separators: str) -> st.SearchStrategy[str]:
    """Draw lines of fields with these separators."""
    line = st.builds(str.join, st.sampled_from(separators), st.lists(WORD, max_size=17))
    return st.lists(line, max_size=4).map("\n".join)


def after(*heads: str) -> st.SearchStrategy[str]:
    """Draw lines that start with a prefix that the parsers search for."""
    line = st.tuples(st.sampled_from(heads), lines_of(" ", "  ")).map("".join)
    return st.lists(line, max_size=4).map("\n".join)


# ---- the kernel


@fuzzed(after("cpu ", "MemTotal: ", "MemAvailable: ", "eth0: ", "lo:", " 8 0 sda ", ""))
def test_text_of_proc_becomes_numbers(text: str) -> None:
    now = {"at": 2.0, "cpus": 1, "cpu": host_usage.cpu_ticks(text), "load": host_usage.load(text)}
    now |= {"memory": host_usage.memory(text), "disk": host_usage.disk_bytes(text, ["sda"])}
    now |= {"network": host_usage.network_bytes(text)}
    none = {"at": 1.0, **{name: [0, 0] for name in ("cpu", "memory", "disk", "network")}}
    assert all(isinstance(value, int | float) for value in host_usage.rates(none, now).values())


@fuzzed(st.binary(max_size=15), st.binary(max_size=40))
def test_a_process_may_have_any_name_and_any_environment(name: bytes, environ: bytes) -> None:
    fields = " ".join(["S", "1", *map(str, range(40))])
    stat = b"7 (" + name + b") " + fields.encode()
    with mock.patch.object(procfs, "_read", lambda path: environ if path.endswith("environ") else stat):
        assert procfs.stat_fields(7) == fields.split()
        assert procfs.start_time(7) == 17
        assert all(isinstance(each, str) for each in procfs.environment(7))
        assert len(procfs.describe(7)) < 90


@fuzzed(st.one_of(st.text(max_size=60), st.builds(str.join, st.just(","), st.lists(WORD, max_size=5))))
def test_any_kernel_record_has_a_time_and_one_line(text: str) -> None:
    stamp, found = kernel_log.parse(f"{text};{text}")
    assert 0 <= stamp < 1e13
    assert "\n" not in found


@fuzzed(after("0::/", "4:memory:/", "oom_kill ", ""))
def test_a_control_group_reports_a_number_or_nothing(text: str) -> None:
    with mock.patch.object(procfs, "lines", return_value=text.splitlines()):
        assert isinstance(procfs.oom_kills(), int | None)


# ---- programs


@fuzzed(st.one_of(lines_of(", ", ","), st.text(max_size=80)), st.integers(0, 9))
def test_any_output_of_nvidia_smi_is_parsed(text: str, code: int) -> None:
    found, problem = gpu_usage.parse(text, code)
    report = {"gpus": gpu_usage.with_processes(found, gpu_usage.parse_apps(text)), "problem": problem}
    assert json.dumps(report, allow_nan=False)
    assert len(problem) <= 300


@fuzzed(WORD, WORD)
def test_any_text_in_the_xml_of_nvidia_smi_is_parsed(one: str, two: str) -> None:
    words = "".join(sign for sign in one if sign.isprintable() and sign not in "<&>\ud800")
    gpu = f"<gpu id='1'><fb_memory_usage><total>{words} MiB</total></fb_memory_usage><ecc_errors><volatile>"
    gpu += f"<dram_uncorrectable>{words}</dram_uncorrectable></volatile></ecc_errors></gpu>"
    report = gpu_health.parse(f"{two}<?xml version='1.0'?><nvidia_smi_log>{gpu}</nvidia_smi_log>{two}")
    assert json.dumps(report)


@fuzzed(st.one_of(st.builds(str.join, st.just("."), st.lists(WORD, max_size=4)), st.text(max_size=40)))
def test_any_version_output_of_tmux_is_parsed(text: str) -> None:
    with mock.patch.object(tmux, "_run", return_value=(0, f"tmux {text}")):
        major, minor = tmux.version()
    assert 0 <= major < 10**6 > minor >= 0


@fuzzed(st.text(max_size=60))
def test_any_version_output_of_a_program_is_parsed(text: str) -> None:
    done = mock.Mock(stdout=text, stderr=text)
    with mock.patch("subprocess.run", return_value=done):
        assert programs.version("x", "--version", {}) in text + text


SCONTROL = st.sampled_from(
    ["   JobState=RUNNING Reason=", "   Requeue=1 Restarts=", "   RunTime=1 TimeLimit=", "   NodeList=n", "x"]
)


@fuzzed(st.lists(st.tuples(SCONTROL, WORD), max_size=6), st.one_of(lines_of("|"), st.text(max_size=30)))
def test_any_output_of_slurms_commands_is_parsed(lines: list[tuple[str, str]], history: str) -> None:
    def run(*argv: str, **_: Any) -> str:
        if argv[0] == "scontrol" and not lines:
            raise job.SlurmError("Invalid job id")
        return history if argv[0] == "sacct" else "\n".join(head + word for head, word in lines)

    with mock.patch.object(job, "run", run), TemporaryDirectory() as folder:
        found = job.status({"slurm_id": "7", "folder": folder, "job_id": "x", "nodes": 2})
    assert accepts(SlurmStatusRequest, found), found


# ---- the job's own folder, into which the job can write


@fuzzed(st.one_of(lines_of(" "), st.text(max_size=60), st.just("5.1 3 output.log\n7.07.1 9 output.log")))
def test_any_timeline_gives_times(text: str) -> None:
    with TemporaryDirectory() as folder:
        Path(folder, job_files.TIMELINE).write_text(text, errors="replace")
        write_times, log = log_files.WriteTimes(folder), log_files.LogFile(folder, job_files.OUTPUT)
        assert all(0 <= write_times.time_of(log, offset) < 1e11 for offset in (0, 5, 10**9))


@fuzzed(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 5)))
def test_any_bytes_are_log_lines(data: bytes, count: int | None) -> None:
    with TemporaryDirectory() as folder:
        own = Path(folder, "agent")
        own.mkdir()
        (own / job_files.SPEC).write_text("{}")
        (own / job_files.OUTPUT).write_bytes(data)
        reader = log_reader.Reader(folder, {"lines": count, "ranks": None, "grep": None})
        found = [*reader.read_backlog(), *reader.read_new(final=True)]
        text = status.tail(str(own / job_files.OUTPUT))
    assert accepts(LogsRequest, {"lines": found})
    assert all(-1e9 <= each["code"] <= 1e9 for each in status.parse_failures(text))


RECORDS = (job_files.SPEC, job_files.STARTED, job_files.RANKS, job_files.EXIT)
SPEC = st.one_of(JSON, st.fixed_dictionaries({"cwd": st.just("/"), "rank_logs": st.just(RANK_LOGS)}))


@fuzzed(st.dictionaries(st.sampled_from(RECORDS), JSON), SPEC, JSON)
def test_any_process_records_give_a_status_or_a_problem(records: dict[str, Any], spec: Any, stop: Any) -> None:
    with TemporaryDirectory() as folder:
        own = Path(job_files.job_folder(folder, "x", 0), "agent")
        own.mkdir(parents=True)
        for name, value in {**records, job_files.SPEC: spec, f"../{job_files.STOP}": stop}.items():
            (own / name).write_text(json.dumps(value))
        request = {"node_dir": folder, "job_id": "x", "node_rank": 0, "number": 1}
        for op, kind in (("status", StatusRequest), ("evidence", EvidenceRequest)):
            answer = _answer({**request, "op": op})
            assert answer.get("problems") or (answer["exists"] and accepts(kind, answer))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    sent: list[dict[str, Any]] = []
    node = server.Server.__new__(server.Server)
    with mock.patch.object(node, "send", sent.append):
        node._handle(request)
    return sent[0]


@fuzzed(st.one_of(JSON, st.fixed_dictionaries({"message": JSON}), st.text(max_size=50)))
def test_any_error_file_is_a_report_or_none(content: Any) -> None:
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "error.json")
        Path(path).write_text(content if isinstance(content, str) else json.dumps(content), errors="replace")
        report = evidence._report(path, 0, 0)
    assert not report or accepts(EvidenceRequest, {**EMPTY, "evidence": {"reports": [report]}})


EMPTY = {"processes": [], "now": 1.0, "exists": True, "stop_asked": None}

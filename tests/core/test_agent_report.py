"""torchrun's own traceback and report become one line; all other output of launchers and ranks stays."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfab.core.agent_report import NOTE, AgentReportFilter
from torchfab.core.log_lines import Line

ELASTIC = "torch.distributed.elastic.multiprocessing.errors"
TRACEBACK = f"""\
Traceback (most recent call last):
  File "/venv/bin/torchrun", line 8, in <module>
    sys.exit(main())
             ^^^^^^
  File "/venv/lib/torch/distributed/launcher/api.py", line 383, in launch_agent
    raise ChildFailedError(
{ELASTIC}.ChildFailedError: """
REPORT = """\
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-02_03:04:05
  host      : node1
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 34)
  error_file: /job/errors/1.json
  traceback : Traceback (most recent call last):
    File "/venv/lib/torch/errors/__init__.py", line 367, in wrapper
      return f(*args, **kwargs)
  ValueError: bad batch

============================================================"""
EARLIER_REPORT = """\
***************************************
           train.py FAILED
=======================================
Root Cause:
[0]:
  time: 2021-06-07_08:09:10
  rank: 0 (local_rank: 0)
  exitcode: 1 (pid: 34)
  error_file: <N/A>
  msg: "Process failed with exitcode 1"
=======================================
Other Failures:
  <NO_OTHER_FAILURES>
***************************************"""
WARNING = "W0102 03:04:05.678000 33 torch/distributed/api.py:1028] Sending process 35 closing signal SIGTERM"
PYTHON_ERROR = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "RendezvousTimeoutError: x"]


def printed(*texts: str, label: int | str = "agent", pieces: int = 1000) -> list[str]:
    """Return what is printed of these texts, read in pieces of so many lines."""
    lines = [Line("node1", label, 1.0, line) for text in texts for line in text.split("\n")]
    report_filter = AgentReportFilter()
    shown = [
        line for start in range(0, len(lines), pieces) for line in report_filter.read(lines[start : start + pieces])
    ]
    return [line.text for line in [*shown, *report_filter.release()]]


@pytest.mark.parametrize("report", [REPORT, EARLIER_REPORT], ids=["today", "torch 1.9"])
@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_traceback_and_report_become_one_line(report: str, pieces: int) -> None:
    assert printed("up", WARNING, TRACEBACK, report, pieces=pieces) == ["up", WARNING, NOTE]


def test_torchruns_next_log_line_is_printed() -> None:
    assert printed(TRACEBACK, REPORT, WARNING, "and text") == [NOTE, WARNING, "and text"]


def test_the_end_of_a_report_is_left_out_without_its_head() -> None:
    for first in range(1, 8):
        assert printed(*REPORT.split("\n")[first:11]) == [NOTE]


@pytest.mark.parametrize("texts", [PYTHON_ERROR, [*PYTHON_ERROR, "more"], PYTHON_ERROR[:2]])
def test_other_tracebacks_of_a_launcher_are_printed(texts: Sequence[str]) -> None:
    assert printed(*texts) == list(texts)


def test_a_traceback_within_another_one_is_printed() -> None:
    assert printed(*PYTHON_ERROR, TRACEBACK, REPORT) == [*PYTHON_ERROR, NOTE]


def test_ranks_print_what_they_like() -> None:
    texts = (TRACEBACK + "\n" + REPORT).split("\n")
    assert printed(*texts, label=0) == texts


def test_each_node_has_its_own_report() -> None:
    lines = [Line(host, "agent", 1.0, text) for text in TRACEBACK.split("\n") for host in ("node1", "node2")]
    assert list(AgentReportFilter().read(lines)) == [Line(f"node{n}", "agent", 1.0, NOTE) for n in (1, 2)]


@given(st.lists(st.sampled_from(["a", " b", "", PYTHON_ERROR[0], "x: y", "KeyError: 1"]), max_size=30))
def test_nothing_is_lost_or_reordered_without_a_report(texts: list[str]) -> None:
    assert printed(*texts) == texts


POLLED = "E0102 03:04:05.679000 33 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -15) local_rank: 0 (pid: 35) of binary: python"  # noqa: E501


def test_torchrun_line_about_the_rank_that_it_polled_first_is_left_out() -> None:
    assert printed(WARNING, POLLED, TRACEBACK, REPORT) == [WARNING, NOTE]


def test_rules_of_another_launcher_stay() -> None:
    lines = [
        "-" * 60,
        "Primary job  terminated normally, but 1 process returned",
        "-" * 60,
        "-" * 60,
        "and more",
        "-" * 60,
    ]
    assert printed(*lines) == lines

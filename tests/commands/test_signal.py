"""`fab signal`: which words it takes, and what it says of ranks that the signal would end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torchfab import runtimes
from torchfab.commands import signal
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, HostsFailedError, UsageError
from torchfab.core.specs import Node
from torchfab.records import Record
from torchfab.runtimes import RankSignal, SignalReport

NODES = (Node(0, "node1"), Node(1, "node2"))
JOB = Record(
    *(Path("/nowhere"), "x", "x-1", "tmux", "per-node", 0.0, ("train.py",), NODES, "/n", 4, 2),
    *(ConnectionSettings(), {}, {}),
)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("gpt2", "USR1"), ("gpt2", "SIGUSR1")),
        (("gpt2", "sigusr2"), ("gpt2", "SIGUSR2")),
        (("USR1", ""), ("", "SIGUSR1")),
        (("winch", ""), ("", "SIGWINCH")),
        (("USR1", "USR2"), ("USR1", "SIGUSR2")),
    ],
)
def test_the_job_may_be_left_out(words: tuple[str, str], found: tuple[str, str]) -> None:
    assert signal.parse(*words) == found


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (("gpt2", ""), "the signal is missing", "fab signal gpt2 USR1"),
        (("", ""), "the signal is missing", "fab signal USR1"),
        (("gpt2", "USR3"), "the signal is one of USR1, USR2, HUP, CONT, URG, WINCH, got 'USR3'", ""),
        (("gpt2", "TERM"), "SIGTERM ends ranks", "use fab stop gpt2"),
        (("KILL", ""), "SIGKILL ends ranks", "use fab stop, which"),
        (("gpt2", "9"), "the signal is one of", ""),
        (("gpt2", "STOP"), "the signal is one of", ""),
    ],
)
def test_what_is_no_notice_is_refused(words: tuple[str, str], what: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        signal.parse(*words)
    assert what in caught.value.message
    assert fix in caught.value.fix


def sent(monkeypatch: pytest.MonkeyPatch, *reports: SignalReport, ranks: str = "") -> int:
    class Fake:
        @staticmethod
        def signal(record: Record, name: str, ranks: Any) -> tuple[SignalReport, ...]:
            return reports

    monkeypatch.setattr(runtimes, "load", lambda name: Fake)
    return signal.send_signal(JOB, "SIGUSR1", ranks)


def on(node: int, *effects: str, was_sent: bool = True, first: int = 0) -> SignalReport:
    ranks = enumerate(effects, first)
    return SignalReport(NODES[node], tuple(RankSignal(rank, effect, was_sent) for rank, effect in ranks))


def test_ranks_and_hosts_are_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(monkeypatch, on(0, "handled", "ignored"), on(1, "handled", "handled", first=2)) == 0
    assert capsys.readouterr().out == "SIGUSR1 sent to 4 ranks on 2 hosts, 1 of which ignores it\n"
    assert sent(monkeypatch, on(0), on(1, "handled", first=3), ranks="3") == 0
    assert capsys.readouterr().out == "SIGUSR1 sent to 1 rank on 1 host\n"


def test_ranks_that_do_not_run_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(monkeypatch, on(0, "handled"), on(1, "handled", first=2)) == 1
    assert capsys.readouterr().out == "SIGUSR1 sent to 2 ranks on 2 hosts; ranks 1,3 do not run\n"


def test_nothing_is_sent_if_one_rank_would_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        sent(monkeypatch, on(0, "handled", was_sent=False), on(1, "ends", "ends", was_sent=False, first=2))
    assert "ranks 2-3 of job x have no handler for SIGUSR1" in caught.value.message
    assert "signal.signal(signal.SIGUSR1, handler)" in caught.value.fix


def test_hosts_that_do_not_answer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostsFailedError, match="1 of 2 hosts failed; SIGUSR1 was sent to no rank"):
        sent(monkeypatch, on(0, "handled", was_sent=False), SignalReport(NODES[1], error=HostError("gone", "")))


def test_a_rank_beyond_the_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="job x has the ranks 0-3, and no rank 7"):
        sent(monkeypatch, ranks="7")

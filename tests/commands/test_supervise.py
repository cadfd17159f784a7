"""`fab supervise`: its flags, and the second supervisor of a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.records.test_launch_request import NODES, make_request
from torchfab.cli.flags import LaunchFlags
from torchfab.commands import supervise
from torchfab.commands.supervise import SuperviseFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import parse
from torchfab.launching.context import CommandContext
from torchfab.records import Record
from torchfab.supervise import detach, job_locks
from torchfab.supervise.model import Policy


def test_a_second_supervisor_in_tmux_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detach, "start", lambda *_: "supervise-x")
    make_request().save(tmp_path)
    config = {"restarts": 3, "stall_s": 300, "backoff_s": 10, "lost_s": 60, "notify_timeout_s": 10}
    ctx = CommandContext(config, tmp_path, "/", 0.0, "0a1b2c3d", {}, ConnectionSettings())
    job = (tmp_path, "x", "x-0a1b2c3d", "per-node", "tmux", 0.0, ("train.py",), NODES, "/x", 1, 1)
    first = job_locks.SupervisorLock(tmp_path)
    with pytest.raises(UsageError, match="already has a supervisor"):
        supervise.supervise_existing(
            Record(*job, ConnectionSettings(), {}, {}), SuperviseFlags(), False, True, ctx, ("fab",)
        )
    first.release()


@pytest.mark.parametrize(
    ("flag", "text", "error"),
    [
        ("restarts", "-1", "--restarts must be a number of at least 0, got '-1'"),
        ("stall", "soon", "--stall must be a number of seconds, got 'soon'"),
        ("backoff", "-3", "--backoff must be a number of seconds, got '-3'"),
        ("notify", "'open", '--notify "\'open": No closing quotation'),
    ],
)
def test_a_wrong_flag_is_an_error_that_names_it(flag: str, text: str, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        SuperviseFlags(notify=parse(LaunchFlags, {flag: text}).notify).policy(Policy())
    assert error in str(caught.value)


def test_flags_that_are_not_given_change_nothing() -> None:
    before = Policy(restarts=7, notify="tell")
    assert SuperviseFlags().policy(before) == before
    assert SuperviseFlags(0, 5.0, 1.0, "x").policy(before) == Policy(0, 5.0, 1.0, before.lost_s, "x")

"""The life of a job: what its commands are told on the command line."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.factories import make_facts, make_job, make_nodes
from torchfab.commands import attach
from torchfab.commands.jobs import show_jobs
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import UsageError
from torchfab.launchers import per_node
from torchfab.launching.context import CommandContext
from torchfab.monitoring.log_request import log_request


@pytest.mark.parametrize("grep", ["(", "a{99999999999999999999}"])
def test_invalid_grep_pattern_is_rejected(grep: str) -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        log_request("", 10, grep, follow=False)


def test_job_is_one_line_of_the_list_whatever_its_script(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    ctx = CommandContext({"records": str(tmp_path)}, tmp_path, "/", time.time(), "0a1b2c3d", {}, ConnectionSettings())
    job = make_job(script=("-c", "import x\nx.train()\x1b[2J"), options=per_node.options(per_node.Flags()))
    ctx.records.claim(job.name)
    plan = per_node.plan(job, make_nodes("a"), (), make_facts(1))
    ctx.records.write(plan, "tmux", 0.0, ConnectionSettings()).remember("succeeded", 0, ended=True)
    show_jobs(ctx, as_json=False, job="")
    ctx.records.end_launch(job.name)
    _head, row, *rest = capfdbinary.readouterr().out.decode().splitlines()
    assert row.endswith("-c import x x.train()")
    assert rest == []


def test_attach_names_a_program_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"needs kubectl on this machine: No such file"):
        attach.run(("kubectl", "exec", "-it", "pod"))

"""Bad input: a clear error that says what, where and how to fix it; nothing started; nothing left."""

from __future__ import annotations

from tests.integration.fab import Fab


def test_a_light_job_runs_and_is_gone_when_stopped(fab: Fab) -> None:
    done = fab(*fab.launch("--name", "light", gpus=True))
    assert done.rc == 0, done
    assert len(fab.processes()) == 8  # a supervisor and a rank per line of gpus
    assert len(fab.sessions()) == 2
    assert len(fab.folders()) == 2
    assert fab("stop", "light", "--grace", "1").rc == 0
    assert fab.left() == {"folders": fab.folders(), "records": ["light"]}
    assert fab("jobs", "light", "--remove").rc == 0
    fab.assert_nothing_left()

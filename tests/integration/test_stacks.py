"""What a job does while it runs: the hang alarm, and the stacks of its ranks; real sshd, real py-spy."""

from __future__ import annotations

import json

from tests.integration.fab import Fab, eventually
from tests.integration.jobs import ok, two

# Logs, falls silent until it is told to go on, logs again, and ends.
SILENT = """
import os, sys, time
print("step 7 of rank", os.environ["RANK"], flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
print("on we go", flush=True)
time.sleep(1)
"""


# ---- the hang alarm


def test_a_silent_job_is_told_by_status_and_while_one_follows_once_and_its_end_too(fab: Fab) -> None:
    fab.write("silent.py", SILENT)
    go = fab.workdir / "go"
    ok(fab(*two(fab, "--name", "silent", "--", "silent.py", str(go))))
    follower = fab.start("logs", "silent", "--follow", "--stall", "1.5")
    waiting = fab.start("wait", "silent", config={"stall_s": 1.5})
    silence = {}

    def is_stalled() -> bool:
        silence.update(json.loads(ok(fab("status", "silent", "--json", "--stall", "1.5")).stdout)["stall"])
        return bool(silence["stalled"])

    assert eventually(is_stalled, 30)
    assert silence["line"] == f"step 7 of rank {silence['rank']}"
    shown = ok(fab("status", "silent", "--stall", "1")).stdout
    assert "silent: no rank has logged for" in shown
    assert "the last line: " in shown
    assert "fab stacks silent" in shown
    assert "no rank has logged" not in ok(fab("status", "silent")).stdout  # 300 s are not over
    for process in (follower, waiting):
        assert process.stderr
        assert any("silent: no rank has logged for" in line for line in process.stderr)  # reads until it is told
    go.touch()
    rest = [process.communicate(timeout=60)[1] for process in (follower, waiting)]
    assert not any("no rank has logged" in told for told in rest), rest  # once
    assert "it logs again, after" in rest[0]

"""`--before` and `--after` on the nodes of a job."""

from __future__ import annotations

from pathlib import Path

from tests.integration.fab import Fab, eventually
from tests.integration.jobs import ok, two

MARK = 'echo "before $TORCHFAB_NODE_RANK"; mkdir "$OUT/before-$TORCHFAB_NODE_RANK"'
AFTER = 'echo "after $TORCHFAB_NODE_RANK $TORCHFAB_EXIT_CODE"; mkdir "$OUT/after-$TORCHFAB_NODE_RANK"'
SCRIPT = """import os, sys, time
print("found", sorted(name for name in os.listdir(os.environ["OUT"]) if "before" in name), flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[1]))
"""


def out(fab: Fab) -> Path:
    """A folder for marks, which the nodes share."""
    path = fab.workdir / "out"
    path.mkdir()
    fab.own(path)
    fab.write("show.py", SCRIPT)
    return path


def words(fab: Fab, folder: Path, *script: str, before: str = MARK) -> tuple[str, ...]:
    hooks = ("--before", before, "--after", AFTER, "--env", f"OUT={folder}")
    return two(fab, "--name", "hooked", *hooks, "--", "show.py", *script)


def test_hooks_run_around_the_ranks_and_are_in_the_logs(fab: Fab) -> None:
    folder = out(fab)
    ok(fab(*words(fab, folder, "0", "0")))
    ok(fab("wait", "hooked"))
    shown = ok(fab("logs", "hooked", "--no-fold")).stdout
    for rank in (0, 1):
        for text in (f"before {rank}", f"after {rank} 0"):
            assert text in shown, shown
    assert shown.count("found ['before-0', 'before-1']") == 2, shown
    assert sorted(path.name for path in folder.iterdir()) == ["after-0", "after-1", "before-0", "before-1"]


def test_a_before_that_fails_on_one_node_stops_the_launch(fab: Fab) -> None:
    folder = out(fab)
    failing = 'echo "on $TORCHFAB_NODE_RANK"; exit $((TORCHFAB_NODE_RANK * 23))'
    done = fab(*words(fab, folder, "0", "0", before=failing))
    assert done.rc == 1, done
    assert "error: 1 of 2 hosts failed; nothing was started" in done.stderr
    assert "  node2: --before failed: it ended with status 23\n        on 1\n" in done.stderr
    assert list(folder.iterdir()) == []
    fab.assert_nothing_left()


def test_after_runs_when_ranks_fail_and_when_they_are_stopped(fab: Fab) -> None:
    folder = out(fab)
    ok(fab(*words(fab, folder, "3", "0")))
    assert fab("wait", "hooked").rc == 3
    shown = ok(fab("logs", "hooked", "--no-fold")).stdout
    assert [text in shown for text in ("after 0 3", "after 1 3")] == [True, True], shown
    ok(fab("jobs", "--remove", "hooked"))
    for path in folder.iterdir():
        path.rmdir()
    ok(fab(*words(fab, folder, "0", "60")))
    ok(fab("stop", "hooked"))
    assert eventually(lambda: (folder / "after-1").is_dir() and (folder / "after-0").is_dir(), 5)

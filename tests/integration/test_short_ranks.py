"""Ranks that live for a few milliseconds: status, logs and why name them, and their streams keep their order."""

from __future__ import annotations

import pytest

from tests.integration.fab import Fab
from tests.integration.faults import Matrix, Row
from tests.integration.jobs import ok, status_of

SHORT = 'echo "out of $RANK"\necho "err of $RANK" >&2\necho "last of $RANK"\n[ "$RANK" != 2 ] || exit 3\n'


@pytest.mark.parametrize("gpus", [False, True], ids=["per-node", "per-gpu"])
def test_ranks_that_end_at_once_are_named_and_keep_the_order_of_their_streams(
    fab: Fab, matrix: Matrix, gpus: bool
) -> None:
    row = Row("ranks that live for 20 ms", fab, "s") if gpus else matrix.row("ranks that live for 20 ms", fab, "s")
    row.without(3)
    fab.write("short.sh", SHORT)
    nproc = () if gpus else ("--nproc-per-node", "2")
    ok(fab(*fab.launch("--name", "s", *nproc, "--", "sh", "short.sh", gpus=gpus)))
    assert fab("wait", "s", config={"failure_grace_s": 2}).rc == 3
    status = status_of(fab, "s")
    ranks = [rank for node in status["nodes"] for rank in node["ranks"]]
    codes = {rank["rank"]: rank["code"] for rank in ranks}
    assert sorted(codes) == [0, 1, 2, 3], status
    assert codes[2] == 3, status
    assert (status["first_failure"]["rank"], status["exit_code"]) == (2, 3), status
    for rank in range(4):
        lines = [line.partition("] ")[2] for line in ok(fab("logs", "s", "--rank", str(rank))).stdout.splitlines()]
        assert lines == [f"out of {rank}", f"err of {rank}", f"last of {rank}"]
    assert "rank 2 on " in fab("why", "s").stdout
    row.state_is("failed", "exit-code")
    row.nothing_left()
    row.logs(*(f"node{rank // 2 + 1} [{rank}] {word} of {rank}" for rank in range(4) for word in ("out", "err")))
    none = ok(fab("logs", "s", "--rank", "1", "--grep", "no such line"))
    assert (none.stdout, none.stderr) == ("", "there is no log line of rank 1 that matches 'no such line'\n")

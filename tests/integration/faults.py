"""The fault matrix: every fault that torchfab must survive, and the checks after each.

A test causes a fault and records the results as a row of the matrix, with the methods of `Row`. Each asserts what must
hold. The table of all rows is printed at the end of the run; `inv reliability` writes it into the docs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.integration.fab import Done, Fab, eventually

CHECKS = ("status and why say", "left running", "logs", "checkpoint")
NONE = "–"

# Rows of the table, in order.
FAULTS = (
    "kill -9 of a rank",
    "kill -9 of the torchrun agent",
    "kill -9 of our supervisor",
    "kill -9 of the tmux server",
    "kill -9 of an sshd that serves a connection",
    "kill -9 of the sshd that listens",
    "kill -9 of fab while it prepares",
    "kill -9 of fab while it starts",
    "kill -9 of fab while it confirms",
    "kill -9 of fab while it follows",
    "a node's link is down for 5 s",
    "a node's link is down for good",
    "a node is killed whole",
    "the launch machine is gone, and back",
    "disk full on a node: logs",
    "disk full on a node: checkpoints",
    "disk full on a node: torchfab's own records",
    "disk full on the launch machine: records",
    "the records folder is read-only",
    "an SSH server stalls: banner",
    "an SSH server stalls: key exchange",
    "an SSH server stalls: login",
    "an SSH server stalls: channel",
    "an SSH server stalls: command",
    "an SSH server stalls: input",
    "an SSH server stalls: output",
    "an SSH server stalls while its logs are followed",
    "one node is slow",
    "clocks are 5 minutes apart",
    "one of many hosts is down at the launch",
    "one of many hosts dies while the job runs",
    "two launches with one name at the same moment",
    "stop while the launch prepares",
    "stop while the launch starts",
    "two stops at once",
    "a node's tmux.conf which ends sessions",
    "a node's tmux.conf which waits and stays",
    "a node's login environment has PET_STANDALONE, RANK, MASTER_ADDR",
    "an sshd refuses this address: PerSourcePenalties",
    "a restart while GPU memory is still held",
    "ranks that live for 20 ms",
    "ranks that save for longer than torchrun's 30 s",
    "data loaders while ranks save",
    "a handler that leaves at a second SIGTERM",
    "a daemon without parent, session and environment; kill -9 of its supervisor",
    "a chain of processes that fork and exit within 4 ms",
    "a process whose main thread has ended",
    "a child of another user that outlives its rank",
    "shared memory and semaphores of killed ranks",
    "useradd on the machine of a rehearsal cluster",
)


class Row:
    """Results of one fault. Each method fills a cell, and fails if the result is wrong."""

    def __init__(self, fault: str, fab: Fab, job: str = "x") -> None:
        assert fault in FAULTS, fault
        self.fault, self.fab, self.job = fault, fab, job
        self.cells = dict.fromkeys(CHECKS, "")

    @contextlib.contextmanager
    def cell(self, check: str) -> Iterator[list[str]]:
        """Fill a cell with the text that the block appends; mark it if the block fails."""
        parts: list[str] = []
        try:
            yield parts
        except BaseException:
            self.cells[check] = "NOT SO"
            raise
        self.cells[check] = "; ".join([self.cells[check], *parts] if self.cells[check] else parts)

    # ---- what status and why say

    def state_is(self, states: str, cause: str, host: str | None = None, flags: Sequence[str] = ()) -> dict[str, Any]:
        """Assert the state of `status` and the cause of `why`; return the answer of `why`.

        Parameters
        ----------
        states : str
            Expected state; several with blanks between them if it depends on timing.
        cause, host : str
            Name of the cause; the host that failed first, or that `why` lists as bad.
        flags : sequence of str
            Flags of `fab` itself.
        """
        with self.cell(CHECKS[0]) as parts:
            status = json.loads(self.fab(*flags, "status", self.job, "--json").stdout)
            done = self.fab(*flags, "why", self.job, "--json")
            answer: dict[str, Any] = json.loads(done.stdout)
            state = status["state"]
            assert state in states.split(), (status, answer)
            assert answer["cause"]["name"] == cause, answer
            first = answer["first"]["host"] if answer["first"] else None
            assert host is None or host == first or host in answer["bad_nodes"], answer
            where = f" on {first}" if first else ""
            parts.append(f"{state}{where}: {answer['cause']['words']}")
        return answer

    def nodes(self, *states: str, flags: Sequence[str] = ()) -> None:
        """Assert the state of each node."""
        with self.cell(CHECKS[0]) as parts:
            done = self.fab(*flags, "status", self.job, "--json")
            found = json.loads(done.stdout)["nodes"]
            assert tuple(each["state"] for each in found) == states, done
            parts.append("nodes " + ", ".join(f"{each['host']} {each['state']}" for each in found))

    def fails_with(self, done: Done, expected: str, host: str | None = None) -> None:
        """Assert that a `fab` failed with this text, about this host, without a traceback."""
        with self.cell(CHECKS[0]) as parts:
            assert done.rc not in (0, None), done
            assert "Traceback" not in done.stderr, done
            lines = [line.strip() for line in done.stderr.splitlines()]
            line = next((line for line in lines if expected in line and (host is None or host in line)), None)
            assert line is not None, done
            parts.append(f"refused: {line}")

    def output_has(self, text: str, expected: str) -> None:
        """Assert that an output contains this text."""
        with self.cell(CHECKS[0]) as parts:
            line = next((line.strip() for line in text.splitlines() if expected in line), None)
            assert line is not None, text
            parts.append(line)

    # ---- leftovers

    def nothing_left(self, within_s: float = 0.0, folders: bool = False) -> None:
        """Assert that no process and no tmux session is left; nor, with `folders`, any folder on a node."""
        with self.cell(CHECKS[1]) as parts:
            kinds = {"processes", "tmux sessions", *(["folders"] if folders else [])}
            assert eventually(lambda: not kinds & set(self.fab.left()), within_s), self.fab.left()
            parts.append("nothing" if not self.cells[CHECKS[1]] else "")

    def stopped(self) -> None:
        """Stop the job, and assert that nothing is left."""
        with self.cell(CHECKS[1]) as parts:
            done = self.fab("-t", "30", "stop", self.job, "--grace", "1")
            assert done.rc == 0, done
            assert not {"processes", "tmux sessions"} & set(self.fab.left()), self.fab.left()
            parts.append("nothing after stop")

    # ---- the logs

    def logs(self, *expected: str) -> None:
        """Assert that `fab logs` has each of these lines, as often as it is given."""
        with self.cell(CHECKS[2]) as parts:
            done = self.fab("logs", self.job, "--no-fold", "--lines", "all")
            found = done.stdout.splitlines()
            missing = [line for line in expected if line not in found]
            assert not missing, (missing, done)
            parts.append(f"all {len(expected)} lines")

    def steps(self, least: int) -> None:
        """Assert that the logs have all steps of rank 0, none missing, at least up to `least`."""
        with self.cell(CHECKS[2]) as parts:
            found = steps_logged(self.fab, self.job)
            assert found == list(range(found[0], found[0] + len(found))), found
            assert found[-1] >= least, (found[-1], least)
            parts.append("no step is missing")

    def without(self, *checks: int) -> None:
        """Mark checks, by index, as not affected by the fault."""
        for check in checks:
            self.cells[CHECKS[check]] = NONE

    def checkpoint(self, folder: Path, least: int) -> None:
        """Assert that the last checkpoint of an experiment loads, and has step `least` or later."""
        with self.cell(CHECKS[3]) as parts:
            step = load_last(folder)
            assert step >= least, (step, least)
            parts.append(f"step {step} loads")

    def saved(self, ranks: Iterable[int], expected: int) -> None:
        """Assert that all of so many ranks have saved."""
        with self.cell(CHECKS[3]) as parts:
            assert sorted(ranks) == list(range(expected))
            parts.append(f"all {expected} ranks saved")


class Matrix:
    """The rows of one test."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def row(self, fault: str, fab: Fab, job: str = "x") -> Row:
        """Add a row."""
        self.rows.append(Row(fault, fab, job))
        return self.rows[-1]

    def properties(self) -> list[tuple[str, list[str]]]:
        """Return the rows as properties of a pytest report."""
        return [("fault", [row.fault, *(cell or "NOT CHECKED" for cell in row.cells.values())]) for row in self.rows]


def steps_logged(fab: Fab, job: str, *flags: str) -> list[int]:
    """Return the steps of a training in its logs."""
    text = fab(*flags, "logs", job, "--no-fold", "--lines", "all").stdout
    return [int(step) for step in re.findall(r" step=(\d+)\b.* loss=", text)]


def steps_on_disk(fab: Fab, job: str) -> list[int]:
    """Return the steps of a training that node 0 has in its logs, without a `fab`, which takes CPU time from it."""
    paths = sorted(fab.node_dir.glob(f"jobs/{job}-*/node-0/agent/logs/*/attempt_*/*/stdout.log"))
    return [int(step) for path in paths for step in re.findall(r"step=(\d+)\b.* loss=.*\n", path.read_text())]


def load_last(folder: Path) -> int:
    """Load the last checkpoint of an experiment; return its step."""
    import torch

    path = max((folder / "checkpoints").glob("step-*.pt"))
    assert "identity" in torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return int(path.stem.partition("-")[2])

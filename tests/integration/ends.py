"""A script whose ranks are asked to end, each in a different situation, and checks of their ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.fab import eventually

# Four ranks on each node: the situation of each is that of its local rank.
KINDS = (
    "a handler that saves",
    "2 loaders; a flag, read after each step",
    "leaves at a second SIGTERM",
    "no handler",
)
SAVES, LOADS, LEAVES, PLAIN = range(4)
RANKS_PER_NODE = len(KINDS)
# Each signal is noted with its time. The first rank without a handler fails with exit code 7 once there is a file
# `fail`. All print a line a second until there is a file `hang`. A rank that is started again ends at once.
SCRIPT = """
import json, multiprocessing, os, signal, sys, time

SAVES, LOADS, LEAVES, PLAIN = range(4)
out, save_s = sys.argv[1], float(sys.argv[2])
rank, kind, own_pid = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), os.getpid()
got, loaders = [], []

def note(name, text=""):
    file = os.open(f"{out}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(file, f"{time.time()} {text}\\n".encode())
    os.close(file)

def load(pipe):
    while os.getppid() == own_pid:  # as torch's loaders do
        if pipe.poll(0.5):
            pipe.send(pipe.recv())
    os._exit(0)

def start_loaders():
    fork = multiprocessing.get_context("fork")
    for _ in range(2):
        ours, theirs = fork.Pipe()
        loader = fork.Process(target=load, args=(theirs,), daemon=True)
        loader.start()
        theirs.close()
        loaders.append(ours)

def read_batches():
    for pipe in loaders:
        pipe.send(1)
        pipe.recv()

def on_signal(number, frame):
    if os.getpid() != own_pid:  # a loader, which inherits this handler; torch's loaders end at SIGTERM
        if number == signal.SIGTERM:
            note("loaders")
            os._exit(1)
        return
    note("signals", number)
    got.append(number)
    if kind == LEAVES and got.count(signal.SIGTERM) > 1:
        os._exit(9)
    if kind == SAVES and len(got) == 1:
        save(save_s)

def save(seconds):
    begun, lost = time.time(), ""
    with open(f"{out}/{rank}.part", "w") as file:
        while time.time() - begun < seconds and not lost:
            try:
                read_batches()
            except (EOFError, OSError):
                lost = "a loader had ended"
            time.sleep(0.02)
        json.dump({"kind": kind, "lost": lost, "seconds": time.time() - begun}, file)
    os.replace(f"{out}/{rank}.part", f"{out}/{rank}.json")

if __name__ == "__main__":
    if os.path.exists(f"{out}/{rank}.ready"):
        note("again")
        sys.exit(0)
    if kind != PLAIN:
        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGUSR1, on_signal)
    if kind == LOADS:
        start_loaders()
    note("ready")
    step = 0
    while not got:
        if rank == PLAIN and os.path.exists(f"{out}/fail"):
            sys.exit(7)
        if step % 20 == 0 and not os.path.exists(f"{out}/hang"):
            print("step", step, flush=True)
        step += 1
        read_batches()
        time.sleep(0.05)
    if kind != SAVES:
        save(min(save_s, 5))
    note("done")
    os._exit(0)
"""


@dataclass(frozen=True)
class RankEnd:
    """What a rank noted of its end.

    Parameters
    ----------
    rank : int
        The rank.
    saved : dict, optional
        What it saved; None if it saved nothing whole.
    signals : tuple of (float, int)
        The signals that it got, with their times.
    loaders : tuple of float
        When its loaders got SIGTERM.
    done : float, optional
        When it had saved and was about to end.
    """

    rank: int
    saved: dict[str, Any] | None
    signals: tuple[tuple[float, int], ...]
    loaders: tuple[float, ...]
    done: float | None

    @property
    def kind(self) -> int:
        """Its situation, an index of KINDS."""
        return self.rank % RANKS_PER_NODE

    def problems(self, number: int = signal.SIGTERM) -> list[str]:
        """Return what is not as it should be.

        Parameters
        ----------
        number : int
            The signal that it should have got once. Default: SIGTERM.

        Returns
        -------
        list of str
            Empty if it has saved, after this signal alone; a rank without a handler notes nothing.
        """
        if self.kind == PLAIN:
            return []
        got = [each for _, each in self.signals]
        found = [] if self.saved else ["not saved"]
        found += [self.saved["lost"]] if self.saved and self.saved["lost"] else []
        if got.count(number) != 1:
            found.append(f"{signal.Signals(number).name} came {got.count(number)} times")
        elif len(got) > 1:
            found.append(f"got {', '.join(signal.Signals(each).name for each in got)}")
        early = [when for when in self.loaders if self.done is None or when < self.done]
        return found + (["a loader got SIGTERM before its rank had ended"] if early else [])


def await_ready(out: Path, ranks: int) -> bool:
    """Wait until all ranks are ready."""
    return eventually(lambda: len(list(out.glob("*.ready"))) == ranks, 150)


def read_ends(out: Path, ranks: int) -> list[RankEnd]:
    """Return the notes that each rank wrote about its end."""
    return [_read_end(out, rank) for rank in range(ranks)]


def _read_end(out: Path, rank: int) -> RankEnd:
    saved = out / f"{rank}.json"
    signals = tuple((float(when), int(number)) for when, number in _notes(out / f"{rank}.signals"))
    loaders = tuple(float(line[0]) for line in _notes(out / f"{rank}.loaders"))
    done = next((float(line[0]) for line in _notes(out / f"{rank}.done")), None)
    return RankEnd(rank, json.loads(saved.read_text()) if saved.exists() else None, signals, loaders, done)


def _notes(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def problems_of(ends: Iterable[RankEnd], number: int = signal.SIGTERM) -> dict[int, list[str]]:
    """Return the problems of each rank that has some."""
    return {end.rank: found for end in ends if (found := end.problems(number))}

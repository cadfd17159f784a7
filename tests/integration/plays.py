"""Plays of four ranks on two hosts, in which one rank fails first and the others follow in many ways.

Each is a small script without torch: what gloo and torch's loaders raise is raised with their words. After a play,
`status`, `wait`, `why` and `supervise` must name the same first rank, and the story of `why` every rank.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.integration.fab import Done, Fab
from tests.integration.jobs import ok
from tests.integration.kube_fab import KubeFab
from tests.integration.launcher_contract import out_dir

RANKS = 4
SETTINGS = {"failure_grace_s": 6, "lost_s": 3}
SCRIPT = '''\
import multiprocessing, os, signal, sys, threading, time, traceback

play, out, rank, size = sys.argv[1], sys.argv[2], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
LOST = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:24750"
on_last_node = rank >= size // 2

def mark(name):
    open(f"{out}/{name}", "w").close()

def wait_for(name):
    while not os.path.exists(f"{out}/{name}"):
        time.sleep(0.02)

def meet():
    with open(f"{out}/pid-{rank}.new", "w") as file:
        file.write(str(os.getpid()))
    os.replace(f"{out}/pid-{rank}.new", f"{out}/pid-{rank}")
    for other in range(size):
        wait_for(f"pid-{other}")

def lose():
    wait_for("over")
    time.sleep({"launcher-kills": 600, "import": 2.5, "early": 0.6}.get(play, 0.3))
    raise RuntimeError(LOST)

def load(batch):
    raise ValueError(f"no label in batch {batch}")

def log_exception():
    try:
        load(17)
    except ValueError:
        traceback.print_exc()
        sys.stderr.flush()
    mark("over")

def kill_peers():
    for other in range(size // 2, size):
        if other != rank:
            os.kill(int(open(f"{out}/pid-{other}").read()), signal.SIGKILL)

def die_in_thread():
    raise ConnectionResetError(104, "Connection reset by peer")

def loader(queue):
    try:
        load(17)
    except ValueError:
        queue.put(traceback.format_exc())

def fail():
    """What the rank does that fails first."""
    if play in ("lingers", "hangs", "exit-0", "ends-last", "thread-after"):
        log_exception()
    if play == "lingers":
        time.sleep(4)
        sys.exit(1)
    if play == "hangs":
        time.sleep(600)
    if play == "exit-0":
        sys.exit(0)
    if play == "ends-last":
        time.sleep(1.5)
    if play == "thread-after":
        thread = threading.Thread(target=die_in_thread)
        thread.start()
        thread.join()
        sys.exit(1)
    mark("over")
    if play == "early":
        sys.exit(0)
    if play == "loader":
        queue = multiprocessing.Queue()
        multiprocessing.Process(target=loader, args=(queue,)).start()
        raise ValueError("Caught ValueError in DataLoader worker process 0.\\nOriginal " + queue.get())
    if play == "loader-killed":
        worker = multiprocessing.Process(target=time.sleep, args=(600,))
        worker.start()
        worker.kill()
        worker.join()
        raise RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: Killed. ")
    try:
        load(17)
    except ValueError:
        if play == "kills-peers":
            kill_peers()
        raise

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    meet()
    print("step 1", flush=True)
    time.sleep(1.2)
    if play == "import" and on_last_node:
        mark("over")
        import only_on_the_other_node
    if rank == size - 1 or play == "alike" or (play == "one-node" and on_last_node):
        fail()
    lose()
'''


@dataclass(frozen=True)
class Play:
    """A play: who fails first, and why.

    Parameters
    ----------
    what : str
        What happens, for the docs.
    first : tuple of int
        The ranks that may be named as the first.
    cause, words : str
        Name of the cause, and a part of its words.
    or_cause : str
        Another name that it may have, where the launcher ends the other ranks too early to tell. Default: none.
    """

    what: str
    first: tuple[int, ...] = (3,)
    cause: str = "exception"
    words: str = "no label in batch 17"
    or_cause: str = ""


PLAYS: Mapping[str, Play] = {
    "lingers": Play("it raises, and its process stays for 4 s"),
    "hangs": Play("it raises, and its process never ends"),
    "kills-peers": Play("it kills the other ranks of its node, and raises"),
    "exit-0": Play("it logs an exception, and ends with exit code 0"),
    "ends-last": Play("it raises, and ends after the others, which lost it"),
    "thread-after": Play("it raises; then a thread of it raises something else"),
    "early": Play("it ends with exit code 0 while the others go on", cause="left-early", words="exit code 0"),
    "alike": Play("all ranks raise the same", first=(0, 1, 2, 3)),
    "one-node": Play("all ranks of one node raise the same", first=(2, 3)),
    "import": Play(
        "an import fails on one node",
        first=(2, 3),
        cause="import-error-of-node",
        or_cause="import-error",
        words="No module named 'only_on_the_other_node'",
    ),
    "loader": Play("its data loader raises"),
    "loader-killed": Play("its data loader is killed", cause="host-memory", words="is killed by signal: Killed"),
    "launcher-kills": Play("it raises, and the launcher, or fab, ends the others"),
}


class Runs(Protocol):
    """Runs `fab` with some arguments."""

    def __call__(self, *args: str, timeout_s: float = 60) -> Done:
        """Run it to its end."""
        ...


@dataclass(frozen=True)
class Stage:
    """Where plays are given: a launcher, and a cluster that it can reach.

    Parameters
    ----------
    fab : callable
        The real `fab`.
    launch : tuple of str
        The arguments of a launch with two ranks on each of two hosts.
    out : Path
        A folder that all hosts and this process can write; each play gets one of its own below it.
    is_supervisable : bool
        Whether `fab supervise` takes jobs of this launcher.
    unseen : tuple of str
        Plays whose first rank may be gone with its log before anybody has asked: another rank is named then.
    """

    fab: Runs
    launch: tuple[str, ...]
    out: Path
    is_supervisable: bool = True
    unseen: tuple[str, ...] = ()

    def begin(self, play: str) -> str:
        """Launch a play; return the name of its job."""
        folder = self.out / play
        folder.mkdir()
        folder.chmod(0o777)
        script = self.out / "play.py"
        script.write_text(SCRIPT)
        ok(self.fab(*self.launch, "--name", play, "--", str(script), play, str(folder), timeout_s=120))
        return play


def check(stage: Stage, play: str, job: str, supervise: bool = True) -> int:
    """Wait for the end of a play, and assert that all commands name the same first rank; return that rank."""
    expected = PLAYS[play]
    waited = stage.fab("wait", job, timeout_s=200)
    why, status = shown(stage, "why", job), shown(stage, "status", job)
    first, words = why["first"], why["cause"]["words"]
    evidence = (waited, why, status)
    assert first is not None, evidence
    if play in stage.unseen and first["rank"] not in expected.first:
        assert why["certainty"] == "possible", evidence
    else:
        assert first["rank"] in expected.first, evidence
        assert why["cause"]["name"] in (expected.cause, expected.or_cause), evidence
        assert expected.words in words, evidence
    named = (status["first_failure"]["rank"], status["first_failure"]["host"], status["first_failure"]["how"])
    assert (*named[:2], named[2].startswith(words[:100])) == (first["rank"], first["host"], True), evidence
    assert f"rank {first['rank']} on {first['host']} failed first ({words[:100]}" in waited.stderr, evidence
    assert ranks_in_story(why) == set(range(RANKS)), evidence
    if supervise and stage.is_supervisable:
        supervised = stage.fab("supervise", job, "--restarts", "0", timeout_s=120)
        assert f"rank {first['rank']} on {first['host']}: {words[:100]}" in supervised.stderr, (supervised, evidence)
    return int(first["rank"])


def ranks_in_story(why: Mapping[str, Any]) -> set[int]:
    """Return the ranks that the answer of `why --json` has a place for."""
    lines = [*why["consequences"], *why["other_ranks"]]
    folded = [match[1] for line in lines if (match := re.match(r"(?:[^:]* )?ranks? ([\d,-]+): ", line))]
    return {why["first"]["rank"], *(rank for text in folded for rank in unfolded(text))}


def unfolded(text: str) -> list[int]:
    """Return the numbers in a text such as `0-2,5`."""
    pairs = [part.partition("-") for part in text.split(",")]
    return [rank for first, _, last in pairs for rank in range(int(first), int(last or first) + 1)]


def shown(stage: Stage, *words: str) -> dict[str, Any]:
    """Return the JSON output of a command."""
    found: dict[str, Any] = json.loads(stage.fab(*words, "--json").stdout)
    return found


def check_one(fab: Fab, play: str, *task: str) -> None:
    """Give one play on a launcher that starts two ranks on each host of a hosts file, and check it."""
    words = (*task, "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "2")
    check_one_on(Stage(functools.partial(fab, config=SETTINGS), words, out_dir(fab, "plays")), play)


def check_one_on(stage: Stage, play: str) -> None:
    """Give one play on a stage, and check it."""
    check(stage, play, stage.begin(play))


def slurm_stage(fab: Fab) -> Stage:
    """Return the stage of launch-slurm on a Slurm of two nodes."""
    words = ("launch-slurm", "--nodes", "2")
    return Stage(functools.partial(fab, config=SETTINGS), words, out_dir(fab, "plays"), is_supervisable=False)


def pods_stage(fab: KubeFab) -> Stage:
    """Return the stage of launch-kubernetes, whose pods run as processes."""
    out = fab.workdir / "plays"
    out.mkdir()
    # When one pod has failed, the Job deletes the others; and a pod does not say how its other ranks ended.
    unseen = ("lingers", "hangs", "ends-last", "exit-0", "early")
    return Stage(fab, fab.launch("--nproc-per-node", "2"), out, is_supervisable=False, unseen=unseen)

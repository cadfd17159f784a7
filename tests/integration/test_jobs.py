"""Jobs over real sshd and tmux: launch, status, wait, stop; with light scripts, no training."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from testbed import Cluster
from tests.integration.fab import Fab, eventually
from tests.integration.jobs import gpufile, host_line, ok, status_of, two
from torchfab.remote import procfs

HOSTILE = [
    *(
        "",
        " ",
        "a b",
        "'",
        '"',
        "$HOME",
        "${x}",
        "`id`",
        "$(id)",
        ";",
        "a;",
        "&&",
        "|",
        ">x",
        "*",
        "~",
        "#{pid}",
        "#x",
        "\\",
    ),
    *(
        "-",
        "--",
        "--env",
        "\n",
        "a\nb\n",
        "\t",
        "\r",
        "é€😀",
        "\x01\x1b[31m",
        "=",
        "a=b",
        "%s",
        "!",
        "{a,b}",
        "TORCHFAB",
        "RUN",
    ),
]
DUMP = """
import json, os, sys
path = f"{os.environ['OUT_DIR']}/{os.environ['RANK']}.json"
with open(path + ".new", "w") as file:
    json.dump({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}, file)
os.replace(path + ".new", path)
"""
TICK = """
import os, sys, time
for i in range(int(sys.argv[1])):
    print("tick", i, flush=True)
    time.sleep(0.2)
"""
FAIL = """
import os, sys, time
print("hello from", os.environ["RANK"], flush=True)
time.sleep(0.5)
if os.environ["RANK"] == "1":
    sys.exit(7)
time.sleep(60)
"""
# Ranks that ignore SIGTERM; each leaves a grandchild in its own session that ignores it too.
NASTY = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(1)
    os._exit(0)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


def dumps(fab: Fab, count: int, folder: Path | None = None) -> dict[int, dict[str, Any]]:
    """Return the output of each rank of DUMP."""
    paths = [(folder or fab.workdir) / f"{rank}.json" for rank in range(count)]
    assert eventually(lambda: all(path.exists() for path in paths), 60), list(fab.workdir.iterdir())
    return {rank: json.loads(path.read_text()) for rank, path in enumerate(paths)}


def logins(fab: Fab) -> int:
    """Return the number of logins to all nodes."""
    logs = [node.directory / "sshd.log" for node in fab.cluster.layout.nodes]
    return sum(log.read_text().count("Accepted publickey") for log in logs)


# ---- arguments and environment


def test_per_gpu_ranks_follow_the_lines_and_local_ranks_the_host(any_fab: Fab) -> None:
    fab = any_fab
    fab.write("dump.py", DUMP)
    before = logins(fab)
    words = ("launch-per-gpu", "--gpufile", gpufile(fab, 1, 0, 1), "--name", "order", "--env", f"OUT_DIR={fab.workdir}")
    ok(fab(*words, "--port", "0", "--", "dump.py"))
    assert logins(fab) - before == 2  # three ranks, two hosts, two connections
    found = dumps(fab, 3)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHFAB_NODE_RANK")
    assert [[found[rank]["env"][name] for name in names] for rank in range(3)] == [
        ["0", "0", "3", "2", "0"],
        ["1", "0", "3", "1", "1"],
        ["2", "1", "3", "2", "0"],
    ]
    assert {each["env"]["MASTER_ADDR"] for each in found.values()} == {host_line(fab, 1).rpartition("address=")[2]}
    assert len({each["env"]["MASTER_PORT"] for each in found.values()}) == 1
    assert {each["cwd"] for each in found.values()} == {str(fab.workdir)}
    assert ok(fab("wait", "order")).rc == 0


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate]
)
@given(words=st.lists(TEXT, max_size=40), values=st.lists(TEXT, max_size=20), number=st.uuids())
def test_any_arguments_and_values_reach_the_script(
    fab: Fab, words: list[str], values: list[str], number: uuid.UUID
) -> None:
    fab.write("dump.py", DUMP)
    env = [each for index, value in enumerate(values) for each in ("--env", f"V{index}={value}")]
    out = fab.workdir / f"{number}-{time.monotonic_ns()}"  # an example may be run again
    out.mkdir()
    fab.own(out)
    (fab.workdir / "mixed").write_text("node1\nlocalhost\n")
    name, master = out.name, ("--master-addr", fab.cluster.node(0).address)
    launch = ("launch-per-gpu", "--gpufile", str(fab.workdir / "mixed"), "--name", name, *master, *env)
    ok(fab(*launch, "--env", f"OUT_DIR={out}", "--", "dump.py", *words))
    for found in dumps(fab, 2, out).values():
        assert found["argv"] == words
        assert [found["env"][f"V{index}"] for index in range(len(values))] == values
    ok(fab("wait", name))


def test_arguments_and_environment_reach_the_script_unchanged(any_fab: Fab) -> None:
    fab = any_fab
    fab.write("dump.py", DUMP)
    # A single argument may have 128 KiB on Linux; all together have more than 200 KB.
    words = [*HOSTILE, "x" * 100_000, "é\n'\"" * 25_000]
    values = {f"V{index}": value for index, value in enumerate(words[:-1])}
    env = [each for name, value in values.items() for each in ("--env", f"{name}={value}")]
    out = ("--env", f"OUT_DIR={fab.workdir}")
    for name, core, own in (
        ("ssh", (), ("--gpufile", gpufile(fab, 0, 1))),
        ("local", ("-H", "localhost,localhost"), ()),
    ):
        ok(fab(*core, "launch-per-gpu", *own, "--name", name, *out, *env, "--", "dump.py", *words))
        for found in dumps(fab, 2).values():
            assert found["argv"] == words
            assert {key: found["env"][key] for key in values} == values
        ok(fab("wait", name))
        for path in fab.workdir.glob("?.json"):
            path.unlink()


def test_torchrun_passes_on_hostile_arguments_and_its_ranks_are_tracked(fab: Fab) -> None:
    fab.write("dump.py", DUMP + "import time; time.sleep(2)")
    words = fab.launch(
        "--name", "tr", "--nproc-per-node", "2", "--env", f"OUT_DIR={fab.workdir}", "--", "dump.py", *HOSTILE
    )
    ok(fab(*words))
    found = dumps(fab, 4)
    assert all(each["argv"] == HOSTILE for each in found.values())
    assert ok(fab("wait", "tr"))
    status = status_of(fab, "tr")
    seen = {
        rank["rank"]: (node["node_rank"], rank["local_rank"], rank["code"])
        for node in status["nodes"]
        for rank in node["ranks"]
    }
    said = {r: (int(each["env"]["TORCHFAB_NODE_RANK"]), int(each["env"]["LOCAL_RANK"]), 0) for r, each in found.items()}
    assert seen == said


def test_only_names_that_match_a_pattern_travel(fab: Fab) -> None:
    fab.write("dump.py", DUMP)
    env = {"NCCL_DEBUG": "INFO", "WANDB_MODE": "offline", "MY_OWN": "x", "http_proxy": "http://p"}
    words = ("-H", "localhost", "launch-per-gpu", "--name", "fwd", "--env", f"OUT_DIR={fab.workdir}", "--", "dump.py")
    ok(fab(*words, env=env))
    got = dumps(fab, 1)[0]["env"]
    assert {name: got.get(name) for name in env} == {**env, "MY_OWN": None}


# ---- the end of a job


@pytest.mark.parametrize("gpus", [False, True], ids=["per-node", "per-gpu"])
def test_wait_exits_with_the_first_failing_ranks_code(any_fab: Fab, gpus: bool) -> None:
    fab = any_fab
    fab.write("fail.py", FAIL)
    words = ("--name", "seven", "--", "fail.py")
    ok(fab(*(two(fab, *words) if gpus else fab.launch("--nproc-per-node", "1", *words))))
    done = fab("wait", "seven", config={"failure_grace_s": 1})
    assert done.rc == 7, done
    assert "rank 1" in done.stderr
    assert fab.processes() == {}
    status = status_of(fab, "seven")
    assert (status["state"], status["ended"], status["exit_code"]) == ("failed", True, 7)
    assert (status["first_failure"]["rank"], status["first_failure"]["code"]) == (1, 7)
    assert fab("status", "seven").rc == 1
    assert fab("wait", "seven").rc == 7  # also after the end


def test_follow_shows_each_line_once_and_exits_with_the_jobs_code(any_fab: Fab) -> None:
    fab = any_fab
    fab.write("tick.py", TICK)
    done = ok(fab(*two(fab, "--name", "f", "--follow", "--", "tick.py", "6")))
    lines = [line for line in done.stdout.splitlines() if "] tick" in line]
    shown = [(rank, line.rpartition(" ")[2]) for line in lines for rank in ranks_in(line)]
    assert sorted(shown) == [(rank, str(tick)) for rank in (0, 1) for tick in range(6)], done
    assert "succeeded" in done.stderr
    done = ok(fab("logs", "f", "--no-fold"))
    assert sorted(done.stdout.splitlines()) == sorted(
        f"{label(fab, rank)} [{rank}] tick {tick}" for rank in (0, 1) for tick in range(6)
    )


def ranks_in(line: str) -> list[int]:
    """Return the ranks that a printed log line names."""
    from torchfab.core.inventory import parse_ranks

    match = re.search(r" \[([0-9,-]+)\] ", line)
    return list(parse_ranks(match[1])) if match else []


def label(fab: Fab, index: int) -> str:
    """Return the label of a host in logs."""
    return host_line(fab, index).split()[0]


def test_follow_resumes_after_a_broken_connection(fab: Fab, netns_cluster: Cluster) -> None:
    fab.write("tick.py", TICK)
    ok(fab(*two(fab, "--name", "broken", "--", "tick.py", "45")))
    process = fab.start("logs", "broken", "--follow", "--no-fold")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(8)]
    for pid in _sessions_of_sshd(netns_cluster, 1):
        os.kill(pid, signal.SIGKILL)
    # Not `communicate`, which would lose readline's buffer.
    stdout = process.stdout.read()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "node2: " in stderr
    assert "trying again" in stderr
    shown = [line for line in ("".join(lines) + stdout).splitlines() if line.startswith("node2")]
    assert shown == [f"node2 [1] tick {tick}" for tick in range(45)]


def _sessions_of_sshd(cluster: Cluster, index: int) -> list[int]:
    """Return the pids of the sshd processes that serve connections to a node."""
    listener = cluster.node(index).sshd_pid
    assert listener is not None
    return procfs.children(listener)


def test_logs_fold_equal_lines_and_filter_by_rank_lines_and_grep(fab: Fab) -> None:
    fab.write("tick.py", TICK)
    ok(fab(*two(fab, "--name", "g", "--follow", "--", "tick.py", "3")))
    assert "node[1-2] [0-1] tick 2" in ok(fab("logs", "g")).stdout.splitlines()
    assert ok(fab("logs", "g", "--rank", "1")).stdout.splitlines() == [f"node2 [1] tick {tick}" for tick in range(3)]
    assert ok(fab("logs", "g", "--rank", "0", "--lines", "1")).stdout == "node1 [0] tick 2\n"
    assert ok(fab("logs", "g", "--grep", "k [01]$", "--rank", "0")).stdout == "node1 [0] tick 0\nnode1 [0] tick 1\n"


def test_a_job_survives_a_killed_fab_and_a_later_fab_finds_it(any_fab: Fab) -> None:
    fab = any_fab
    fab.write("tick.py", TICK)
    process = fab.start(*two(fab, "--name", "alone", "--follow", "--", "tick.py", "40"))
    assert process.stdout is not None
    while "tick" not in process.stdout.readline():
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert status_of(fab, "alone")["state"] == "running"
    assert "alone" in ok(fab("jobs")).stdout
    assert "alone" in ok(fab("wait")).stderr  # the latest job, which it names
    assert status_of(fab, "alone")["state"] == "succeeded"


def test_ctrl_c_on_follow_leaves_the_job_running(fab: Fab) -> None:
    fab.write("tick.py", TICK)
    ok(fab(*two(fab, "--name", "cc", "--", "tick.py", "100")))
    process = fab.start("logs", "cc", "--follow")
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "fab stop cc" in stderr
    assert status_of(fab, "cc")["state"] == "running"


def test_logs_show_both_attempts_of_a_torchrun_restart(fab: Fab) -> None:
    script = (
        "import os, sys\nattempt = os.environ['TORCHELASTIC_RESTART_COUNT']\nprint('attempt', attempt, flush=True)\n"
    )
    fab.write("again.py", script + "sys.exit(3 if attempt == '0' else 0)")
    ok(
        fab(
            *fab.launch("--name", "again", "--nproc-per-node", "1", "--max-restarts", "1", "--follow", "--", "again.py")
        )
    )
    text = ok(fab("logs", "again", "--no-fold")).stdout
    assert text.count("attempt 0") == 2
    assert text.count("attempt 1") == 2


def test_with_the_static_rendezvous_ranks_follow_the_hosts_file(fab: Fab) -> None:
    fab.write("dump.py", DUMP)
    hosts = fab.write("reverse", "node2\nnode1\n")
    words = ("launch-per-node", "--hostfile", str(hosts), "--name", "st", "--rdzv-backend", "static")
    ok(fab(*words, "--nproc-per-node", "1", "--env", f"OUT_DIR={fab.workdir}", "--", "dump.py"))
    assert {rank: each["env"]["TORCHFAB_NODE_RANK"] for rank, each in dumps(fab, 2).items()} == {0: "0", 1: "1"}
    ok(fab("wait", "st"))


# ---- stop


def test_stop_ends_processes_that_ignore_signals(any_fab: Fab) -> None:
    fab = any_fab
    fab.write("nasty.py", NASTY)
    ok(fab(*fab.launch("--name", "nasty", "--nproc-per-node", "2", "--", "nasty.py")))
    assert eventually(lambda: fab("logs", "nasty", "--no-fold").stdout.count("ready") == 4, 30)
    done = fab("stop", "nasty", "--grace", "1")
    assert done.rc == 3, done
    assert "had to be killed" in done.stdout
    assert "4 ranks were killed after 1 s" in done.stdout
    assert "no process of it is left on 2 nodes" in done.stdout
    assert fab.processes() == {}
    assert ok(fab("stop", "nasty")).stdout.count("none of its processes was running") == 1  # folded, and harmless
    assert fab("wait", "nasty").rc == 143


def test_the_supervisor_ends_the_ranks_of_a_killed_agent(fab: Fab) -> None:
    fab.write("nasty.py", NASTY)
    ok(fab(*fab.launch("--name", "agent", "--nproc-per-node", "2", "--grace", "1", "--", "nasty.py")))
    assert eventually(lambda: fab("logs", "agent", "--no-fold").stdout.count("ready") == 4, 30)
    for node in status_of(fab, "agent")["nodes"]:
        os.kill(node["processes"][0]["pid"], signal.SIGKILL)
    assert eventually(lambda: fab.processes() == {}, 60), fab.processes()
    status = status_of(fab, "agent")
    assert status["state"] == "failed"
    assert [node["processes"][0]["signal"] for node in status["nodes"]] == ["SIGKILL", "SIGKILL"]


def test_a_killed_supervisor_is_lost_and_stop_finds_its_processes(fab: Fab) -> None:
    fab.write("nasty.py", NASTY)
    ok(fab(*two(fab, "--name", "lost", "--", "nasty.py")))
    assert eventually(lambda: fab("logs", "lost", "--no-fold").stdout.count("ready") == 2, 60)
    started = json.loads(next(fab.node_dir.glob("jobs/lost-*/node-1/rank-1/started.json")).read_text())
    os.kill(started["supervisor_pid"], signal.SIGKILL)
    assert eventually(lambda: status_of(fab, "lost")["state"] == "lost", 60)
    node = status_of(fab, "lost")["nodes"][1]
    assert node["reason"] == "its supervisor was killed"
    assert len(node["left"]) == 2  # the rank ignores the SIGTERM sent by its supervisor's death
    assert fab("stop", "lost", "--grace", "0.5").rc == 3  # a rank was killed
    assert fab.processes() == {}


def test_jobs_with_a_common_name_prefix_do_not_affect_each_other(any_fab: Fab) -> None:
    fab = any_fab
    fab.write("tick.py", TICK)
    for name in ("job", "job1", "job-node0"):
        ok(fab(*two(fab, "--name", name, "--", "tick.py", "200")))
    ok(fab("stop", "job"))
    assert [status_of(fab, name)["state"] for name in ("job", "job1", "job-node0")] == ["stopped", "running", "running"]
    ok(fab("stop", "job-node0"))
    assert status_of(fab, "job1")["state"] == "running"
    ok(fab("stop", "job1"))
    assert fab.processes() == {}


def test_a_job_and_its_logs_survive_the_death_of_tmux(fab: Fab) -> None:
    fab.write("tick.py", TICK)
    ok(fab(*two(fab, "--name", "notmux", "--", "tick.py", "40")))
    shown = subprocess.run(
        [*fab.cluster.node(1).command(), "tmux", "-L", "torchfab", "display-message", "-p", "#{pid}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    os.kill(int(shown.stdout), signal.SIGKILL)
    time.sleep(0.5)
    assert status_of(fab, "notmux")["state"] == "running"
    assert ok(fab("wait", "notmux")).rc == 0
    assert "node2 [1] tick 39" in ok(fab("logs", "notmux", "--no-fold")).stdout


def states_on_node2(fab: Fab, job: str) -> dict[str, str]:
    return {each["name"]: each["state"] for each in status_of(fab, job)["nodes"][1]["processes"]}


def test_a_closed_window_ends_only_its_process(fab: Fab) -> None:
    fab.write("tick.py", TICK)
    words = ("launch-per-gpu", "--gpufile", gpufile(fab, 0, 1, 1, 1), "--name", "win", "--", "tick.py", "100")
    ok(fab(*words))
    # The supervisor runs in the first window, and a `cat` in the others.
    states = {"rank-1": "running", "rank-2": "running", "rank-3": "running"}
    for window in ("rank-2", "rank-1"):
        kill = ("tmux", "-L", "torchfab", "kill-window", "-t", f"=win-node1:{window}")
        subprocess.run([*fab.cluster.node(1).command(), *kill], check=True)
        states[window] = "failed"
        assert eventually(lambda: states_on_node2(fab, "win") == states, 60), states_on_node2(fab, "win")
    assert status_of(fab, "win")["nodes"][0]["state"] == "running"
    cause = json.loads(fab("why", "win", "--json").stdout)["cause"]
    assert (cause["kind"], cause["name"], cause["words"]) == ("killed", "asked", "its tmux window was closed")


def test_one_supervisor_runs_the_processes_of_a_node(fab: Fab) -> None:
    fab.write("tick.py", TICK)
    ok(fab("launch-per-gpu", "--gpufile", gpufile(fab, 0, 1, 1), "--name", "one", "--", "tick.py", "100"))
    supervisors = [pid for pid, words in fab.processes().items() if "supervise rank-1 rank-2" in words]
    assert len(supervisors) == 1
    os.kill(supervisors[0], signal.SIGKILL)
    assert eventually(lambda: states_on_node2(fab, "one") == {"rank-1": "lost", "rank-2": "lost"}, 60)
    assert status_of(fab, "one")["nodes"][0]["state"] == "running"
    cause = json.loads(fab("why", "one", "--json").stdout)["cause"]
    assert (cause["kind"], cause["name"]) == ("killed", "supervisor-killed")
    assert cause["words"].startswith("the supervisor of rank-"), cause
    ok(fab("stop", "one"))
    assert (fab.processes(), fab.sessions() - fab.sessions_before) == ({}, set())


# ---- records, attach, dry run


def test_jobs_lists_and_removes(fab: Fab) -> None:
    fab.write("tick.py", TICK)
    ok(fab(*two(fab, "--name", "one", "--follow", "--", "tick.py", "1")))
    ok(fab(*two(fab, "--name", "two", "--", "tick.py", "100")))
    listed = json.loads(ok(fab("jobs", "--json")).stdout)
    assert [(job["job"], job["state"]) for job in listed] == [("two", "running"), ("one", "succeeded")]
    done = fab("jobs", "two", "--remove")
    assert done.rc == 2, done
    assert "fab stop two" in done.stderr
    ok(fab("jobs", "one", "--remove"))
    assert fab.jobs() == ["two"]
    assert not list(fab.node_dir.glob("jobs/one-*"))


def test_attach_shows_the_window_of_a_rank(fab: Fab) -> None:
    fab.write("tick.py", TICK)
    ok(fab(*two(fab, "--name", "att", "--", "tick.py", "100")))
    terminal = ("tmux", "-L", f"terminal-{os.getpid()}")
    argv = fab.argv("attach", "att", "--rank", "1")
    env = {**os.environ, "FABRIC_TORCHFAB_RECORDS": str(fab.records)}
    subprocess.run([*terminal, "new-session", "-d", "-x", "100", "-y", "20", *argv], env=env, check=True)
    try:
        assert eventually(lambda: "[att-node1" in _screen(terminal), 60), _screen(terminal)
        assert "tick" in _screen(terminal)
        subprocess.run([*terminal, "send-keys", "C-b", "d"], check=True)
        assert eventually(lambda: _screen(terminal) == "", 60)
    finally:
        subprocess.run([*terminal, "kill-server"], check=False, capture_output=True)
    assert status_of(fab, "att")["state"] == "running"


def _screen(terminal: tuple[str, ...]) -> str:
    return subprocess.run([*terminal, "capture-pane", "-p"], capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("gpus", [False, True], ids=["per-node", "per-gpu"])
def test_the_dry_run_pasted_into_bash_launches_the_same_job(fab: Fab, gpus: bool) -> None:
    fab.write("dump.py", DUMP)
    env = ("--env", f"OUT_DIR={fab.workdir}", "--env", "HOSTILE=a 'b' $c\n")
    words = ["x y", "'", "$HOME", "a\nb"]
    secret = {"WANDB_API_KEY": "hush hush"}
    asked = ("--name", "dry", "--dry-run", *env, "--", "dump.py", *words)
    launch = two(fab, *asked) if gpus else fab.launch("--nproc-per-node", "1", *asked)
    shell = ok(fab(*launch, env=secret)).stdout
    assert "hush" not in shell
    assert fab.left() == {}
    environment = {**os.environ, **secret, "HOME": str(fab.cluster.layout.launch.home)}
    subprocess.run(["bash", "-s"], input=shell, text=True, check=True, env=environment)
    for found in dumps(fab, 2).values():
        assert found["argv"] == words
        assert found["env"]["HOSTILE"] == "a 'b' $c\n"
        assert found["env"]["WANDB_API_KEY"] == "hush hush"
        assert found["env"]["TORCHFAB_JOB_ID"].startswith("dry-")


def test_a_dry_run_with_all_facts_given_connects_nowhere(fab: Fab) -> None:
    (fab.workdir / "blocked").mkdir()
    fab.write("blocked/torch.py", "raise ImportError('not here')")
    before = logins(fab)
    words = fab.launch(
        "--name", "off", "--dry-run", "--nproc-per-node", "8", "--port", "5001", "--python", "/nowhere/python"
    )
    done = ok(fab(*words, env={"PYTHONPATH": str(fab.workdir / "blocked")}))
    assert logins(fab) == before
    assert "--nproc-per-node 8" in done.stdout
    assert "--rdzv-endpoint node1:5001" in done.stdout
    assert fab.left() == {}


def test_stop_names_an_unreachable_node_and_stops_the_others(fab: Fab, netns_cluster: Cluster) -> None:
    fab.write("tick.py", TICK)
    ok(fab(*two(fab, "--name", "cut", "--", "tick.py", "300")))
    netns_cluster.partition(1)
    try:
        done = fab("-t", "2", "status", "cut", "--json")
        states = [node["state"] for node in json.loads(done.stdout)["nodes"]]
        assert states == ["running", "unreachable"]
        done = fab("-t", "2", "stop", "cut")
        assert done.rc != 0
        assert "node2" in done.stderr
        assert "node1: 1 process ended" in done.stdout
    finally:
        netns_cluster.heal(1)
    ok(fab("stop", "cut"))
    assert fab.processes() == {}

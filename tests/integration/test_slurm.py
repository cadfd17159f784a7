"""Jobs on a real Slurm of two nodes: submit, status, stop, time limit, requeue; and trainings.

Jobs that must meet their time limit are begun first and looked at last: Slurm's limits are whole minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster
from tests.integration import launcher_contract, plays, test_graceful_end, test_signal
from tests.integration.fab import BIGRAM, FAB, ROOT, Fab, eventually
from tests.integration.jobs import bare_python, ok, status_of
from tests.integration.slurm import Slurm, SlurmFab, wait_for
from tests.support import require

SMALL = ("--max-steps", "4", "--batch-size", "2", "--seq-length", "32", "--log-freq", "1")
HOSTILE = [
    "",
    " ",
    "a  b",
    "it's",
    '"',
    "$HOME",
    "`id`",
    "\\",
    "x\\",
    ";",
    "*",
    "first\nsecond\n",
    "é€😀",
    "%j",
    "#",
    "--",
]
LIGHT = """
import json, os, sys, time
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_JOB_ID", "A_TOKEN", "WITH_BLANKS")
print(json.dumps({"argv": sys.argv[3:], **{name: os.environ.get(name) for name in names}}), flush=True)
code, seconds = int(sys.argv[1]), float(sys.argv[2])
time.sleep(0.5)
if code and os.environ["RANK"] == "3":
    sys.exit(code)
time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def slurm(loopback_cluster: Cluster) -> Iterator[Slurm]:
    """A Slurm whose nodes are named like the hosts of the cluster."""
    made = Slurm(loopback_cluster)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def fab(slurm: Slurm) -> Iterator[Fab]:
    """The real `fab` in an environment that reaches that Slurm."""
    made = _fab(slurm)
    yield made
    made.close()


def _fab(slurm: Slurm) -> SlurmFab:
    made = SlurmFab(slurm)
    made.write("light.py", LIGHT)
    made.take(*BIGRAM)
    return made


def submit(fab: Fab, name: str, *words: str, nodes: int = 2, script: tuple[str, ...] = ("light.py", "0", "60")) -> str:
    """Launch a job; return its Slurm id."""
    done = ok(fab("launch-slurm", "--name", name, "--nodes", str(nodes), *words, "--", *script))
    found = re.search(r"submitted as Slurm job (\d+)", done.stdout)
    assert found, done
    return found[1]


def runs(fab: Fab, name: str, ranks: int = 4) -> bool:
    """Return whether all ranks of a job run, by their records and by `fab status`."""
    pattern = f"jobs/{name}-????????/node-*/agent/ranks.json"
    begun = eventually(lambda: sum(map(_ranks_in, fab.node_dir.glob(pattern))) == ranks, 90)
    status: dict[str, Any] = status_of(fab, name) if begun else {"state": "starting", "nodes": []}
    return status["state"] == "running" and sum(len(node["ranks"]) for node in status["nodes"]) == ranks


def _ranks_in(path: Path) -> int:
    return len(json.loads(path.read_text()))


# ---- jobs with a time limit: started here, checked by the last tests


@pytest.fixture(scope="module", autouse=True)
def limited(slurm: Slurm) -> Iterator[Fab]:
    """Start a training that saves before its time limit, and a script without handler; both on node1.

    Slurm looks at time limits twice a minute: the signal comes 1 to 31 s before the limit.
    """
    made = _fab(slurm)
    there = ("--nproc-per-node", "1", "--sbatch-arg=--nodelist=node1", "--signal-grace", "1")
    names = ("--experiment-name", "limited", "--save-dir", "saved")
    training = ("bigram.py", *SMALL, "--max-steps", "1000000", *names)
    # It trains for minutes in parallel with the other tests.
    submit(made, "saves", "--time", "2", "--env", "PAUSE_S=0.5", *there, nodes=1, script=training)
    submit(made, "heedless", "--time", "1", *there, nodes=1, script=("light.py", "0", "600"))
    yield made
    made.close()


# ---- a whole training


def test_a_training_with_a_two_word_job_name_runs_over_two_nodes(fab: Fab, slurm: Slurm) -> None:
    words = ("--job-name", "my first training", "--gpus-per-node", "0", "--follow")
    script = ("--", "bigram.py", *SMALL, "--lr", "0.05", "--experiment-name", "small run")
    done = ok(fab("launch-slurm", "--name", "train", "--nodes", "2", *words, *script, timeout_s=120))
    assert {int(rank) for rank in re.findall(r"\] rank=(\d)", done.stdout)} == {0, 1, 2, 3}
    losses = [float(loss) for loss in re.findall(r" loss=(\d+\.\d+)", done.stdout)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    status = status_of(fab, "train")
    assert (status["state"], status["exit_code"], status["ended"]) == ("succeeded", 0, True)
    where = [(node["host"], [rank["rank"] for rank in node["ranks"]]) for node in status["nodes"]]
    assert where == [("node1", [0, 1]), ("node2", [2, 3])]
    assert "Name=my first training JobState=COMPLETED" in (slurm.folder / "jobcomp.txt").read_text()
    assert ok(fab("logs", "train", "--rank", "3")).stdout.count("rank=3") >= 1
    assert ok(fab("jobs", "train", "--remove"))
    assert fab.folders() == []


# ---- how jobs end


def test_the_code_of_the_rank_that_failed_is_the_jobs(fab: Fab, slurm: Slurm) -> None:
    job_id = submit(fab, "seven", script=("light.py", "7", "60"))
    assert fab("wait", "seven").rc == 7
    done = fab("status", "seven")
    assert done.rc == 1
    named = "rank 3 on node2 failed first (the script ended itself with exit code 7)"
    assert f"{named}; fab why seven | fab logs seven --rank 3" in done.stdout, done
    assert "ExitCode=7:0" in slurm.run("scontrol", "show", "job", job_id)  # Slurm's own accounting has it too
    assert "Exited with exit code 7" in fab("logs", "seven").stdout  # srun's output is in the logs
    why = json.loads(ok(fab("why", "seven", "--json")).stdout)
    assert (why["cause"]["kind"], why["cause"]["name"]) == ("script", "exit-code"), why
    assert (why["first"]["host"], why["first"]["rank"], why["first"]["code"]) == ("node2", 3, 7), why
    assert fab.processes() == {}


def test_two_jobs_run_a_third_waits_and_all_are_stopped(fab: Fab) -> None:
    ids = [submit(fab, "job", script=("light.py", "0", "60", "job")), submit(fab, "job-1", nodes=1)]
    submit(fab, "waits", "--exclusive")
    assert runs(fab, "job"), fab("status", "job")
    assert runs(fab, "job-1", 2), fab("status", "job-1")
    said = [json.loads(line.partition("] ")[2]) for line in fab("logs", "job", "--rank", "0-3").stdout.splitlines()]
    assert {(each["SLURM_JOB_ID"], *each["argv"]) for each in said} == {(ids[0], "job")}
    assert {each["MASTER_PORT"] for each in said} == {str(10000 + int(ids[0]) % 20000)}
    waiting = fab("status", "waits")
    assert waiting.rc == 0
    assert "job waits: pending" in waiting.stdout
    assert re.search(r"^(waits for nodes to become free|jobs with a higher)", waiting.stdout, re.MULTILINE), waiting
    assert "Slurm job" in ok(fab("stop", "waits")).stdout
    stopped = ok(fab("stop", "job", "--grace", "3"))
    assert "6 processes ended" in stopped.stdout
    assert "job job: stopped, no process of it is left on 2 nodes" in stopped.stdout
    assert runs(fab, "job-1", 2)
    assert "none of its processes was running" in ok(fab("stop", "job")).stdout
    assert [fab("wait", name).rc for name in ("job", "waits")] == [143, 143]
    ok(fab("stop", "job-1"))
    assert fab.processes() == {}
    assert {job["job"]: job["state"] for job in json.loads(fab("jobs", "--json").stdout)} == dict.fromkeys(
        ("job", "job-1", "waits"), "stopped"
    )


def test_all_commands_name_the_same_first_rank(fab: Fab) -> None:
    plays.check_one_on(plays.slurm_stage(fab), "import")


def path_without(program: str) -> str:
    """Return the PATH without the folders that hold a program: `./run` puts the project's first."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder) / program).exists())


def test_a_stop_lets_ranks_save(fab: Fab) -> None:
    fab.write("script.py", test_graceful_end.SAVES)
    out = launcher_contract.out_dir(fab, "saved")
    submit(fab, "saver", script=("script.py", str(out), "6"))
    assert eventually(lambda: len(list(out.glob("*.ready"))) == 4, 150), fab("logs", "saver")
    stopped = ok(fab("stop", "saver", "--grace", "40", timeout_s=120))
    found = test_graceful_end.saved(out)
    assert sorted(found) == [0, 1, 2, 3], (stopped, fab("logs", "saver", "--lines", "30"))
    assert {each["terms"] for each in found.values()} == {1}, found
    assert "4 ranks ended by themselves" in stopped.stdout, stopped
    assert "job saver: stopped" in stopped.stdout, stopped


def test_a_notice_is_sent_by_an_overlapping_step(fab: Fab) -> None:
    fab.write("noted.py", test_signal.NOTED)
    out = launcher_contract.out_dir(fab, "noted")
    submit(fab, "noted", script=("noted.py", str(out)))
    assert eventually(lambda: len(list(out.glob("*.ready"))) == 4, 150), fab("logs", "noted")
    assert ok(fab("signal", "noted", "USR1", timeout_s=120)).stdout == "SIGUSR1 sent to 4 ranks on 2 hosts\n"
    assert eventually(lambda: sorted(test_signal.found(out)) == [(str(rank), 1) for rank in range(4)], 20)
    refused = fab("checkpoint", "noted", "--dir", str(out), "--signal", "USR2", timeout_s=120)
    assert (refused.rc, "have no handler for SIGUSR2" in refused.stderr) == (2, True), refused
    late = fab("checkpoint", "noted", "--dir", str(out), "--timeout", "60", timeout_s=120)
    # What the ranks write at the notice is no log: it counts as their checkpoint.
    assert (late.rc, late.stdout.startswith("checkpoint on ")) == (0, True), late
    ok(fab("stop", "noted"))


def test_an_overlapping_step_dumps_stacks_with_a_sent_py_spy(fab: Fab) -> None:
    env = {"PATH": path_without("py-spy")}
    submit(fab, "odd", "--python", str(bare_python(fab)), script=("light.py", "0", "60"))
    assert runs(fab, "odd"), fab("status", "odd")
    assert eventually(lambda: "all 4 ranks are in time.sleep" in fab("stacks", "odd", env=env).stdout, 30)
    found = json.loads(ok(fab("stacks", "odd", "--json", "--rank", "1-2", env=env)).stdout)
    assert [(each["host"], each["rank"]) for each in found["ranks"]] == [("node1", 1), ("node2", 2)]
    assert [node["py_spy"] for node in found["nodes"]] == ["sent", "sent"]
    assert not list(fab.node_dir.glob("jobs/odd-*/stacks-*"))
    ok(fab("stop", "odd"))
    assert "does not run" in fab("stacks", "odd").stderr


def test_scancel_by_another_user_is_distinguished(fab: Fab, slurm: Slurm) -> None:
    job_id = submit(fab, "cancelled", nodes=1)
    wait_for(slurm, job_id, "RUNNING")
    slurm.run("scancel", job_id)
    assert fab("wait", "cancelled").rc == 143
    assert "it was cancelled with scancel, not with fab stop" in json.dumps(status_of(fab, "cancelled"))
    assert "it was cancelled with scancel, not with fab stop\n" in ok(fab("why", "cancelled")).stdout


def test_a_node_failure_loses_or_requeues_the_job(fab: Fab, slurm: Slurm) -> None:
    node2 = ("--sbatch-arg=--nodelist=node2", "--nproc-per-node", "1")
    lost = submit(fab, "lost", "--no-requeue", *node2, nodes=1)
    again = submit(fab, "again", *node2, nodes=1, script=("light.py", "0", "6"))
    for job_id in (lost, again):
        wait_for(slurm, job_id, "RUNNING")
    assert runs(fab, "again", 1)
    slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=pulled")
    for job_id in (lost, again):
        slurm.kill_job(job_id)  # a node without power gets no request to end its jobs
    assert fab("wait", "lost").rc != 0
    found = status_of(fab, "lost")
    assert (found["state"], found["reason"], found["ended"]) == ("lost", "a node failed", True)
    why = json.loads(ok(fab("why", "lost", "--json")).stdout)
    assert (why["cause"]["kind"], why["cause"]["name"]) == ("node", "node-failed"), why
    wait_for(slurm, again, "PENDING", 60)
    pending = status_of(fab, "again")
    assert pending["state"] == "pending"
    assert "requeued once" in pending["reason"]
    folders = fab.folders()
    slurm.run("scontrol", "update", "nodename=node2", "state=resume")
    slurm.run("scontrol", "update", f"jobid={again}", "StartTime=now")  # otherwise it waits for two minutes
    assert fab("wait", "again", timeout_s=200).rc == 0
    assert fab.folders() == folders
    log = fab("logs", "again", "--rank", "0").stdout
    assert log.count('"RANK": "0"') == 2  # the first run's log stays


# ---- logins and allocations


def test_a_job_through_a_login_node_keeps_its_secret(fab: Fab, slurm: Slurm) -> None:
    login = fab.cluster.layout.nodes[0]
    start_up = login.home / ".bashrc"
    start_up.write_text(f"export SLURM_CONF={slurm.folder}/slurm.conf\n")
    outside = {"SLURM_CONF": "/nowhere/slurm.conf"}
    words = ("--login", "node1", "--env", "A_TOKEN=open sesame", "--env", "WITH_BLANKS=a  b")
    try:
        done = ok(fab("launch-slurm", "--name", "far", *words, "--", "light.py", "0", "8", *HOSTILE, env=outside))
        job_id = re.findall(r"Slurm job (\d+)", done.stdout)[0]
        written = "jobs/far-????????/node-0/agent/ranks.json"
        assert eventually(lambda: sum(map(_ranks_in, fab.node_dir.glob(written))) == 2, 90)
        status = json.loads(fab("status", "far", "--json", env=outside).stdout)
        assert [rank["rank"] for rank in status["nodes"][0]["ranks"]] == [0, 1]
        seen = subprocess.run(("ps", "axww", "-o", "args"), capture_output=True, text=True, check=True).stdout
        seen += slurm.run("scontrol", "show", "job", job_id) + slurm.run(
            "scontrol", "write", "batch_script", job_id, "-"
        )
        seen += "".join(path.read_text() for path in fab.base.rglob("*.json")) + done.stdout
        assert "open sesame" not in seen
        assert fab("wait", "far", env=outside).rc == 0
        said = fab("logs", "far", "--rank", "0-1", "--no-fold", env=outside).stdout.splitlines()
        found = [json.loads(line.partition("] ")[2]) for line in said]
        assert [each["argv"] for each in found] == [HOSTILE] * 2
        # It arrived: its value is hidden in the output of the rank.
        assert {(each["A_TOKEN"], each["WITH_BLANKS"]) for each in found} == {("<A_TOKEN>", "a  b")}
        ok(fab("jobs", "far", "--remove", env=outside))
        assert fab.left() == {}
    finally:
        start_up.write_text("")


def test_the_dry_run_submitted_by_sbatch_is_the_same_job(fab: Fab, slurm: Slurm) -> None:
    words = ("--name", "by-hand", "--nodes", "2", "--time", "5", "--nproc-per-node", "1", "--job-name", "by hand")
    text = ok(fab("launch-slurm", "--dry-run", *words, "--", "light.py", "0", "1", *HOSTILE)).stdout
    assert fab.jobs() == []
    folder = Path(re.findall(r"mkdir -p -m 700 (\S+) && sbatch", text)[0])
    fab.write("job.sbatch", text)
    make = ("bash", "-c", f"mkdir -p -m 700 {folder}")
    subprocess.run(fab.cluster.on_launch_machine(*make), check=True)
    job_id = slurm.run("sbatch", "--parsable", str(fab.workdir / "job.sbatch")).strip()
    wait_for(slurm, job_id, "COMPLETED", 60)
    found = [json.loads(path.read_text()) for path in folder.rglob("stdout.log")]
    assert [each["argv"] for each in found] == [HOSTILE] * 2
    assert sorted(each["RANK"] for each in found) == ["0", "1"]


def test_launch_per_node_takes_its_hosts_from_an_allocation(fab: Fab, slurm: Slurm) -> None:
    master = fab.cluster.layout.nodes[0].address
    words = ("launch-per-node", "--hostfile", "slurm", "--name", "inside", "--master-addr", master, "--follow")
    core = (str(FAB), "-r", str(ROOT), "-S", str(fab.cluster.ssh_config), *words, "--rdzv-backend", "static")
    argv = fab.cluster.on_launch_machine(slurm.programs["salloc"], "-N2", "-n4", "--ntasks-per-node=2", *core)
    env = {**os.environ, **slurm.environment, "FABRIC_TORCHFAB_RECORDS": str(fab.records)}
    done = subprocess.run(
        (*argv, "--", "light.py", "0", "0"), cwd=fab.workdir, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done
    assert "4 ranks on 2 nodes" in done.stdout
    assert {line.partition(" ")[0] for line in done.stdout.splitlines() if '"RANK"' in line} == {"node1", "node2"}


# ---- bad input


@pytest.mark.parametrize(
    ("words", "env", "message", "fix"),
    [
        (("--partition", "nope"), {}, "invalid partition specified: nope", "sinfo -s"),
        (("--constraint", "nope"), {}, "Invalid feature specification", "sinfo -N"),
        (("--python", "/no/python"), {}, "there is no /no/python", "--python"),
        (("--workdir", "/no/folder"), {}, "the working directory /no/folder does not exist", "--workdir"),
        ((), {"SLURM_CONF": "/no/slurm.conf"}, "SLURM_CONF names /no/slurm.conf", "--login"),
        (("--login", "nowhere.invalid"), {}, "does not resolve", ""),
    ],
    ids=["partition", "feature", "python", "workdir", "no cluster", "login"],
)
def test_errors_are_one_line_and_nothing_is_left(
    fab: Fab, slurm: Slurm, words: tuple[str, ...], env: dict[str, str], message: str, fix: str
) -> None:
    before = slurm.run("squeue", "-h", "-t", "all").count("\n")
    done = fab("launch-slurm", "--name", "bad", *words, "--", "light.py", "0", "60", env=env)
    assert done.rc in (1, 2), done
    assert message in done.stderr, done
    assert fix in done.stderr, done
    assert "Traceback" not in done.stderr
    assert fab.left() == {}
    assert slurm.run("squeue", "-h", "-t", "all").count("\n") == before


def test_a_missing_sbatch_is_a_one_line_error(fab: Fab) -> None:
    programs = fab.workdir / "bin"
    programs.mkdir()
    for name in ("unshare", "setpriv", "sh", "mount", "env"):  # programs that lead to the launch machine
        (programs / name).symlink_to(require(name))
    done = fab("launch-slurm", "--", "light.py", "0", "60", env={"PATH": str(programs)})
    assert done.rc == 1
    assert "error: there is no sbatch here\n  fix: install Slurm's client, or name a host" in done.stderr, done
    assert fab.left() == {}


def test_a_missing_controller_is_unreachable_not_ended(fab: Fab, slurm: Slurm) -> None:
    submit(fab, "alone", "--exclusive")
    conf = (slurm.folder / "slurm.conf").read_text()
    other = fab.write("slurm.conf", re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", conf) + "MessageTimeout=1\n")
    config = {"SLURM_CONF": str(other)}
    done = fab("status", "alone", env=config)
    assert done.rc == 1
    assert "job alone: unreachable" in done.stdout
    assert "Slurm cannot be queried" in done.stdout
    assert fab("stop", "alone", env=config).rc == 1
    ok(fab("stop", "alone"))


# ---- the time limit; these tests are last, because a minute must pass


def test_a_training_saves_before_its_time_limit(limited: Fab) -> None:
    done = limited("wait", "saves", timeout_s=120)
    assert done.rc in (128 + 15, 1), done
    log = limited("logs", "saves").stdout
    assert "stopped by SIGTERM at step" in log
    assert list(limited.workdir.glob("saved/limited/**/*")), "nothing was saved"
    status = status_of(limited, "saves")
    assert (status["state"], status["ended"]) == ("failed", True)
    # After five minutes, on a slow machine, slurmctld has forgotten the limit; `sacct -c` has only the state.
    words = r"the time limit( of 00:02:00)? was (near: the ranks got SIGUSR1, and ended|reached)"
    assert re.fullmatch(words, status["reason"])


def test_the_time_limit_ends_a_script_without_handler(limited: Fab) -> None:
    done = limited("wait", "heedless", timeout_s=150)
    # The code of the ranks after SIGTERM; or Slurm's, if it killed the supervisor before it recorded that.
    assert done.rc in (143, 1), done
    status = status_of(limited, "heedless")
    assert status["state"] == "failed"
    assert re.fullmatch(r"the time limit( of 00:01:00)? was reached", status["reason"])
    why = json.loads(ok(limited("why", "heedless", "--json")).stdout)
    assert (why["cause"]["kind"], why["cause"]["name"]) == ("killed", "time-limit"), why
    assert not any("light.py" in command for command in limited.processes().values())


# ---- setup, before, after


def test_setup_before_and_after_run_on_each_node(fab: Fab) -> None:
    python = bare_python(fab)
    fab.write("loaded.sh", f"export LOADED=yes PATH='{python.parent}':$PATH\n")
    fab.write("show.py", "import os, shutil\nprint(os.environ['LOADED'], shutil.which('python'))\n")
    hooks = ("--before", "echo before $SLURM_NODEID", "--after", "echo after $TORCHFAB_NODE_RANK $TORCHFAB_EXIT_CODE")
    words = ("--setup", f"source '{fab.workdir}/loaded.sh'", *hooks, "--nproc-per-node", "1")
    submit(fab, "set-up", *words, script=("show.py",))
    ok(fab("wait", "set-up", timeout_s=120))
    lines = ok(fab("logs", "set-up", "--all")).stdout
    assert f"[0-1] yes {python}\n" in lines, lines
    assert ("before 0" in lines, "before 1" in lines) == (True, True), lines
    assert ("after 0 0" in lines, "after 1 0" in lines) == (True, True), lines


def test_a_setup_that_fails_ends_the_job_and_is_in_its_logs(fab: Fab) -> None:
    submit(fab, "not-set-up", "--setup", "echo looking; module load cuda", nodes=1, script=("light.py", "0", "0"))
    assert fab("wait", "not-set-up", timeout_s=120).rc != 0
    lines = ok(fab("logs", "not-set-up", "--all")).stdout
    assert "--setup failed in" in lines
    assert "looking" in lines

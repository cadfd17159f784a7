"""The Python API in a program of the user's own: launches, follows, diagnoses and stops jobs on rehearsal hosts."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from collections.abc import Mapping

from tests.integration.fab import ROOT, Fab
from tests.integration.jobs import host_line, ok, status_of

STEPS = "import os, sys, time\nfor step in range(3): print('step', step, os.environ['RANK'], flush=True)\n"
FAILS = STEPS + "if os.environ['RANK'] == '1': raise ValueError('bad batch')\n"
WHOLE_LIFE = """
from concurrent.futures import ThreadPoolExecutor

import torchfab
from torchfab import job, jobs, launch

one = dict(hosts=HOSTS, project=ROOT, ssh_config=SSH_CONFIG, launcher="per-gpu")
with launch(["light.py", "60"], name="runs", env={"A": "x y"}, **one) as run:
    lines = run.logs(follow=True)
    first = next(lines)
    lines.close()
    shown = dict(first=str(first), state=run.status().state, running=[each.state for each in jobs(project=ROOT)])
    try:
        run.wait(timeout=0.3)
    except torchfab.WaitTimeoutError as error:
        shown["waited"] = str(error)
shown["stopped"] = run.status().state
print(json.dumps(shown))

with ThreadPoolExecutor() as threads:
    failing = threads.submit(launch, ["fails.py"], name="fails", **one).result()
found = failing.wait()
again = job("fails", project=ROOT)
why = again.why()
try:
    launch(["fails.py"], name="fails", **one)
except torchfab.JobNameError as error:
    taken = str(error)
print(json.dumps(dict(
    state=found.state, code=found.exit_code, rank=found.first_failure.rank, cause=why.cause, traceback=why.traceback,
    lines=sorted(str(line) for line in again.logs(rank=1, grep="^step")), taken=taken,
)))
"""


def run_program(fab: Fab, code: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program on the launch machine, in the workdir, as the user that runs `fab`."""
    given = {
        "HOSTS": [host_line(fab, 0), host_line(fab, 1)],
        "ROOT": str(ROOT),
        "SSH_CONFIG": str(fab.cluster.ssh_config),
    }
    head = "import json, os, sys\n" + "".join(f"{name} = {value!r}\n" for name, value in given.items())
    path = fab.write("program.py", head + code)
    more = {"PYTHONPATH": str(ROOT), "FABRIC_TORCHFAB_RECORDS": str(fab.records), **(env or {})}
    variables = ("env", *(f"{name}={value}" for name, value in more.items()))
    argv = fab.cluster.on_launch_machine(*variables, sys.executable, str(path))
    return subprocess.run(argv, cwd=fab.workdir, capture_output=True, text=True, timeout=100, check=False)


def test_a_program_launches_follows_and_stops_jobs_that_commands_see(loopback_fab: Fab) -> None:
    fab = loopback_fab
    fab.write("fails.py", FAILS)
    done = run_program(fab, WHOLE_LIFE)
    assert (done.returncode, done.stderr) == (0, ""), done
    lives, fails = map(json.loads, done.stdout.splitlines())
    assert lives["first"].endswith("] light 60")
    assert (lives["state"], lives["running"], lives["stopped"]) == ("running", ["running"], "stopped")
    assert lives["waited"].startswith("job runs has not ended within 0.3 s; it continues")
    assert (fails["state"], fails["code"], fails["rank"]) == ("failed", 1, 1)
    assert "ValueError" in fails["cause"]
    assert fails["traceback"].rstrip().endswith("ValueError: bad batch")
    assert [line.partition("] ")[2] for line in fails["lines"]] == [f"step {step} 1" for step in range(3)]
    assert fails["taken"].startswith("there is a job fails already")
    assert status_of(fab, "fails")["state"] == "failed"
    assert "runs" in ok(fab("jobs")).stdout


FUNCTIONS = """
import os
import torchfab
from torchfab import launch

offset = 40
one = dict(hosts=HOSTS, project=ROOT, ssh_config=SSH_CONFIG)

def add(number, *, fails=None):
    import torch.distributed as dist
    import torch
    print("called", flush=True)
    dist.init_process_group("gloo")
    total = torch.tensor(number + offset)
    dist.all_reduce(total)
    if dist.get_rank() == fails:
        raise ValueError("bad batch")
    if fails is not None:
        dist.barrier()
    return dist.get_rank(), int(total), os.environ["TORCHFAB_NODE_RANK"]

if __name__ == "__main__":
    print(json.dumps(launch(add, args=[2], name="adds", nproc_per_node=1, **one)))
    print(json.dumps([str(line.text) for line in torchfab.job("adds", project=ROOT).logs() if line.rank == 1]))
    try:
        launch(add, args=[2], kwargs=dict(fails=1), launcher="per-gpu", **one)
    except torchfab.FunctionError as error:
        print(json.dumps([error.rank, error.host, error.traceback, type(error.__cause__).__name__]))
"""


def test_a_function_runs_on_all_ranks_and_its_results_come_back(loopback_fab: Fab) -> None:
    fab = loopback_fab
    done = run_program(fab, FUNCTIONS)
    assert (done.returncode, done.stderr) == (0, ""), done
    results, lines, failure = map(json.loads, done.stdout.splitlines())
    assert sorted(results) == [[0, 84, results[0][2]], [1, 84, results[1][2]]]
    assert {node for *_, node in results} == {"0", "1"}
    assert lines == ["called"]
    rank, host, traceback, kind = failure
    assert (rank, host, kind) == (1, host_of(host_line(fab, 1)), "ValueError")
    assert 'in add\n    raise ValueError("bad batch")' in traceback
    assert "# add(…)" in ok(fab("jobs")).stdout


def host_of(line: str) -> str:
    return line.split(maxsplit=1)[0]


BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "---- block"


def test_the_examples_of_the_docs_print_what_they_show(fab: Fab) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    kinds, texts = [kind for kind, _ in blocks], [text for _, text in blocks]
    fab.write("train.py", next(text for text in texts if text.startswith("# train.py\n")))
    code = [text for kind, text in blocks if kind == "python" and not text.startswith("# train.py\n")]
    wanted = [text for kind, text in blocks if kind == "text"]
    assert kinds == ["python", *(["python", "text"] * len(wanted))]
    home = fab.folder / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text(fab.cluster.ssh_config.read_text())
    fab.own(home)
    done = run_program(fab, f"print({MARK!r})\n".join(code), {"HOME": str(home)})
    printed = done.stdout.split(MARK + "\n")
    assert (done.returncode, done.stderr, len(printed)) == (0, "", len(wanted)), done
    checker = doctest.OutputChecker()
    for want, got in zip(wanted, printed, strict=True):
        assert checker.check_output(want, got, doctest.ELLIPSIS), f"{got} is printed, not {want}"

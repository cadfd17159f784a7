"""The Python API in a program of the user's own: launches, follows, diagnoses and stops jobs on rehearsal hosts."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.integration.fab import ROOT, Fab
from tests.integration.jobs import host_line, ok, status_of

STEPS = "import os, sys, time\nfor step in range(3): print('step', step, os.environ['RANK'], flush=True)\n"
FAILS = STEPS + "if os.environ['RANK'] == '1': raise ValueError('bad batch')\ntime.sleep(60)\n"
WHOLE_LIFE = """
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

failing = launch(["fails.py"], name="fails", **one)
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


def run_program(fab: Fab, code: str, **values: Any) -> subprocess.CompletedProcess[str]:
    """Run a program on the launch machine, in the workdir, as the user that runs `fab`."""
    given = {
        "HOSTS": [host_line(fab, 0), host_line(fab, 1)],
        "ROOT": str(ROOT),
        "SSH_CONFIG": str(fab.cluster.ssh_config),
    }
    head = "import json, os, sys\n" + "".join(f"{name} = {value!r}\n" for name, value in {**given, **values}.items())
    path = fab.write("program.py", head + code)
    variables = ("env", f"PYTHONPATH={ROOT}", f"FABRIC_TORCHFAB_RECORDS={fab.records}")
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
    assert lives["waited"].startswith("job runs has not ended within 0.3 s; it goes on")
    assert (fails["state"], fails["code"], fails["rank"]) == ("failed", 1, 1)
    assert "ValueError" in fails["cause"]
    assert fails["traceback"].rstrip().endswith("ValueError: bad batch")
    assert [line.partition("] ")[2] for line in fails["lines"]] == [f"step {step} 1" for step in range(3)]
    assert fails["taken"].startswith("there is a job fails already")
    assert status_of(fab, "fails")["state"] == "failed"
    assert "runs" in ok(fab("jobs")).stdout

"""launch-kubernetes as a user types it; the pods of its manifest run as processes in network namespaces."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import Cluster
from tests.integration import ends, plays
from tests.integration.fab import ROOT, eventually
from tests.integration.kube_fab import KubeFab
from tests.kube.api import API
from tests.kube.machines import Machines

SMALL = ("--max-steps", "4", "--batch-size", "2", "--seq-length", "32", "--log-freq", "1")
FAILING = """
import os, sys, time
rank = int(os.environ["RANK"])
print("hello from", rank, sys.argv[1:], os.environ["HF_TOKEN"] == "v$(x)$$", flush=True)
time.sleep(1)
if rank == 3:
    sys.exit(7)
time.sleep(60)
"""


@pytest.fixture
def fab(netns_cluster: Cluster) -> Iterator[KubeFab]:
    with API() as api, tempfile.TemporaryDirectory(dir=netns_cluster.layout.run_dir) as name:
        machines = Machines(api, netns_cluster, Path(name))
        try:
            yield KubeFab(api, machines, Path(name))
        finally:
            machines.close()


def test_the_pods_of_the_manifest_train(fab: KubeFab) -> None:
    script = (str(ROOT / "train_llm.py"), *SMALL, "--experiment-name", "it's $(HOME) $$ run")
    words = ("--name", "train", "--nproc-per-node", "1", "--env", "HF_HUB_OFFLINE=1", "--follow")
    done = fab(*fab.launch(*words, "--", *script))
    assert done.rc == 0, done
    losses = [float(loss) for loss in re.findall(r"\[0\].* loss=(\d+\.\d+)", done.stdout)]
    assert len(losses) == 4, done
    assert losses[-1] < losses[0]
    assert {int(rank) for rank in re.findall(r"\] rank=(\d)", done.stdout)} == {0, 1}, done
    assert "job train succeeded" in done.stderr
    status = json.loads(fab("status", "train", "--json").stdout)
    assert (status["state"], status["exit_code"]) == ("succeeded", 0)
    assert fab("stop", "train").rc == 0
    assert fab.api.names() == []


def test_the_first_failing_ranks_code_is_the_jobs(fab: KubeFab) -> None:
    (fab.workdir / "fail.py").write_text(FAILING)
    done = fab(*fab.launch("--name", "fails", "--follow", "--", "fail.py", "a b", "$(HOME)$$", "é\n"))
    assert done.rc == 7, done
    assert "rank 3 on fails-1 failed first (the script ended itself with exit code 7)" in done.stderr
    # Of the other pod, which the cluster removed, only lines read before that are left.
    assert "[3] hello from 3 ['a b', '$(HOME)$$', 'é\\n'] True" in done.stdout
    assert eventually(lambda: all(each.poll() is not None for each in fab.machines.pods.values()), 60)
    status = json.loads(fab("status", "fails", "--json").stdout)
    assert status["first_failure"]["rank"] == 3
    assert fab("wait", "fails").rc == 7
    assert "hello from 3" in fab("logs", "fails", "--rank", "3").stdout


def test_all_commands_name_the_same_first_rank(fab: KubeFab) -> None:
    plays.check_one_on(plays.pods_stage(fab), "loader")


def test_stop_ends_the_pods_and_keeps_their_logs(fab: KubeFab) -> None:
    (fab.workdir / "light.py").write_text("import time\nprint('light', flush=True)\ntime.sleep(300)\n")
    assert fab(*fab.launch("--name", "light", "--grace", "5", "--", "light.py")).rc == 0
    follower = fab.start("logs", "light", "--follow")
    assert eventually(lambda: sum("light" in text for log in fab.api.logs.values() for _, text in log.lines) >= 4, 60)
    time.sleep(1)
    done = fab("stop", "light")
    assert done.rc == 0, done
    assert "job light: stopped, no process of it is left on 2 nodes" in done.stdout
    assert all(each.poll() is not None for each in fab.machines.pods.values())
    assert fab.api.names() == []
    out, err = follower.communicate(timeout=30)
    assert follower.returncode == 143, err
    assert "light" in out
    assert "light" in fab("logs", "light").stdout


@pytest.mark.parametrize("end", ["the pod is deleted", "a rank fails"])
def test_ranks_of_a_pod_save(tmp_path: Path, end: str) -> None:
    (tmp_path / "ends.py").write_text(ends.SCRIPT)
    torchrun = ("--standalone", "--nproc-per-node", "4")
    program = ROOT / "torchfab" / "launchers" / "manifest" / "pod_entrypoint.py"
    argv = (sys.executable, str(program), *torchrun, "--max-restarts", "0", "ends.py", str(tmp_path), "3")
    env = {**os.environ, "TORCHFAB_GRACE_S": "30", "TORCHFAB_MESSAGE": str(tmp_path / "message")}
    pod = subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert ends.await_ready(tmp_path, 4)
        if end == "a rank fails":
            (tmp_path / "fail").touch()
        else:
            pod.terminate()
        code = pod.wait(60)
    finally:
        pod.kill()
    assert code == (7 if end == "a rank fails" else 143)
    assert ends.problems_of(ends.read_ends(tmp_path, 4)) == {}


def test_fab_does_not_load_the_client_to_list_its_tasks() -> None:
    code = "import fabric.main, fabfile, sys; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

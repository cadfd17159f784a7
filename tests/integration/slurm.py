"""A real Slurm of two nodes on this machine, as an ordinary user: the nodes' user of a rehearsal cluster."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from testbed import Cluster
from testbed.processes import Process
from tests.integration.fab import Fab, eventually, read
from tests.support import require

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sacct", "scancel", "sinfo", "salloc")
KILL_WAIT_S = 5
# cred/none and auth/none avoid munged, which needs its own key. The nodes are named like the SSH hosts.
CONF = """\
ClusterName=rehearsal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait={kill_wait_s}
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=8 RealMemory=2000 Gres=gpu:2
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES = (
    "AutoDetect=off\nNodeName=node[1-2] Name=gpu File=/dev/tty[0-1]\n"  # any device files will do: nothing opens them
)


class Slurm:
    """slurmctld and two slurmd, with a folder, a configuration and ports of their own; whoever makes one calls `close`.

    Parameters
    ----------
    cluster : Cluster
        As whose user it runs: on its launch machine.
    kill_wait_s : int
        Seconds between SIGTERM and SIGKILL, in whole seconds.
    """

    def __init__(self, cluster: Cluster, kill_wait_s: int = KILL_WAIT_S) -> None:
        self.programs = {name: require(name) for name in PROGRAMS}
        self.cluster, self.kill_wait_s = cluster, kill_wait_s
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir=cluster.layout.launch.home))
        self.processes: list[subprocess.Popen[bytes]] = []
        self._write()

    def _write(self) -> None:
        (self.folder / "state").mkdir()
        for name in ("node1", "node2"):
            (self.folder / f"spool.{name}").mkdir()
        text = CONF.format(
            host=socket.gethostname(),
            user=self.cluster.layout.account.name,
            folder=self.folder,
            ports=_free_ports(),
            kill_wait_s=self.kill_wait_s,
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(GRES)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        account = self.cluster.layout.account
        if os.geteuid() == 0:
            for path in [self.folder, *self.folder.rglob("*")]:
                os.chown(path, account.uid, account.gid)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables by which commands reach this Slurm."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons, and wait until both nodes are idle."""
        self._spawn("slurmctld", "-D", "-c", "-i")
        for name in ("node1", "node2"):
            self._spawn("slurmd", "-D", "-N", name)
        assert eventually(self.is_idle, 20), self.logs()

    def _spawn(self, program: str, *args: str) -> None:
        argv = self.cluster.on_launch_machine(self.programs[program], *args)
        process = subprocess.Popen(
            argv,
            env={**os.environ, **self.environment},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)

    def run(self, program: str, *args: str) -> str:
        """Run a Slurm command; return stdout and stderr."""
        argv = self.cluster.on_launch_machine(self.programs[program], *args)
        done = subprocess.run(argv, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def kill_job(self, job_id: str) -> None:
        """Kill all processes of a job, Slurm's steps included, by the job's id: as if the machine had died."""
        mark = f"\0SLURM_JOB_ID={job_id}\0".encode()
        for path in Path("/proc").glob("[0-9]*"):
            is_step = read(path / "cmdline").startswith(f"slurmstepd: [{job_id}.".encode())
            if is_step or mark in b"\0" + read(path / "environ"):
                os.kill(int(path.name), signal.SIGKILL)

    def is_idle(self) -> bool:
        """Return whether both nodes are idle."""
        return self.run("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"]

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log")))

    def clear(self) -> None:
        """Cancel every job, bring both nodes back, and wait until they are idle."""
        self.run("scancel", "--user", self.cluster.layout.account.name)
        for state in ("down", "resume"):
            if not self.is_idle():
                self.run("scontrol", "update", "nodename=node[1-2]", f"state={state}", "reason=tests")
        assert eventually(self.is_idle, 30), self.run("sinfo") + self.run("squeue") + self.logs()

    def close(self) -> None:
        """Stop the daemons by their pids, and remove the folder."""
        for process in reversed(self.processes):
            if living := Process.of(process.pid):
                living.signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class SlurmFab(Fab):
    """The real `fab` in an environment that reaches a real Slurm."""

    def __init__(self, slurm: Slurm, name: str = "here") -> None:
        self.slurm = slurm
        super().__init__(slurm.cluster, name)

    def start(self, *args: str, env: dict[str, str] | None = None, **more: object) -> subprocess.Popen[str]:  # type: ignore[override]
        """Start `fab ARGS...` as `Fab` does."""
        return super().start(*args, env={**self.slurm.environment, **(env or {})}, **more)  # type: ignore[arg-type]


def _free_ports() -> list[int]:
    """Return one free port, and two free ones in a row."""
    for first in range(26000 + os.getpid() % 4000, 32000):
        if all(_is_free(port) for port in range(first, first + 3)):
            return [first, first + 1, first + 2]
    raise AssertionError("no three ports in a row are free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_for(slurm: Slurm, job_id: str, state: str, within_s: float = 20) -> None:
    """Wait until squeue shows a job in a state."""
    deadline = time.monotonic() + within_s
    while state not in (found := slurm.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T")):
        assert time.monotonic() < deadline, f"{job_id} is {found}, not {state}"
        time.sleep(0.1)

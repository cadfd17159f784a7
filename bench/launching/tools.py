"""The compared tools: the command that makes each do the same, and its version.

Fan-out: one command on every host. Whole: from the user's command to running ranks.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from launching.hosts import Files

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIBRARIES = {"parallel-ssh": "parallel-ssh==2.16.0.post1", "asyncssh": "asyncssh==2.24.1"}
PROGRAMS = {"xargs": "ssh", "seed": "ssh", "pdsh": "pdsh", "clush": "clush", "mpirun": "mpirun.openmpi"}
OURS = "torchfab"
AT_ONCE = "64"


def own_python(folder: Path) -> Path:
    """Return the interpreter with the compared libraries, in the benchmark's own virtual environment."""
    return folder / "bin" / "python"


def install(folder: Path) -> None:
    """Install the compared libraries once; without a registry their rows are marked as not measured."""
    if own_python(folder).exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    argv = [str(own_python(folder)), "-m", "pip", "install", "-q", "--disable-pip-version-check", *LIBRARIES.values()]
    subprocess.run(argv, check=False, timeout=300)


def versions(venv: Path) -> dict[str, str]:
    """Return the version of each tool; empty if it is not installed."""
    found = {OURS: _git(), **dict.fromkeys(LIBRARIES, "")}
    for name in LIBRARIES:
        code = f"import importlib.metadata as m; print(m.version({name!r}))"
        found[name] = _output([str(own_python(venv)), "-c", code]).strip()
    flags = {"ssh": "-V", "pdsh": "-V", "clush": "--version", "mpirun.openmpi": "--version"}
    for tool, program in PROGRAMS.items():
        match = re.search(r"\d+\.[\w.]+", _output([_which(program), flags[program]])) if _which(program) else None
        found[tool] = match[0] if match else ""
    return found


def _which(program: str) -> str:
    beside = Path(sys.executable).parent / program
    return str(beside) if beside.exists() else shutil.which(program) or ""


def _output(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def _git() -> str:
    return _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]).strip() or "unknown"


@dataclass(frozen=True)
class Command:
    """A command: argv, and additions to the environment."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


def fan_out(tool: str, files: Files, hostfile: Path, command: str, venv: Path) -> Command:
    """Return the command that makes a tool run a command on every host of a file, 64 at a time."""
    config = str(files.ssh_config)
    if tool in ("xargs", "seed"):
        at_once = AT_ONCE if tool == "xargs" else "1"
        return Command(("xargs", "-P", at_once, "-a", str(hostfile), "-I", "{}", "ssh", "-F", config, "{}", command))
    if tool == "pdsh":
        env = (("PDSH_RCMD_TYPE", "ssh"), ("PDSH_SSH_ARGS_APPEND", f"-F {config}"))
        return Command(("pdsh", "-S", "-f", AT_ONCE, "-w", f"^{hostfile}", command), env)
    if tool == "clush":
        argv = (_which("clush"), "-q", "-S", "-f", AT_ONCE, "-o", f"-F {config}", f"--hostfile={hostfile}", command)
        return Command(argv)
    if tool == "mpirun":
        return mpirun(files, hostfile, 1, tuple(shlex.split(command)))
    python = sys.executable if tool == OURS else str(own_python(venv))
    return Command((python, str(HERE / "clients.py"), tool, config, str(hostfile), command))


def mpirun(files: Files, hostfile: Path, ranks: int, argv: tuple[str, ...]) -> Command:
    """Return the command that makes Open MPI run ranks on every host."""
    hosts = list(dict.fromkeys(hostfile.read_text().split()))
    agent = f"ssh -F {files.ssh_config}"
    mca = ("--mca", "plm_rsh_agent", agent, "--mca", "plm_rsh_num_concurrent", AT_ONCE, "--mca", "oob_tcp_if_include",
           "lo", "--mca", "btl", "self", "--mca", "pml", "ob1")  # fmt: skip
    slots = ",".join(f"{host}:{ranks}" for host in hosts)
    root = ("--allow-run-as-root",) if os.geteuid() == 0 else ()
    return Command(("mpirun.openmpi", *root, *mca, "--oversubscribe", "--host", slots, *argv))


def whole(tool: str, files: Files, count: int, ranks: int, starts: Path, venv: Path, name: str) -> Command:
    """Return the command that a user types to start ranks on every host.

    Parameters
    ----------
    ranks : int
        Ranks per host; 0 for one in place of torchrun: launch-per-node.
    starts : Path
        Folder in which the ranks record their start times.
    name : str
        Name of the job.
    """
    per_node = ranks == 0
    ranks = max(1, ranks)
    hostfile = files.hostfile(count, 1 if per_node else ranks)
    rank = ("rank.py", str(starts), "0")
    if tool == OURS:
        return _torchfab(files, hostfile, per_node, starts, name)
    if tool in ("seed", "xargs"):
        return _seed(files, hostfile, AT_ONCE if tool == "xargs" else "1", ranks if not per_node else 0, rank)
    if tool == "mpirun":
        return mpirun(files, hostfile, ranks, (sys.executable, str(HERE / "rank.py"), *rank[1:]))
    node = (str(HERE / "start-ranks"), str(files.hostfile(count)), str(ranks), sys.executable, str(HERE / "rank.py"))
    return fan_out(tool, files, files.hostfile(count), shlex.join((*node, *rank[1:])), venv)


def torchrun_stub(starts: Path) -> Path:
    """Write an interpreter that answers torchfab's checks like the real one, and runs a rank instead of torchrun.

    torchrun imports torch: 2 s of CPU per node, which on one machine would dominate every measurement.
    """
    path = starts.parent / f"{starts.name}-python"
    real, rank = shlex.quote(sys.executable), shlex.quote(str(HERE / "rank.py"))
    path.write_text(f'#!/bin/sh\ncase "$1" in -c) exec {real} "$@" ;; *) exec {real} {rank} {starts} 0 ;; esac\n')
    path.chmod(0o755)
    return path


def fab(files: Files, *args: str) -> Command:
    """Return a fab command with records and job folders below the folder of the hosts."""
    env = (
        ("FABRIC_TORCHFAB_RECORDS", str(files.folder / "jobs")),
        ("FABRIC_TORCHFAB_NODE_DIR", "~/.torchfab"),  # a home per host: unlike real hosts, these share a disk
        ("FABRIC_TORCHFAB_AGENT_PYTHON", "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable),
    )
    argv = (sys.executable, "-m", "fabric", "-S", str(files.ssh_config), *args)
    return Command(argv, env)


def _torchfab(files: Files, hostfile: Path, per_node: bool, starts: Path, name: str) -> Command:
    job = ("--name", name, "--workdir", str(HERE))
    if per_node:
        stub = str(torchrun_stub(starts))
        flags = ["--hostfile", str(hostfile), "--nproc-per-node", "1", "--python", stub]
    else:
        flags = ["--gpufile", str(hostfile), "--python", sys.executable]
    launch = "launch-per-node" if per_node else "launch-per-gpu"
    return fab(files, launch, *job, *flags, "--", "rank.py", str(starts), "0")


def _seed(files: Files, hostfile: Path, at_once: str, ranks: int, rank: tuple[str, ...]) -> Command:
    """Return the tutorial's own commands with an ssh config, in parallel or not; ranks 0: those for torchrun."""
    python, script = shlex.quote(sys.executable), shlex.join(rank)
    ssh, hosts, here = f"ssh -F {files.ssh_config}", shlex.quote(str(hostfile)), shlex.quote(str(HERE))
    if not ranks:
        return Command(
            (
                "bash",
                "-c",
                f"""xargs -P {at_once} -a {hosts} -I {{}} {ssh} {{}} \
            tmux new-session -d -s torchrun-{{}} -c {here} \
            -e TORCHELASTIC_ERROR_FILE=../error.json -e OMP_NUM_THREADS=1 {python} {script}""",
            )
        )
    line = f"""{ssh} $1 tmux new-session -d -s rank-$(($0 - 1)) -c {here} \
        -e TORCHELASTIC_ERROR_FILE=../error.json -e OMP_NUM_THREADS=1 -e MASTER_ADDR=$(head -n 1 {hosts}) \
        -e MASTER_PORT=5001 -e WORLD_SIZE=$(wc -l < {hosts}) -e RANK=$(($0 - 1)) {python} {script}"""
    return Command(("bash", "-c", f"cat -n {hosts} | xargs -P {at_once} -n2 bash -c {shlex.quote(line)}"))

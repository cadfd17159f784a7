"""Measure the cost of torchfab on a node, here on this machine: CPU milliseconds and MB, printed as JSON.

The cost of a supervisor is that beyond the process which it starts: a `sleep`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from torchfab.remote import job_files
from torchfab.transport import bundle

COUNT = 10
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


def cpu_ms() -> float:
    """Return the CPU milliseconds of all ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (used.ru_utime + used.ru_stime)


def cost_ms(*argvs: list[str]) -> float:
    """Return the mean CPU milliseconds of these commands."""
    before = cpu_ms()
    for argv in argvs:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return (cpu_ms() - before) / len(argvs)


def prepare(folder: Path) -> list[list[str]]:
    """Write a job's folder with processes; return the commands of their supervisors."""
    program = folder / job_files.BUNDLE
    program.write_text(bundle.source())
    load = "import sys; exec(open(sys.argv[1]).read().partition('# ---- run')[0], {'__file__': sys.argv[1]})\n"
    write = load + "from torchfab.remote.job import bytecode_cache; bytecode_cache.write(sys.argv[2])"
    subprocess.run([PYTHON, "-I", "-S", "-c", write, str(program), str(folder)], check=True)
    for number in range(COUNT):
        (folder / f"rank-{number}").mkdir()
        spec = {"argv": ["/bin/true"], "env": {}, "cwd": "/", "grace_s": 5, "rank": number}
        (folder / f"rank-{number}" / job_files.SPEC).write_text(json.dumps(spec))
    return [[PYTHON, "-I", "-S", str(program), "supervise", f"rank-{number}"] for number in range(COUNT)]


def running(argv: list[str], folder: Path) -> dict[str, float]:
    """Return memory and CPU per second of a supervisor while its process sleeps."""
    spec = {"argv": ["/bin/sleep", "60"], "env": {"RANK": "0"}, "cwd": "/", "grace_s": 5, "rank": 0}
    for path in folder.iterdir():
        path.unlink()
    (folder / job_files.SPEC).write_text(json.dumps(spec))
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    time.sleep(1)
    before = ticks(process.pid)
    time.sleep(8)
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    memory = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in rollup[1:]}
    used = (ticks(process.pid) - before) * 1000 / os.sysconf("SC_CLK_TCK") / 8
    process.terminate()
    process.wait()
    return {"rss_mb": memory["Rss"], "pss_mb": memory["Pss"], "watching_ms_per_s": used}


def ticks(pid: int) -> int:
    """Return the CPU that a process has used, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        supervisors = prepare(Path(folder))
        found = {
            "python_ms": cost_ms(*[[PYTHON, "-I", "-S", "-c", "pass"]] * COUNT),
            "supervisor_ms": cost_ms(*supervisors) - cost_ms(*[["/bin/true"]] * COUNT),
            **running(supervisors[0], Path(folder) / "rank-0"),
            "bundle_bytes": len(bundle.source()),
            "sent_bytes": len(bundle.packed()),
        }
    print(json.dumps({**found, "code": 0}))


if __name__ == "__main__":
    main()

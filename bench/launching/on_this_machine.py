"""Measure `fab jobs` with many records and `fab logs` of a long log, on this machine: seconds and MB, printed as JSON.

`python on_this_machine.py [PROGRAM]`: PROGRAM is the working tree of torchfab to measure (default: this one). One job
of one rank writes a log of 2 GB; its record is copied 1,000 times. Takes 2 GB of disk for the time.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from launching.running import Cost, run

RECORDS, LOG_BYTES, ROUNDS = 1000, 2_000_000_000, 5
SCRIPT = f"""
import sys
lines = ("step 12345 loss 1.2345 " + "x" * 77 + "\\n") * 8000
for _ in range({LOG_BYTES} // len(lines)):
    sys.stdout.write(lines)
"""


def main() -> None:
    """Measure and print."""
    program = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(program, Path(temporary))))


def measure(program: Path, folder: Path) -> dict[str, float]:
    """Return the medians."""
    (folder / "write.py").write_text(SCRIPT)
    (folder / "gpus").write_text("localhost\n")
    env = {"FABRIC_TORCHFAB_RECORDS": str(folder / "jobs"), "FABRIC_TORCHFAB_NODE_DIR": str(folder / "node")}

    def fab(*words: str) -> Cost:
        done = run((sys.executable, "-m", "fabric", *words), 300, env, program)
        if done.code:
            raise SystemExit(done.output_tail)
        return done

    job = ("--name", "long", "--gpufile", str(folder / "gpus"), "--workdir", str(folder), "--python", sys.executable)
    fab("launch-per-gpu", *job, "--", "write.py")
    fab("wait", "long")
    logs = [fab("logs", "long", "--lines", "10") for _ in range(ROUNDS)]
    copy_records(folder / "jobs" / "long")
    jobs = [fab("jobs") for _ in range(ROUNDS)]
    found = {"log_s": logs, "jobs_s": jobs}
    values = {name: statistics.median(each.wall_s for each in costs) for name, costs in found.items()}
    memory = {"log_mb": max(each.memory_mb for each in logs), "jobs_mb": max(each.memory_mb for each in jobs)}
    return {**values, **memory, "code": 0}


def copy_records(record: Path) -> None:
    """Copy the record of a job, each copy with a name of its own."""
    for number in range(RECORDS - 1):
        name = f"job-{number}"
        shutil.copytree(record, record.parent / name)
        for path in (record.parent / name).glob("*.json"):
            path.write_text(path.read_text().replace('"long"', f'"{name}"'))


if __name__ == "__main__":
    main()

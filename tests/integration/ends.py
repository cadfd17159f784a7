"""A script whose ranks are asked to end, each in a different situation, and what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.fab import eventually

# Four ranks on each node, by local rank: 0 saves for a while; 1 saves with two loaders, which a SIGTERM would end;
# 2 leaves at a second SIGTERM; 3 has no handler. With the file `fail`, rank 3 ends with exit code 7.
SCRIPT = """
import json, os, signal, subprocess, sys, time
rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
out, save_s = sys.argv[1], float(sys.argv[2])
terms, loaders = [], []
def on_term(number, frame):
    terms.append(number)
    if local == 2 and len(terms) > 1:
        os._exit(9)
if local < 3:
    signal.signal(signal.SIGTERM, on_term)
if local == 1:
    loaders = [subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) for _ in range(2)]
open(f"{out}/{rank}.ready", "w").close()
while not terms:
    if rank == 3 and os.path.exists(f"{out}/fail"):
        sys.exit(7)
    time.sleep(0.02)
begun, lost = time.time(), ""
while time.time() - begun < (save_s if local == 0 else 1) and not lost:
    lost = "a loader had ended" if any(each.poll() is not None for each in loaders) else ""
    time.sleep(0.02)
with open(f"{out}/{rank}.new", "w") as file:
    json.dump({"terms": len(terms), "lost": lost}, file)
os.replace(f"{out}/{rank}.new", f"{out}/{rank}.json")
os._exit(0)
"""


def await_ready(out: Path, ranks: int) -> bool:
    """Wait until all ranks are ready."""
    return eventually(lambda: len(list(out.glob("*.ready"))) == ranks, 150)


def saved(out: Path) -> dict[int, dict[str, Any]]:
    """Return what each rank saved: how many SIGTERMs it had got, and what it lacked."""
    return {int(path.stem): json.loads(path.read_text()) for path in out.glob("*.json")}

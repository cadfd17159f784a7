"""What phase one of a launch sees in passing: each costs some milliseconds, and nothing of it keeps a job from going.

The same things are looked at thoroughly by `torchfab.remote.host.probe`.
"""

from __future__ import annotations

import os
import subprocess

from torchfab.remote.host import file_tree, filesystems

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Without persistence mode nvidia-smi wakes the driver first, for seconds: a launch does not wait for that.
PATIENCE_S = 0.5


class Glance:
    """Begin to look; nvidia-smi works while the launch's own checks do."""

    def __init__(self) -> None:
        argv = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        try:
            self.smi: subprocess.Popen[str] | None = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError:  # no NVIDIA GPUs here
            self.smi = None

    def told(self, node_dir: str, workdir: str, script: str | None) -> dict[str, Any]:
        """Return `disk` of the jobs' folders, `script` (digest of the file that will run; empty: none), `holders`."""
        path = os.path.join(workdir, script) if script else ""
        return {
            "disk": filesystems.disk(os.path.abspath(os.path.expanduser(node_dir))),
            "script": file_tree.digest(path) if path else "",
            "holders": self._holders(),
        }

    def _holders(self) -> list[dict[str, Any]]:
        if self.smi is None:
            return []
        try:
            text, _ = self.smi.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.smi.kill()
            return []
        return holders_in(text) if self.smi.returncode == 0 else []


def holders_in(text: str) -> list[dict[str, Any]]:
    """Return the processes that hold a GPU, `pid` and `memory_mib`, from nvidia-smi's `pid, used_memory` lines."""
    found: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        pid, _, memory = (word.strip() for word in line.partition(","))
        if pid.isascii() and pid.isdigit() and len(pid) < 12:
            known = int(memory) if memory.isascii() and memory.isdigit() else None
            found.setdefault(int(pid), {"pid": int(pid), "memory_mib": known})
    return list(found.values())

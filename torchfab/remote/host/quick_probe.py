"""The quick checks in phase one of a launch: each takes a few milliseconds, and none can make the launch fail.

`torchfab.remote.host.probe` checks the same things thoroughly.
"""

from __future__ import annotations

import os

from torchfab.remote.host import filesystems, nvidia_smi, workdir_files
from torchfab.remote.procfs import int_or_none

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any

# Without persistence mode, nvidia-smi loads the driver first, which takes seconds: a launch does not wait for it.
NVIDIA_SMI_TIMEOUT_S = 0.5


class QuickProbe:
    """Start nvidia-smi in the background; it runs while the launch makes its other checks."""

    def __init__(self) -> None:
        self.smi: subprocess.Popen[str] | None = None
        if not _is_on_path("nvidia-smi"):
            return
        import subprocess  # imported here: it is slow

        argv = ["nvidia-smi", "--query-compute-apps=pid,used_memory", nvidia_smi.CSV_FORMAT]
        try:
            self.smi = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError:  # it cannot be run
            pass

    def results(self, node_dir: str, workdir: str, script: str | None) -> dict[str, Any]:
        """Collect the results.

        Parameters
        ----------
        node_dir, workdir : str
            The folder that holds the job folders, and the working directory.
        script : str, optional
            The script that will run, relative to `workdir`.

        Returns
        -------
        dict
            `disk` of `node_dir`, `script` (digest of the script; empty: none), `holders` (processes on the GPUs).
        """
        path = os.path.join(workdir, script) if script else ""
        return {
            "disk": filesystems.disk(os.path.abspath(os.path.expanduser(node_dir))),
            "script": workdir_files.digest(path) if path else "",
            "holders": self._holders(),
        }

    def _holders(self) -> list[dict[str, Any]]:
        if self.smi is None:
            return []
        import subprocess

        try:
            text, _ = self.smi.communicate(timeout=NVIDIA_SMI_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.smi.kill()
            return []
        return parse_gpu_processes(text) if self.smi.returncode == 0 else []


def _is_on_path(program: str) -> bool:
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())


def parse_gpu_processes(text: str) -> list[dict[str, Any]]:
    """Parse nvidia-smi's `pid, used_memory` lines.

    Parameters
    ----------
    text : str
        Its stdout.

    Returns
    -------
    list of dict
        `pid` and `memory_mib` (None if unknown) of each process that uses a GPU.
    """
    found: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        pid, _, memory = (cell.strip() for cell in line.partition(","))
        if (number := int_or_none(pid)) is not None:
            found.setdefault(number, {"pid": number, "memory_mib": int_or_none(memory)})
    return list(found.values())

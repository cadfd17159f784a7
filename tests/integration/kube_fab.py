"""Run the real `fab` with a cluster of Kubernetes whose pods run as processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.integration.fab import FAB, ROOT, Done
from tests.kube.api import API
from tests.kube.machines import Machines


class KubeFab:
    """The real `fab`, with a cluster whose pods run."""

    def __init__(self, api: API, machines: Machines, folder: Path) -> None:
        self.api, self.machines, self.folder = api, machines, folder
        self.workdir = folder / "project"
        self.workdir.mkdir()
        (folder / "kubeconfig").write_text(api.kubeconfig())

    def start(self, *words: str) -> subprocess.Popen[str]:
        env = {**os.environ, "KUBECONFIG": str(self.folder / "kubeconfig"), "HF_TOKEN": "v$(x)$$"}
        env.update(FABRIC_TORCHFAB_RECORDS=str(self.folder / "records"), PYTHONUTF8="1")
        return subprocess.Popen(
            (str(FAB), "-r", str(ROOT), *words),
            cwd=self.workdir, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def __call__(self, *words: str, timeout_s: float = 150) -> Done:
        process = self.start(*words)
        out, err = process.communicate(timeout=timeout_s)
        return Done(words, process.returncode, out, err)

    def launch(self, *words: str) -> tuple[str, ...]:
        flags = ("--image", "registry.example/train:1", "--nodes", "2", "--workdir", str(self.workdir))
        return ("launch-kubernetes", *flags, *words)

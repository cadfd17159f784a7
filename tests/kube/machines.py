"""Machines that run the pods of an Indexed Job as processes, in the place of controllers, kubelets and DNS.

Each pod lives in the network namespace of a rehearsal node, with its own /etc/hosts that knows the pods by the names of
the headless Service. Its output is its log; its end is told in its status, the termination message with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from testbed import Cluster
from tests.kube.api import API, Log, Object
from tests.kube.kubelet import argv_of, environment_of
from tests.kube.pods import condition, ended, pods_of, running, set_status

# The words are a hosts file, a host name, a folder to run in, and the command.
_ENTER = 'mount --bind "$1" /etc/hosts && echo "$2" > /proc/sys/kernel/hostname && cd "$3" && shift 3 && exec "$@"'
_MESSAGE_BYTES = 2048  # of the log's end, where the container left no message
_SYNC_S = 1.0  # the Job's controller waits so long for the ends of further pods


class Machines:
    """Run the pods of every Job that is created; `close` kills the remaining processes."""

    def __init__(self, api: API, cluster: Cluster, folder: Path) -> None:
        self.api, self.cluster, self.folder = api, cluster, folder
        self.pods: dict[str, subprocess.Popen[bytes]] = {}
        self.jobs: dict[str, str] = {}
        self.minds: list[threading.Thread] = []
        api.on_create, api.on_delete = self._created, self._deleted

    def close(self) -> None:
        for process in self.pods.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for mind in self.minds:
            mind.join(5)

    # ---- the Job's controller

    def _created(self, plural: str, item: Object) -> None:
        if plural != "jobs":
            return
        name = item["metadata"]["name"]
        secrets = self._secrets(item)
        for index, pod in enumerate(pods_of(self.api, name)):
            self.jobs[pod] = name
            self._start(pod, index, secrets)

    def _secrets(self, job: Object) -> Mapping[str, str]:
        name = f"{job['metadata']['name']}-env"
        known = name in [key[2] for key in self.api.objects]
        return self.api.get("secrets", name)["stringData"] if known else {}

    def _after(self, pod: str, code: int) -> None:
        """End the job when a pod has failed, or all have succeeded."""
        job = self.jobs[pod]
        if f"jobs/{job}" not in self.api.names():
            return
        own = [each for each in self.pods if self.jobs[each] == job]
        if code:
            time.sleep(_SYNC_S)
            if f"jobs/{job}" not in self.api.names():
                return
            condition(self.api, job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
            for each in own:
                if self.pods[each].poll() is None and f"pods/{each}" in self.api.names():
                    self.api.delete("pods", each, "default", None)
        elif all(self.pods[each].poll() == 0 for each in own):
            condition(self.api, job, "Complete")

    # ---- a kubelet

    def _start(self, pod: str, index: int, secrets: Mapping[str, str]) -> None:
        container = self.api.get("pods", pod)["spec"]["containers"][0]
        env = environment_of(container, index, secrets)
        message = self.folder / f"{pod}.message"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        words = {**env, "PATH": path, "TORCHFAB_MESSAGE": str(message), "LANG": "C.UTF-8"}
        entry = self.cluster.node(index).command(
            *("unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", _ENTER, "pod"),
            *(str(self._hosts(pod, index)), f"{self.jobs[pod]}-{index}", container["workingDir"]),
            *("env", "-i", *(f"{name}={value}" for name, value in words.items())),
            *argv_of(container, env),
        )
        process = subprocess.Popen(
            entry, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.pods[pod] = process
        self.api.logs[pod] = Log()
        set_status(self.api, pod, running(), nodeName=f"machine-{index}")
        self.minds.append(threading.Thread(target=self._mind, args=(pod, process, message), daemon=True))
        self.minds[-1].start()

    def _hosts(self, pod: str, index: int) -> Path:
        """Write the names that a pod knows: its own, from its kubelet, and the pods' in their Service, from the DNS."""
        item = self.api.get("pods", pod)
        job, service = self.jobs[pod], item["spec"]["subdomain"]
        names = [(f"{job}-{rank}", place.address) for rank, place in enumerate(self.cluster.layout.nodes)]
        lines = [f"{address} {name}.{service}" for name, address in names]
        lines.append(f"{names[index][1]} {names[index][0]}")
        path = self.folder / f"{pod}.hosts"
        path.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        return path

    def _mind(self, pod: str, process: subprocess.Popen[bytes], message: Path) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.api.write(pod, line.decode(errors="surrogateescape").rstrip("\n"))
        code = process.wait()
        log = "\n".join(text for _, text in self.api.logs[pod].lines) if pod in self.api.logs else ""
        left = message.read_text() if message.exists() else (log[-_MESSAGE_BYTES:] if code else "")
        with self.api.moved:
            there = ("default", "pods", pod) in self.api.objects
            if there:
                set_status(self.api, pod, ended(code if code >= 0 else 128 - code, left))
                self.api.close_log(pod)
        if not there:
            return
        if self.api.get("pods", pod)["metadata"].get("deletionTimestamp"):
            self.api.remove("pods", pod)
        self._after(pod, code)

    def _deleted(self, plural: str, item: Object, grace_s: int) -> bool:
        """Ask a pod to end; it is gone when it has ended, by itself or not."""
        process = self.pods.get(item["metadata"]["name"])
        if plural != "pods" or process is None or process.poll() is not None:
            return True
        process.send_signal(signal.SIGTERM)  # the command was exec'ed all the way: this is the container's process 1
        threading.Timer(grace_s, self._kill, [process]).start()
        return False

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

"""The node's part of `fab doctor`: all checks of this machine that need no job.

A part that raises an exception is reported in `failed`; the other parts are still reported.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time

from torchfab.remote import procfs, tmux
from torchfab.remote.host import (
    code_digest,
    connectivity,
    filesystems,
    gpu_health,
    identity,
    interfaces,
    python_env,
    running_jobs,
    shared_memory,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def collect(request: dict[str, Any]) -> dict[str, Any]:
    """Probe this machine.

    Parameters
    ----------
    request : dict
        `python`, `python_path` (PYTHONPATH of a job, or None), `python_timeout_s`, `workdir`, `node_dir`, `names` (the
        files whose contents are compared, relative to the workdir; None: the files that this node finds), `variables`
        (names of environment variables), `token` (name of a file by which other nodes detect a disk shared with this
        one; empty: make none), `port` (to listen on; 0: a free one; None: none), and, as a launch has them, `setup`,
        `setup_timeout_s`, `python_is_default`.

    Returns
    -------
    dict
        The result of each part, by its name; `failed`: the errors of parts that raised an exception. If the setup
        failed, the interpreter is not checked.
    """
    workdir, node_dir = request["workdir"], request["node_dir"]
    environ, setup = run_setup(request)
    python = (setup and setup.get("facts", {}).get("python")) or request["python"]
    parts: dict[str, Callable[[], Any]] = {
        "machine": machine,
        "setup": lambda: setup,
        "python": lambda: (
            None
            if setup and "facts" not in setup
            else python_env.query(python, workdir, request["python_path"], request["python_timeout_s"], environ)
        ),
        "gpus": gpu_health.collect,
        "tmux": _tmux,
        "places": lambda: filesystems.collect(workdir, node_dir, request["token"]),
        "limits": limits,
        "interfaces": interfaces.list_interfaces,
        "environment": lambda: {name: environ[name] for name in request["variables"] if name in environ},
        "jobs": running_jobs.list_jobs,
        "unused_memory": shared_memory.unused,
        "code": lambda: code_digest.digest_workdir(workdir, request["names"]),
        "port": lambda: connectivity.listen(request["port"]),
    }
    return _run_concurrently(parts)


def _run_concurrently(parts: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run each part in a thread of its own: most of them wait for another program."""
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}

    def work(name: str, part: Callable[[], Any]) -> None:
        try:
            results[name] = part()
        except Exception as error:  # one failing part must not hide the others
            failed[name] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=work, args=item) for item in parts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {**results, "failed": failed}


def run_setup(request: dict[str, Any]) -> tuple[Mapping[str, str], dict[str, Any] | None]:
    """Run the setup commands of a launch.

    Parameters
    ----------
    request : dict
        `setup` (empty or missing for none), `workdir`, `setup_timeout_s`, `python_is_default`.

    Returns
    -------
    mapping of str to str
        The environment after them.
    dict or None
        `facts` (see `login_setup.describe`), or `problem` and `fix`; None without such commands.
    """
    if not request.get("setup"):
        return os.environ, None
    from torchfab.remote.host import login_setup

    before = dict(os.environ)
    try:
        environ = login_setup.run(request["setup"], request["workdir"], request["setup_timeout_s"], before)
    except login_setup.SetupError as error:
        return before, {"problem": error.what, "fix": error.fix}
    python = login_setup.find_python(before, environ) if request["python_is_default"] else ""
    return environ, {"facts": login_setup.describe(before, environ, python)}


def machine() -> dict[str, Any]:
    """Identify this machine.

    Returns
    -------
    dict
        `hostname`, `boot_id`, `identity` (see `identity`), `network` (id of the network namespace), `own_addresses`
        (of its own name), `kernel`, `infiniband` (whether it has an adapter), `time` (seconds since the epoch).
    """
    name = socket.gethostname()
    return {
        "hostname": name,
        "boot_id": procfs.boot_id(),
        "identity": identity.identify(),
        # Nodes in the same network namespace also reach each other by loopback addresses.
        "network": f"{procfs.boot_id()} {os.readlink('/proc/self/ns/net')}",
        "own_addresses": connectivity.resolve(name),
        "kernel": os.uname().release,
        "infiniband": os.path.isdir("/sys/class/infiniband") and bool(os.listdir("/sys/class/infiniband")),
        "time": time.time(),
    }


def _tmux() -> dict[str, Any]:
    try:
        return {"version": ".".join(map(str, tmux.version())), "oldest": ".".join(map(str, tmux.MIN_VERSION))}
    except tmux.TmuxUnusableError as error:
        return {"version": "", "problem": str(error)}


def limits() -> dict[str, int | None]:
    """Return the soft limits of `ulimit -n -l -u`.

    Returns
    -------
    dict
        `files`, `locked` (bytes of locked memory), `processes`; None: unlimited.
    """
    kinds = {"files": resource.RLIMIT_NOFILE, "locked": resource.RLIMIT_MEMLOCK, "processes": resource.RLIMIT_NPROC}
    found = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in found.items()}

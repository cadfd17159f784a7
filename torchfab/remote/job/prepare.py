"""Phase one on a node: collect facts, check requirements, make the job's folder, reserve the port. Starts nothing.

Every check appends a problem (what is wrong, how to fix it) instead of stopping at the first one, so that the user
fixes a node once, not five times.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import time

from torchfab.remote import files, tmux
from torchfab.remote.host import identity
from torchfab.remote.host.quick_probe import QuickProbe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PYTHON_TIMEOUT_S = 20
PEERS_TIMEOUT_S = 5
_NVIDIA = re.compile(r"nvidia\d+")
_KFD_NODES = "/sys/class/kfd/kfd/topology/nodes"
# Addresses to which a careless hosts file, or Debian's installer, resolves a machine's own name.
_OWN_ADDRESSES = {"127.0.0.1", "127.0.1.1", "::1"}
# Run by the training interpreter. Prints its version, and for each required module `name=2.1`, `name=` if the version
# is unknown, or `name` if the module is missing. Modules are located, not imported: importing torch takes seconds.
# The version is in the name of the .dist-info folder beside an installed package. Only where there is none is
# importlib.metadata used: importing it takes three times as long as all the rest.
_PYTHON_PROBE = """
import os, sys, importlib.util as u
def beside(name, spec):
    for place in spec.submodule_search_locations or ():
        for each in os.listdir(os.path.dirname(place)):
            head, _, rest = each.partition("-")
            if rest.endswith(".dist-info") and head.lower() == name.lower(): return rest[:-10]
def version(name, spec):
    try: found = beside(name, spec)
    except OSError: found = None
    if found: return found
    import importlib.metadata as m
    try: return m.version(name)
    except m.PackageNotFoundError: return ""
def word(name):
    try: spec = u.find_spec(name)
    except (ImportError, ValueError): return name
    return name if spec is None else name + "=" + version(name, spec).replace(" ", "")
print(".".join(map(str, sys.version_info[:3])), *map(word, sys.argv[1:]))
"""


class Preparation:
    """Run phase one on this node, and hold what it made until the launch commits or rolls back.

    Parameters
    ----------
    request : dict
        `job_id`, `session`, `node_rank`, `node_dir`, `workdir`, `python`, `script` (a path or None), `modules`
        (required in `python`), `installs` (what to install, by module), `programs` (required), `python_path`
        (PYTHONPATH of the job, or None), `master_addr` (or None), `peers` (addresses that must resolve here), `port`
        (None if another node reserves it, 0 for a free one), `write` (False for a dry run, which makes nothing).
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.problems: list[dict[str, str]] = []
        self.versions: dict[str, str] = {}
        self.folder = files.job_folder(request["node_dir"], request["job_id"], request["node_rank"])
        self.port_socket: socket.socket | None = None
        self.folder_made = False

    def run(self, bundle: str) -> dict[str, Any]:
        """Collect facts, run the checks and, unless this is a dry run, make the job's folder.

        Parameters
        ----------
        bundle : str
            Source of `node.py`.

        Returns
        -------
        dict
            `facts` and `problems`.
        """
        glance = QuickProbe()
        facts = {**machine_facts(), "folder": self.folder, "port": self._port()}
        facts["tmux"] = self._check_tmux()
        facts["python"] = self._check_python()
        facts["versions"] = self._check_programs()
        self._check_workdir()
        self._check_master()
        self._check_peers()
        facts["glance"] = self._glance(glance)
        if self.request["write"] and not self.problems:
            self._make_folder(bundle)
        return {"facts": facts, "problems": self.problems}

    def _problem(self, what: str, fix: str) -> None:
        self.problems.append({"what": what, "fix": fix})

    def _glance(self, glance: QuickProbe) -> dict[str, Any]:
        try:
            return glance.results(self.request["node_dir"], self.request["workdir"], self.request["script"])
        except OSError:  # if it matters, a check reports the problem
            return {}

    # ---- checks

    def _check_tmux(self) -> str:
        try:
            found = tmux.version()
        except tmux.TmuxUnusableError as error:
            self._problem(str(error), "install it there, for example: sudo apt-get install -y tmux")
            return ""
        required = ".".join(map(str, tmux.MIN_VERSION))
        name = ".".join(map(str, found))
        if found < tmux.MIN_VERSION:
            self._problem(f"tmux is {name}, {required} or newer is needed", "install a newer tmux there")
        elif tmux.has_session(self.request["session"]):
            self._problem(
                f"the tmux session {self.request['session']} exists already, from another launch machine or folder",
                "choose another --name, or stop that job from where it was launched",
            )
        return name

    def _check_python(self) -> str:
        python = self.request["python"]
        argv = [python, "-c", _PYTHON_PROBE, *self.request["modules"]]
        workdir, path = self.request["workdir"], self.request.get("python_path")
        extra_env = {"PYTHONPATH": path} if path else {}
        try:
            done = subprocess.run(
                argv,
                check=False,
                stdin=subprocess.DEVNULL,  # ours carries the requests: a wrapper that reads would take the next one
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.request.get("python_timeout_s", PYTHON_TIMEOUT_S),
                cwd=workdir if os.path.isdir(workdir) else None,
                env={**os.environ, **extra_env},
            )
        except FileNotFoundError:
            self._problem(f"there is no {python}", "give an interpreter that exists on every node with --python")
            return ""
        except (OSError, subprocess.TimeoutExpired) as error:
            self._problem(
                f"{python} does not run: {error}", "give an interpreter that works on every node with --python"
            )
            return ""
        return self._read_python_report(done.returncode, done.stdout.split(), done.stderr)

    def _read_python_report(self, code: int, fields: list[str], stderr: str) -> str:
        python = self.request["python"]
        if code or not fields:
            tail = stderr.strip().splitlines()[-1:] or [f"it ended with {code}"]
            self._problem(
                f"{python} does not run: {tail[0]}", "give an interpreter that works on every node with --python"
            )
            return ""
        for field in fields[1:]:
            name, found, version = field.partition("=")
            if found:
                self.versions[name] = version
                continue
            package = self.request.get("installs", {}).get(name, name)
            self._problem(
                f"{python} has no module {name}",
                f"install it there: {python} -m pip install {package}; or give --workdir, or --python",
            )
        return fields[0]

    def _check_programs(self) -> dict[str, str]:
        required = self.request.get("programs")
        if not required:
            return self.versions
        from torchfab.remote.host import programs

        found, problems = programs.check(required, self.request["python"])
        self.problems += problems
        return {**self.versions, **found}

    def _check_workdir(self) -> None:
        workdir, script = self.request["workdir"], self.request["script"]
        if not os.path.isdir(workdir):
            self._problem(f"the working directory {workdir} does not exist", "copy your code there, or give --workdir")
            return
        if not os.access(workdir, os.R_OK | os.X_OK):
            self._problem(f"the working directory {workdir} cannot be entered", "give this user the right to read it")
            return
        path = os.path.join(workdir, script or "")
        if script and not os.path.isfile(path):
            problem = "is not a file" if os.path.exists(path) else "does not exist"
            self._problem(f"the script {path} {problem}", "copy your code there, or give --workdir")

    def _check_master(self) -> None:
        address = self.request["master_addr"]
        if not address:
            return
        found = _addresses(address)
        if not found:
            self._problem(
                f"the master address {address} does not resolve",
                "give an address that every node can reach with --master-addr, or with address= in the hosts file",
            )
            return
        elsewhere = self.request["node_rank"] != 0 and not self.request["one_machine"]
        if elsewhere and found <= _OWN_ADDRESSES:
            self._problem(
                f"the master address {address} is this node itself here ({', '.join(sorted(found))})",
                "give an address that every node can reach with --master-addr",
            )

    def _check_peers(self) -> None:
        deadline = time.monotonic() + PEERS_TIMEOUT_S
        unknown = []
        for address in self.request["peers"]:
            if time.monotonic() > deadline:  # a slow name server must not delay the whole launch
                break
            if not _addresses(address):
                unknown.append(address)
        if unknown:
            shown = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
            self._problem(
                f"addresses of other nodes do not resolve there: {shown}",
                "give some that the nodes can reach with address= on their lines of the hosts file",
            )

    # ---- the port

    def _port(self) -> int | None:
        port = self.request["port"]
        if port is None:
            return None
        try:
            self.port_socket = reserve_port(port)
        except OSError as error:
            self._problem(_port_problem(port, error), "choose another --port, or leave it out for a free one")
            return int(port)
        return int(self.port_socket.getsockname()[1])

    # ---- the folder

    def _make_folder(self, bundle: str) -> None:
        try:
            files.make_private(os.path.dirname(self.folder))
            self._hide_from_git()
            os.mkdir(self.folder, 0o700)
            self.folder_made = True
            files.write_text(os.path.join(self.folder, files.BUNDLE), bundle)
            files.reserve_space(os.path.join(self.folder, files.STOP))
        except OSError as error:
            self._problem(
                f"cannot write {self._node_dir()}: {error.strerror or error}",
                "free space or rights there, or set torchfab.node_dir in fabric.yaml",
            )
            self.discard()

    def _hide_from_git(self) -> None:
        # The folder may lie in the user's working copy.
        path = os.path.join(self._node_dir(), ".gitignore")
        if not os.path.exists(path):
            files.write_text(path, "*\n")

    def _node_dir(self) -> str:
        return os.path.dirname(os.path.dirname(os.path.dirname(self.folder)))

    def release_port(self) -> None:
        """Release the reserved port, once the process that uses it has started."""
        if self.port_socket is not None:
            self.port_socket.close()
            self.port_socket = None

    def discard(self) -> None:
        """Undo what phase one made: the port reservation and the folder."""
        self.release_port()
        if self.folder_made:
            remove_job_folder(self.folder)
            self.folder_made = False


def remove_job_folder(folder: str) -> None:
    """Remove a job's folder on this node, and its parent if no other node's folder is left in it.

    Parameters
    ----------
    folder : str
        As `files.job_folder` returns it.
    """
    import shutil  # imported here: a successful launch removes nothing

    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rmdir(os.path.dirname(folder))
    except OSError:  # other nodes of the job share this file system
        pass


def _addresses(name: str) -> set[str]:
    """Return the addresses that a name resolves to; empty when it does not resolve."""
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def reserve_port(port: int) -> socket.socket:
    """Bind a port so that no other program gets it, while the rendezvous store can still listen on it.

    Linux lets a socket listen on a port that another one has bound, when both set SO_REUSEADDR and the other does not
    listen. A free port is bound without it first, otherwise two jobs could get the same one.

    Parameters
    ----------
    port : int
        The port; 0 for a free one.

    Returns
    -------
    socket
        The bound socket; closing it releases the port.

    Raises
    ------
    OSError
        The port is in use, or not allowed.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if port:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("", port))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        reserved.close()
        raise
    return reserved


def _port_problem(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use"
    return f"port {port} cannot be used: {error.strerror or error}"


def machine_facts() -> dict[str, Any]:
    """Return the facts about this machine that a plan needs.

    Returns
    -------
    dict
        `hostname`, `machine` (see `identity`), `is_root`, `gpus`, `cpus`, `agent_python` (version of this interpreter),
        `time`.
    """
    return {
        "hostname": socket.gethostname(),
        "machine": identity.identify(),
        "is_root": os.geteuid() == 0,
        "gpus": count_gpus(),
        "cpus": len(os.sched_getaffinity(0)),
        "agent_python": ".".join(map(str, sys.version_info[:3])),
        "time": time.time(),
    }


def count_gpus() -> int:
    """Count the GPUs that a process would see.

    Returns
    -------
    int
        The devices in CUDA_VISIBLE_DEVICES if that is set, else those that the drivers list.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    nvidia = _names("/proc/driver/nvidia/gpus") or [name for name in _names("/dev") if _NVIDIA.fullmatch(name)]
    return len(nvidia) or _count_amd_gpus()


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _count_amd_gpus() -> int:
    # The KFD lists CPUs as nodes too; those have no SIMD units.
    count = 0
    for name in _names(_KFD_NODES):
        try:
            with open(os.path.join(_KFD_NODES, name, "properties")) as file:
                count += any(line.split() > ["simd_count", "0"] for line in file if line.startswith("simd_count "))
        except OSError:  # a GPU that this container may not use
            pass
    return count

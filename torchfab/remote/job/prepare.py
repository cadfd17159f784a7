"""Phase one on a node: collect facts, check requirements, create the job's folder, reserve the port. Starts nothing."""

from __future__ import annotations

import errno
import os

from torchfab.remote import job_files
from torchfab.remote.host import environment_marker, machine_facts
from torchfab.remote.host.login_environment import is_of_launchers
from torchfab.remote.host.quick_probe import QuickProbe
from torchfab.remote.job import requirement_checks
from torchfab.remote.light_stdlib import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Preparation:
    """Run phase one on this node, and keep its results until the launch commits or rolls back.

    Parameters
    ----------
    request : dict
        `job_id`, `session`, `node_rank`, `node_dir`, `workdir`, `python`, `script` (a path or None), `modules`
        (required in `python`), `installs` (what to install, by module), `programs` (required), `python_path`
        (PYTHONPATH of the job, or None), `master_addr` (or None), `peers` (addresses that must resolve here), `port`
        (None if another node reserves it, 0 for a free one), `write` (False for a dry run, which creates nothing),
        `setup` (commands for the login shell; empty or missing for none), `setup_timeout_s`, `python_is_default`
        (whether the interpreter that the setup puts on PATH replaces `python`).

    Attributes
    ----------
    environ : dict of str to str
        The environment of this node for the job: that of this process with the changes by the setup.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.environ = dict(os.environ)
        self.problems: list[dict[str, str]] = []
        self.folder = job_files.job_folder(request["node_dir"], request["job_id"], request["node_rank"])
        self.port_socket: Any = None
        self.folder_made = False

    def run(self, bundle: str) -> dict[str, Any]:
        """Collect facts, run the checks and, unless this is a dry run, create the job's folder.

        Parameters
        ----------
        bundle : str
            Source of `node.py`.

        Returns
        -------
        dict
            `facts` and `problems`.
        """
        quick_probe = QuickProbe()
        setup = self._run_setup()
        facts = {
            **machine_facts.collect(self.environ),
            "packages": environment_marker.read_marker(self.request["python"]),
            "folder": self.folder,
            "port": self._port(),
            "setup": setup,
        }
        if self.request.get("setup") and not setup:  # other failures would be consequences of this
            return {"facts": facts, "problems": self.problems}
        checked, problems = requirement_checks.run(self.request, self.environ)
        self.problems += problems
        facts = {**facts, **checked, "glance": self._quick_results(quick_probe)}
        if self.request["write"] and not self.problems:
            self._make_folder(bundle)
        return {"facts": facts, "problems": self.problems}

    def _quick_results(self, quick_probe: QuickProbe) -> dict[str, Any]:
        try:
            found = quick_probe.results(self.request["node_dir"], self.request["workdir"], self.request["script"])
            return {**found, "launcher_variables": sorted(filter(is_of_launchers, self.environ))}
        except OSError:  # if it matters, one of the checks reports the problem
            return {}

    def _run_setup(self) -> dict[str, Any] | None:
        """Run `setup`, use its environment, and return the report for the launch machine."""
        if not self.request.get("setup"):
            return None
        from torchfab.remote.host import login_setup  # imported here: most jobs have no setup

        before, request = self.environ, self.request
        try:
            self.environ = login_setup.run(request["setup"], request["workdir"], request["setup_timeout_s"], before)
        except login_setup.SetupError as error:
            self.problems.append(requirement_checks.problem(error.what, error.fix))
            return None
        python = login_setup.find_python(before, self.environ) if request.get("python_is_default") else ""
        self.request = {**request, "python": python or request["python"]}
        return login_setup.describe(before, self.environ, python)

    # ---- the port

    def _port(self) -> int | None:
        port = self.request["port"]
        if port is None:
            return None
        try:
            self.port_socket = reserve_port(port)
        except OSError as error:
            fix = "choose another --port, or omit it to use a free one"
            self.problems.append(requirement_checks.problem(_port_problem(port, error), fix))
            return int(port)
        return int(self.port_socket.getsockname()[1])

    # ---- the folder

    def _make_folder(self, bundle: str) -> None:
        try:
            job_files.make_private(os.path.dirname(self.folder))
            self._hide_from_git()
            os.mkdir(self.folder, 0o700)
            self.folder_made = True
            job_files.write_text(os.path.join(self.folder, job_files.BUNDLE), bundle)
            job_files.reserve_space(os.path.join(self.folder, job_files.STOP))
        except OSError as error:
            what = f"cannot write {self._node_dir()}: {error.strerror or error}"
            fix = "free disk space, check permissions, or change the setting node_dir (fab config)"
            self.problems.append(requirement_checks.problem(what, fix))
            self.discard()

    def _hide_from_git(self) -> None:
        # The folder may lie in the user's working copy.
        path = os.path.join(self._node_dir(), ".gitignore")
        if not os.path.exists(path):
            job_files.write_text(path, "*\n")

    def _node_dir(self) -> str:
        return os.path.dirname(os.path.dirname(os.path.dirname(self.folder)))

    def release_port(self) -> None:
        """Release the reserved port, once the process that uses it has started."""
        if self.port_socket is not None:
            self.port_socket.close()
            self.port_socket = None

    def discard(self) -> None:
        """Undo phase one: release the port and remove the folder."""
        self.release_port()
        if self.folder_made:
            job_files.remove_job_folder(self.folder)
            self.folder_made = False


def reserve_port(port: int) -> Any:
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

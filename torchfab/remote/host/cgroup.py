"""Control groups: the kernel's own list of a process and all its descendants.

A process cannot leave its group by forking, by starting a session, or by losing its environment and its parents. So an
empty group proves that no process is left, and one write ends all its processes, including those of other users.

A group is created below the group of this process (cgroups(7)): in version 2 of the interface, or in a hierarchy of
version 1, whichever this user may write. If neither is permitted, but the user's systemd manager runs without a login
(`loginctl enable-linger`), this process first moves into a scope of that manager, which the user owns.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCS = "cgroup.procs"
_SIGKILL = 9  # importing `signal` takes a tenth of a supervisor's start-up
# Version 1: the first of these hierarchies that can be used. A frozen group cannot fork while it is killed.
_V1_HIERARCHIES = ("freezer", "pids", "name=systemd")
_FREEZE_S = 1.0
_POLL_S = 0.005
_SYSTEMD_S = 5.0
_LINGER = "/var/lib/systemd/linger"


class Group:
    """A control group that exists, or has existed.

    Parameters
    ----------
    path : str
        Its folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def exists(self) -> bool:
        """Return whether the group exists; a group that held processes can only have been removed after their end."""
        return os.path.exists(os.path.join(self.path, _PROCS))

    def members(self) -> list[int]:
        """Return the processes in the group and the groups below it.

        Returns
        -------
        list of int
            Their pids; zombies are not members.
        """
        return [pid for folder in self._folders() for pid in _numbers(os.path.join(folder, _PROCS))]

    def is_empty(self) -> bool:
        """Return whether no process is in the group or below it."""
        populated = [line for line in _lines(os.path.join(self.path, "cgroup.events")) if line.startswith("populated ")]
        return populated == ["populated 0"] if populated else not self.members()

    def _folders(self) -> Iterator[str]:
        for folder, _, _ in os.walk(self.path):
            yield folder

    def join(self) -> None:
        """Move this process into the group.

        Raises
        ------
        OSError
            This is not permitted.
        """
        _write(os.path.join(self.path, _PROCS), "0")

    def kill(self) -> None:
        """Send SIGKILL to all processes of the group, so that none can fork meanwhile; do not wait for their ends."""
        try:
            _write(os.path.join(self.path, "cgroup.kill"), "1")  # Linux 5.14
        except OSError:
            self._freeze_and_kill()

    def _freeze_and_kill(self) -> None:
        for control, on, off, state in (
            ("cgroup.freeze", "1", "0", ("cgroup.events", "frozen 1")),
            ("freezer.state", "FROZEN", "THAWED", ("freezer.state", "FROZEN")),
        ):
            path = os.path.join(self.path, control)
            if os.path.exists(path):
                try:
                    _write(path, on)
                    self._await(*state)
                    self._signal_members()
                finally:
                    _write(path, off)
                return
        self._signal_members()

    def _await(self, name: str, line: str) -> None:
        deadline = time.monotonic() + _FREEZE_S  # a process that waits for a disk freezes later, but cannot fork either
        while line not in _lines(os.path.join(self.path, name)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _signal_members(self) -> None:
        for pid in self.members():
            try:
                os.kill(pid, _SIGKILL)
            except OSError:  # it has ended, or belongs to another user
                pass

    def remove(self) -> bool:
        """Remove the group and the groups below it.

        Returns
        -------
        bool
            Whether it was removed, which the kernel permits only if no process is in it.
        """
        for folder in reversed(list(self._folders())):
            try:
                os.rmdir(folder)
            except OSError:
                pass
        return not os.path.exists(self.path)


def make(name: str) -> Group | None:
    """Create a group below that of this process; it may exist already.

    Parameters
    ----------
    name : str
        A name without slashes, unique on this machine.

    Returns
    -------
    Group or None
        None if no group can be created.
    """
    found = _make_below(own_folders(), name)
    if found is None and _enter_user_scope(name):
        found = _make_below(own_folders(), name)
    return found


def _make_below(folders: list[str], name: str) -> Group | None:
    for folder in folders:
        path = os.path.join(folder, name)
        # This process must be able to return to its group.
        if not os.access(os.path.join(folder, _PROCS), os.W_OK):
            continue
        try:
            os.mkdir(path)
        except FileExistsError:
            pass
        except OSError:  # a read-only file system, as in most containers
            continue
        group = Group(path)
        if group.exists():
            return group
        os.rmdir(path)
    return None


def own_folders() -> list[str]:
    """Return the folders of this process's own groups, best first.

    Returns
    -------
    list of str
        Version 2 first; only hierarchies that are mounted where this process can see them.
    """
    own = [line.split(":", 2) for line in _lines("/proc/self/cgroup") if line.count(":") >= 2]
    mounts = _mounts()
    found = [_folder(mounts, "", path) for hierarchy, _, path in own if hierarchy == "0"]
    for name in _V1_HIERARCHIES:
        found += [_folder(mounts, name, path) for _, names, path in own if name in names.split(",")]
    return [folder for folder in found if folder]


def _mounts() -> dict[str, tuple[str, str]]:
    """Return the mounted hierarchies: root and mount point by controller; an empty name stands for version 2."""
    found = {}
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if kind[0] == "cgroup2":
            found[""] = (_unescape(fields[3]), _unescape(fields[4]))
        elif kind[0] == "cgroup":
            for name in kind[-1].split(","):
                found[name] = (_unescape(fields[3]), _unescape(fields[4]))
    return found


def _unescape(path: str) -> str:
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _folder(mounts: dict[str, tuple[str, str]], name: str, path: str) -> str:
    root, point = mounts.get(name, ("", ""))
    if not point or not (path + "/").startswith(root.rstrip("/") + "/"):
        return ""
    return os.path.normpath(os.path.join(point, path[len(root.rstrip("/")) :].lstrip("/")))


# ---- systemd


def _enter_user_scope(name: str) -> bool:
    """Move this process into a scope of the user's systemd manager; return whether that worked.

    Without lingering, that manager ends all its scopes some time after the user's last logout, and the job with them.
    """
    runtime = f"/run/user/{os.getuid()}"
    if not os.path.exists(f"{runtime}/systemd/private") or not os.path.exists(os.path.join(_LINGER, _user())):
        return False
    before = _lines("/proc/self/cgroup")
    words = ["busctl", "--user", "--quiet", "call", *_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))"]
    unit = [f"{name}-{os.getpid()}.scope", "fail", "3"]
    properties = ["PIDs", "au", "1", str(os.getpid()), "Delegate", "b", "1", "CollectMode", "s", "inactive-or-failed"]
    if not _runs([*words, *unit, *properties, "0"], {"XDG_RUNTIME_DIR": runtime, "PATH": os.defpath}):
        return False
    deadline = time.monotonic() + _SYSTEMD_S
    while _lines("/proc/self/cgroup") == before and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return True


_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _runs(argv: list[str], env: dict[str, str]) -> bool:
    import subprocess  # imported here: it is slow, and few nodes need it

    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(argv, env=env, stdin=quiet, stdout=quiet, stderr=quiet, check=False, timeout=_SYSTEMD_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


# ---- files


def _write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _numbers(path: str) -> list[int]:
    return [int(line) for line in _lines(path) if line.isdigit() and line != "0"]

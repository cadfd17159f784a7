"""How often the kernel killed for memory in a control group: the one witness that needs no right to read logs."""

from __future__ import annotations

_ROOT = "/sys/fs/cgroup"


def oom_kills(pid: str = "self") -> int | None:
    """Return how many processes of a process's control group the kernel has killed for memory; None: it does not say.

    With cgroup v2 it is `oom_kill` of memory.events, groups below counted too; with v1, of memory.oom_control.
    """
    for line in _lines(f"/proc/{pid}/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            found = _count(f"{_ROOT}{path}/memory.events")
        elif "memory" in controllers.split(","):
            found = _count(f"{_ROOT}/memory{path}/memory.oom_control")
        else:
            continue
        if found is not None:
            return found
    return None


def _count(path: str) -> int | None:
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isascii() and value.isdigit() and len(value) < 19:
            return int(value)
    return None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:  # no such group here, or it is not ours to read
        return []

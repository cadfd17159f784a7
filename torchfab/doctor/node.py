"""Findings about one node alone: its programs, disks and limits, and processes of other jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchfab.core.format import format_bytes, plural
from torchfab.doctor.finding import ERROR, NOTE, WARNING, Finding
from torchfab.doctor.model import CheckRequirements, NodeReport
from torchfab.transport.messages.launch import FileSystem

GIB = 1024**3
SCARCE_BYTES = 2 * GIB  # less than one checkpoint of most models
SCARCE_SHM_BYTES = GIB // 4  # docker's default is 64 MiB; NCCL needs about 10 MiB per rank, data loaders far more
SCARCE_FILES = 1000
LEFT_SHM_BYTES = 16 * 1024**2  # below this: semaphores, which any job may leave behind
FEW_OPEN_FILES = 1024  # the default of most systems; enough for data loaders and many ranks
FEW_PROCESSES = 4096
SLOW_SSH_S = 5.0


def findings(node: NodeReport, requirements: CheckRequirements) -> Iterator[Finding]:
    """Yield the findings about one node alone.

    Parameters
    ----------
    node : NodeReport
        The node.
    requirements : CheckRequirements
        What the job needs.

    Yields
    ------
    Finding
        About this node.
    """
    if node.error is not None and not node.probe:
        kind = "unreachable" if node.connect_s is None else "not-looked-at"
        yield Finding(kind, ERROR, (node.host,), node.error.message, fix=node.error.fix)
        return
    yield from _failed_parts(node)
    yield from _ssh(node)
    yield from _setup(node)
    yield from _python(node, requirements)
    yield from _tmux(node)
    yield from _workdir(node, requirements)
    yield from _disks(node)
    yield from _limits(node)
    yield from _jobs(node)


def _failed_parts(node: NodeReport) -> Iterator[Finding]:
    for name, reason in node.parts.failed.items():
        what = f"its {name} could not be checked: {reason}"
        yield Finding(
            "not-looked-at", WARNING, (node.host,), what, fix="check whether the node is overloaded or faulty"
        )
    if node.error is not None:
        yield Finding("not-looked-at", ERROR, (node.host,), node.error.message, fix=node.error.fix)


def _ssh(node: NodeReport) -> Iterator[Finding]:
    if node.connect_s is not None and node.connect_s > SLOW_SSH_S:
        yield Finding(
            *("ssh-slow", WARNING, (node.host,), "logging in is slow", f"under {SLOW_SSH_S:g} s"),
            f"{node.connect_s:.1f} s",
            # Measured until sshd starts the command. The shell's start-up files run after that, and do not count.
            "check whether the node is overloaded, sshd queries a name server (UseDNS no), or PAM modules are slow",
        )


def _setup(node: NodeReport) -> Iterator[Finding]:
    probe = node.parts.setup
    if probe is not None and probe.problem:
        yield Finding("setup-failed", ERROR, (node.host,), probe.problem, fix=probe.fix)


def _python(node: NodeReport, requirements: CheckRequirements) -> Iterator[Finding]:
    probe = node.parts.python
    if probe is None:
        return
    if probe.problem:
        fix = "give an interpreter that exists on every node with --python"
        yield Finding("python-missing", ERROR, (node.host,), probe.problem, fix=fix)
    elif not probe.torch:
        python = _interpreter(node) or requirements.python
        fix = f"install it there: {python} -m pip install torch; or give --python"
        yield Finding("torch-missing", ERROR, (node.host,), f"{python} has no module torch", fix=fix)


def _interpreter(node: NodeReport) -> str:
    """Return the interpreter that the setup of a node has put first on PATH; empty for none."""
    setup = node.parts.setup
    return setup.facts.python if setup and setup.facts else ""


def _tmux(node: NodeReport) -> Iterator[Finding]:
    probe = node.parts.tmux
    if probe is None:
        return
    if probe.problem:
        fix = "install it there, for example: sudo apt-get install -y tmux"
        yield Finding("tmux-missing", ERROR, (node.host,), probe.problem, fix=fix)
    elif _parse_version(probe.version) < _parse_version(probe.oldest):
        expected, found = f"{probe.oldest} or newer", probe.version
        yield Finding("tmux-old", ERROR, (node.host,), "tmux is too old", expected, found, "install a newer one there")


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


# ---- disks


def _workdir(node: NodeReport, requirements: CheckRequirements) -> Iterator[Finding]:
    place = (node.parts.places or {}).get("workdir")
    if place is None:
        return
    if not place.exists:
        what = f"the working directory {requirements.workdir} does not exist"
        yield Finding("workdir-missing", ERROR, (node.host,), what, fix="copy it there: fab sync; or give --workdir")
    elif not place.enterable:
        what = f"the working directory {requirements.workdir} cannot be entered"
        yield Finding("workdir-missing", ERROR, (node.host,), what, fix="give this user read and execute permission")


_USES = {"node_dir": "logs of jobs", "workdir": "the working directory", "tmp": "temporary files"}


def _disks(node: NodeReport) -> Iterator[Finding]:
    places = node.parts.places or {}
    reported: set[tuple[Any, ...]] = set()
    for name, use in _USES.items():
        place = places.get(name)
        if place is None:
            continue
        disk = (place.filesystem, place.size, place.free)
        for finding in _disk(node, name, place, use):
            if (finding.kind, disk) not in reported:  # several directories on one disk are one finding
                reported.add((finding.kind, disk))
                yield finding
    yield from _shm(node, places.get("shm"))
    yield from _unused_memory(node)


def _disk(node: NodeReport, name: str, place: FileSystem, use: str) -> Iterator[Finding]:
    where = f"{place.path} ({use})"
    fix = "free space there" + (", or change the setting node_dir (fab config)" if name == "node_dir" else "")
    if place.problem:
        what = f"{where} cannot be written: {place.problem}"
        severity = ERROR if name == "node_dir" else WARNING
        yield Finding("disk-not-writable", severity, (node.host,), what, "", f"{format_bytes(place.free)} free", fix)
    else:
        yield from nearly_full(node.host, place, use)


def nearly_full(host: str, place: FileSystem, use: str) -> Iterator[Finding]:
    """Yield a warning if a disk has little space or few inodes left.

    Parameters
    ----------
    host : str
        The host's label.
    place : FileSystem
        A directory on the disk, as in the probe.
    use : str
        The purpose of the directory, for the text.

    Yields
    ------
    Finding
        At most one.
    """
    what, fix = f"the disk of {place.path} ({use})", "free space there"
    if place.free < SCARCE_BYTES:
        least, found = f"{format_bytes(SCARCE_BYTES)} free", f"{format_bytes(place.free)} free"
        yield Finding("disk-nearly-full", WARNING, (host,), f"{what} is nearly full", least, found, fix)
    elif place.free_files is not None and place.free_files < SCARCE_FILES:
        found = f"{place.free_files} free"
        yield Finding("disk-nearly-full", WARNING, (host,), f"{what} has hardly any inodes left", "", found, fix)


def _shm(node: NodeReport, place: FileSystem | None) -> Iterator[Finding]:
    if place is not None and place.free < SCARCE_SHM_BYTES:
        found = f"{format_bytes(place.free)} of {format_bytes(place.size)} free"
        fix = "in docker: --shm-size=16g or --ipc=host; else: mount -o remount,size=50% /dev/shm; or remove files in it"
        what = "/dev/shm is small: data loaders and NCCL fail with 'Bus error' or 'No space left on device'"
        yield Finding("shm-small", WARNING, (node.host,), what, f"{format_bytes(SCARCE_SHM_BYTES)} free", found, fix)


def _unused_memory(node: NodeReport) -> Iterator[Finding]:
    found = node.parts.unused_memory or ()
    size = sum(each.bytes for each in found)
    if size >= LEFT_SHM_BYTES:
        users = ", ".join(f"{each.user}: {plural(each.files, 'file')}, {format_bytes(each.bytes)}" for each in found)
        what = f"/dev/shm holds {format_bytes(size)} left by ended processes ({users})"
        fix = "remove them there: ls -l /dev/shm; keep the files of running programs"
        yield Finding("memory-left", WARNING, (node.host,), what, fix=fix)


# ---- limits, and processes of other jobs


def _limits(node: NodeReport) -> Iterator[Finding]:
    limits = node.parts.limits
    if limits is None:
        return
    minima = (
        (limits.files, "ulimit -n (open files)", FEW_OPEN_FILES),
        (limits.processes, "ulimit -u", FEW_PROCESSES),
    )
    for value, limit, least in minima:
        if value is not None and value < least:
            fix = f"raise it in /etc/security/limits.conf (for new logins), at least to {least}"
            what = f"{limit} is low"
            yield Finding("limit-low", WARNING, (node.host,), what, f"{least} or more", str(value), fix)
    if node.parts.machine and node.parts.machine.infiniband and limits.locked is not None:
        yield Finding(
            *("limit-low", ERROR, (node.host,), "ulimit -l (locked memory) is limited: InfiniBand cannot be used"),
            *("unlimited", format_bytes(limits.locked)),
            "set `* soft memlock unlimited` and the same with hard in /etc/security/limits.conf; in docker: "
            "--ulimit memlock=-1",
        )


def _jobs(node: NodeReport) -> Iterator[Finding]:
    for job in node.parts.jobs or ():
        count = f"{job.processes} process" + ("es" if job.processes > 1 else "")
        name = job.job_id.rpartition("-")[0] or job.job_id
        if job.supervised:
            yield Finding("job-running", NOTE, (node.host,), f"the job {name} runs there ({count})")
        else:
            what = f"{count} of the job {name} left there without a supervisor: {job.example}"
            fix = f"run fab stop {name} on its launch machine; or end them by their pids"
            yield Finding("lingering", WARNING, (node.host,), what, fix=fix)

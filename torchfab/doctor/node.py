"""What is wrong with one node by itself: its programs, disks, limits, and what is left on it of other jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchfab.doctor.finding import ERROR, NOTE, WARNING, Finding
from torchfab.doctor.model import CheckRequirements, NodeReport

GIB = 1024**3
SCARCE_BYTES = 2 * GIB  # less than one checkpoint of most models
SCARCE_SHM_BYTES = GIB // 4  # docker's default is 64 MiB; NCCL takes about 10 MiB a rank, loaders far more
SCARCE_FILES = 1000
FEW_OPEN_FILES = 1024  # the default of most systems, which loaders and many ranks live with
FEW_PROCESSES = 4096
SLOW_SSH_S = 5.0


def findings(seen: NodeReport, wanted: CheckRequirements) -> Iterator[Finding]:
    """Yield what is wrong with a node by itself."""
    if seen.error is not None and not seen.probe:
        kind = "unreachable" if seen.connect_s is None else "not-looked-at"
        yield Finding(kind, ERROR, (seen.host,), seen.error.message, fix=seen.error.fix)
        return
    yield from _failed_parts(seen)
    yield from _ssh(seen)
    yield from _python(seen, wanted)
    yield from _tmux(seen)
    yield from _workdir(seen, wanted)
    yield from _disks(seen)
    yield from _limits(seen)
    yield from _jobs(seen)


def _failed_parts(seen: NodeReport) -> Iterator[Finding]:
    for name, part in seen.probe.items():
        if isinstance(part, Mapping) and "failed" in part:
            what = f"its {name} could not be looked at: {part['failed']}"
            yield Finding(
                "not-looked-at", WARNING, (seen.host,), what, fix="see whether the node is overloaded or sick"
            )
    if seen.error is not None:
        yield Finding("not-looked-at", ERROR, (seen.host,), seen.error.message, fix=seen.error.fix)


def _ssh(seen: NodeReport) -> Iterator[Finding]:
    if seen.connect_s is not None and seen.connect_s > SLOW_SSH_S:
        yield Finding(
            *("ssh-slow", WARNING, (seen.host,), "logging in is slow", f"under {SLOW_SSH_S:g} s"),
            f"{seen.connect_s:.1f} s",
            # Measured until sshd has begun the command: what the shell's start-up files take comes after it.
            "see whether the node is overloaded, its sshd asks a name server (UseDNS no), or its PAM modules are slow",
        )


def _python(seen: NodeReport, wanted: CheckRequirements) -> Iterator[Finding]:
    told = seen.part("python")
    if told is None:
        return
    if told.get("problem"):
        fix = "give an interpreter that exists on every node with --python"
        yield Finding("python-missing", ERROR, (seen.host,), told["problem"], fix=fix)
    elif not told["torch"]:
        fix = f"install it there: {wanted.python} -m pip install torch; or give --python"
        yield Finding("torch-missing", ERROR, (seen.host,), f"{wanted.python} has no module torch", fix=fix)


def _tmux(seen: NodeReport) -> Iterator[Finding]:
    told = seen.part("tmux")
    if told is None:
        return
    if told.get("problem"):
        fix = "install it there, for example: sudo apt-get install -y tmux"
        yield Finding("tmux-missing", ERROR, (seen.host,), told["problem"], fix=fix)
    elif _numbers(told["version"]) < _numbers(told["oldest"]):
        expected, found = f"{told['oldest']} or newer", told["version"]
        yield Finding("tmux-old", ERROR, (seen.host,), "tmux is too old", expected, found, "install a newer one there")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in version.split("."))


# ---- disks


def _workdir(seen: NodeReport, wanted: CheckRequirements) -> Iterator[Finding]:
    place = (seen.part("places") or {}).get("workdir")
    if place is None:
        return
    if not place["exists"]:
        what = f"the working directory {wanted.workdir} does not exist"
        yield Finding("workdir-missing", ERROR, (seen.host,), what, fix="copy it there: fab sync; or give --workdir")
    elif not place["enterable"]:
        what = f"the working directory {wanted.workdir} cannot be entered"
        yield Finding("workdir-missing", ERROR, (seen.host,), what, fix="give this user the right to read it")


_USES = {"node_dir": "logs of jobs", "workdir": "the working directory", "tmp": "temporary files"}


def _disks(seen: NodeReport) -> Iterator[Finding]:
    places = seen.part("places") or {}
    told: set[tuple[Any, ...]] = set()
    for name, use in _USES.items():
        place = places.get(name)
        if place is None:
            continue
        disk = (place["filesystem"], place["size"], place["free"])
        for finding in _disk(seen, name, place, use):
            if (finding.kind, disk) not in told:  # one disk, which several places lie on
                told.add((finding.kind, disk))
                yield finding
    yield from _shm(seen, places.get("shm"))


def _disk(seen: NodeReport, name: str, place: Mapping[str, Any], use: str) -> Iterator[Finding]:
    where = f"{place['path']} ({use})"
    fix = "free space there" + (", or set torchfab.node_dir in fabric.yaml" if name == "node_dir" else "")
    if place.get("problem"):
        what = f"{where} cannot be written: {place['problem']}"
        severity = ERROR if name == "node_dir" else WARNING
        yield Finding("disk-not-writable", severity, (seen.host,), what, "", f"{size(place['free'])} free", fix)
    else:
        yield from nearly_full(seen.host, place, use)


def nearly_full(host: str, place: Mapping[str, Any], use: str) -> Iterator[Finding]:
    """Yield a warning where a disk has hardly any room or inodes left."""
    what, fix = f"the disk of {place['path']} ({use})", "free space there"
    if place["free"] < SCARCE_BYTES:
        least, found = f"{size(SCARCE_BYTES)} free", f"{size(place['free'])} free"
        yield Finding("disk-nearly-full", WARNING, (host,), f"{what} is nearly full", least, found, fix)
    elif place["free_files"] is not None and place["free_files"] < SCARCE_FILES:
        found = f"{place['free_files']} free"
        yield Finding("disk-nearly-full", WARNING, (host,), f"{what} has hardly any inodes left", "", found, fix)


def _shm(seen: NodeReport, place: Mapping[str, Any] | None) -> Iterator[Finding]:
    if place is not None and place["free"] < SCARCE_SHM_BYTES:
        found = f"{size(place['free'])} of {size(place['size'])} free"
        fix = (
            "in docker: --shm-size=16g or --ipc=host; else: mount -o remount,size=50% /dev/shm; or remove what fills it"
        )
        what = "/dev/shm is small: data loaders and NCCL fail with 'Bus error' or 'No space left on device'"
        yield Finding("shm-small", WARNING, (seen.host,), what, f"{size(SCARCE_SHM_BYTES)} free", found, fix)


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB" if count < 100 else f"{count:.0f} GiB"


# ---- limits, and what is left of other jobs


def _limits(seen: NodeReport) -> Iterator[Finding]:
    told = seen.part("limits")
    if told is None:
        return
    wanted = (("files", "ulimit -n (open files)", FEW_OPEN_FILES), ("processes", "ulimit -u", FEW_PROCESSES))
    for name, words, least in wanted:
        if told[name] is not None and told[name] < least:
            fix = f"raise it in /etc/security/limits.conf (a new login sees it), at least to {least}"
            what = f"{words} is low"
            yield Finding("limit-low", WARNING, (seen.host,), what, f"{least} or more", str(told[name]), fix)
    if (seen.part("machine") or {}).get("infiniband") and told["locked"] is not None:
        yield Finding(
            *("limit-low", ERROR, (seen.host,), "ulimit -l (locked memory) is limited: InfiniBand cannot be used"),
            *("unlimited", size(told["locked"])),
            "set `* soft memlock unlimited` and the same with hard in /etc/security/limits.conf; in docker: "
            "--ulimit memlock=-1",
        )


def _jobs(seen: NodeReport) -> Iterator[Finding]:
    for job in seen.part("jobs") or ():
        count = f"{job['processes']} process" + ("es" if job["processes"] > 1 else "")
        name = job["job_id"].rpartition("-")[0] or job["job_id"]
        if job["supervised"]:
            yield Finding("job-running", NOTE, (seen.host,), f"the job {name} runs there ({count})")
        else:
            what = f"{count} of the job {name} left over there, and nobody answers for it: {job['example']}"
            fix = f"fab stop {name}, where it was launched; or end them by their pids"
            yield Finding("lingering", WARNING, (seen.host,), what, fix=fix)

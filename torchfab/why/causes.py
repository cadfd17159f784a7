"""The usual causes, in plain words, each with a fix: a table of patterns, tried in this order."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace


class Kind(enum.Enum):
    """What a cause means for what to do next."""

    SCRIPT = "the script itself failed"
    NODE = "a node was lost, or is sick"
    MEMORY = "memory ran out"
    KILLED = "killed from outside"
    NETWORK = "the network, or the rendezvous"
    STOPPED = "stopped on request"
    RUNNING = "it runs"
    SUCCEEDED = "it has succeeded"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cause:
    """Why something ended.

    Parameters
    ----------
    kind : Kind
        What it means for what to do next.
    name : str
        Which one of the kind, for machines.
    words : str
        The same for people: a clause, without a full stop.
    fix : str
        What to do about it.
    is_symptom : bool
        Whether it is what the others see when one of them fails: it is the cause only where nothing else failed.
    """

    kind: Kind
    name: str
    words: str
    fix: str = ""
    is_symptom: bool = False


@dataclass(frozen=True)
class Recogniser:
    """A pattern in an exception, or at the end of a log, and the cause that it is the sign of.

    `{line}` in the words stands for the whole line, and `{name}` for a group of the pattern.
    """

    pattern: re.Pattern[str]
    cause: Cause

    def find(self, text: str) -> Cause | None:
        """Return the cause with its words filled in, of the last place where the pattern is found; None if nowhere."""
        match = None
        for match in self.pattern.finditer(text):  # noqa: B007  # the last one is wanted
            pass
        if match is None:
            return None
        start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
        line = text[start : end if end >= 0 else len(text)].strip()
        groups = {name: value or "?" for name, value in match.groupdict().items()}
        return replace(self.cause, words=self.cause.words.format(line=line[:300], **groups))


_SMALLER = "a smaller batch or a shorter sequence, gradient checkpointing, or sharding (FSDP)"
_LESS = "less memory per rank (data loader workers, caches), or lift the limit: ulimit -v, the control group"
_INTERFACE = "name the interface with --env NCCL_SOCKET_IFNAME=... or GLOO_SOCKET_IFNAME=...; fab doctor, fab network"
_HANG = f"see what the rank behind does: fab stacks, while it hangs; the network: {_INTERFACE}"
_REACH = "fab doctor: can every node reach node 0 and its port?"
_WITHOUT = "fab doctor; launch without that node"
_INSTALL = "install it in the interpreter that runs there (--python), or copy your code there: fab sync"


def _sign(kind: Kind, name: str, signs: Sequence[str], words: str, fix: str, is_symptom: bool = False) -> Recogniser:
    return Recogniser(re.compile("|".join(signs), re.MULTILINE), Cause(kind, name, words, fix, is_symptom))


_MEMORY = (
    _sign(
        *(Kind.MEMORY, "device-memory"),
        ("(?:CUDA|HIP) out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
        *("a GPU had no memory left: {line}", f"{_SMALLER}; if something else holds the GPU: nvidia-smi there"),
    ),
    _sign(
        *(Kind.MEMORY, "shared-memory"),
        (
            "Unexpected bus error encountered in worker",
            "insufficient shared memory",
            "unable to (?:mmap|open|write to|resize|allocate).*(?:shared memory|file </torch_)",
        ),
        "/dev/shm is too small for its data loaders: {line}",
        "fewer workers, or a larger /dev/shm (of containers: --shm-size)",
    ),
    _sign(
        *(Kind.MEMORY, "host-memory"),
        (
            r"^(?:\w+\.)*MemoryError\b",
            "DefaultCPUAllocator: (?:can't|not enough memory)",
            "std::bad_alloc",
            "Cannot allocate memory",
            r"Unable to allocate \S+ \w+ for an array",
        ),
        *("it asked for more memory than it may have: {line}", _LESS),
    ),
)
_NODE = (
    _sign(
        *(Kind.NODE, "disk-full"),
        ("No space left on device", r"Errno 28\b", "Disk quota exceeded", r"Errno 122\b"),
        *("no space was left on a disk: {line}", "free space there, or write to another disk"),
    ),
    _sign(
        *(Kind.NODE, "gpu-sick"),
        (
            "uncorrectable ECC error",
            "CUDA error: (?:no CUDA-capable device|the launch timed out|unspecified launch failure|system not yet)",
            "CUDA driver version is insufficient",
            "GPU is lost",
            "Unable to determine the device handle",
        ),
        *("a GPU of the node does not work: {line}", _WITHOUT),
    ),
    _sign(
        *(Kind.NODE, "filesystem-sick"),
        ("Read-only file system", "Stale file handle", "Transport endpoint is not connected"),
        *("a file system of the node does not work: {line}", _WITHOUT),
    ),
)
_NETWORK = (
    _sign(
        *(Kind.NETWORK, "address-in-use"),
        ("EADDRINUSE", "[Aa]ddress already in use", r"Errno 98\b"),
        "an address that it wanted to listen on is in use: {line}",
        "leave --port out for a free one; what holds a port: ss -ltnp there",
    ),
    _sign(
        *(Kind.NETWORK, "rendezvous-timeout"),
        ("RendezvousTimeoutError", r"Timed out after \d+ seconds waiting for clients\. \d+/\d+ clients joined"),
        *("the rendezvous timed out: not all nodes came", _REACH),
    ),
    _sign(
        *(Kind.NETWORK, "rendezvous-connection"),
        ("RendezvousConnectionError", "client socket has timed out after .* while trying to connect to"),
        *("it could not reach the rendezvous: {line}", _REACH),
        is_symptom=True,
    ),
    _sign(
        *(Kind.NETWORK, "nccl-timeout"),
        (r"Watchdog caught collective operation timeout: WorkNCCL\(SeqNum=(?P<seq>\d+), OpType=(?P<op>\w+)",),
        *("NCCL waited in vain for another rank, in {op} number {seq}", _HANG),
        is_symptom=True,
    ),
    _sign(
        *(Kind.NETWORK, "gloo-timeout"),
        (r"Timed out waiting \d+ms for \w+ operation to complete", "Application timeout caused pair closure"),
        *("gloo waited in vain for another rank: {line}", _HANG),
        is_symptom=True,
    ),
    _sign(
        *(Kind.NETWORK, "store-timeout"),
        (r"wait timeout after \d+ms, keys: ", "Timeout waiting for key", "Socket Timeout"),
        *("it waited in vain for another rank at the store of node 0: {line}", _HANG),
        is_symptom=True,
    ),
    _sign(
        *(Kind.NETWORK, "nccl-error"),
        ("ncclSystemError", "ncclInternalError", "ncclInvalidUsage"),
        *("NCCL failed: {line}", f"launch again with --env NCCL_DEBUG=INFO; {_INTERFACE}"),
    ),
    _sign(
        *(Kind.NETWORK, "connection-lost"),
        (
            *("ncclRemoteError", "Connection (?:closed|reset) by peer", "connectFullMesh", "DistNetworkError"),
            *("recvValue failed", "failed to recv, got 0 bytes", "RendezvousClosedError"),
            "(?:gloo|c10d).*(?:Broken pipe|Connection refused)",
        ),
        *("its connection to another rank was lost: {line}", "see that rank's log and node"),
        is_symptom=True,
    ),
)
_SCRIPT = (
    _sign(
        *(Kind.SCRIPT, "import-error"),
        ("^(?:ModuleNotFoundError|ImportError): .*",),
        *("an import failed: {line}", _INSTALL),
    ),
    _sign(
        *(Kind.SCRIPT, "device-assert"),
        ("CUDA error: (?:device-side assert triggered|an illegal memory access)",),
        "a kernel of the script failed on the GPU: {line}",
        "launch again with --env CUDA_LAUNCH_BLOCKING=1 to see which one",
    ),
)
RECOGNISERS = (*_MEMORY, *_NODE, *_NETWORK, *_SCRIPT)

# What schedulers say, by their own names.
SCHEDULED = {
    "OUT_OF_MEMORY": (Kind.MEMORY, "host-memory", "ask for more: --sbatch-arg=--mem=..., or use less"),
    "OOMKilled": (Kind.MEMORY, "host-memory", "ask for more: --memory, or use less"),
    "TIMEOUT": (Kind.KILLED, "time-limit", "ask for more --time, and resume from a checkpoint"),
    "DEADLINE": (Kind.KILLED, "time-limit", "submit it earlier, or with a later deadline"),
    "NODE_FAIL": (Kind.NODE, "node-failed", "launch it again; Slurm leaves a node out that is down"),
    "BOOT_FAIL": (Kind.NODE, "node-failed", "launch it again; Slurm leaves a node out that is down"),
    "PREEMPTED": (Kind.KILLED, "preempted", "launch it again, and resume from a checkpoint"),
    "CANCELLED": (Kind.STOPPED, "cancelled", ""),
    "REVOKED": (Kind.KILLED, "revoked", ""),
    "Evicted": (Kind.KILLED, "evicted", "see what the pod's machine ran out of; ask for what the job needs"),
    "PreemptionByScheduler": (Kind.KILLED, "preempted", "launch it again, and resume from a checkpoint"),
    "EvictionByEvictionAPI": (Kind.KILLED, "evicted", "launch it again, and resume from a checkpoint"),
    "DeletionByTaintManager": (Kind.NODE, "node-failed", "launch it again"),
    "DeletionByPodGC": (Kind.NODE, "node-failed", "launch it again"),
    "TerminationByKubelet": (Kind.NODE, "node-failed", "launch it again"),
    "DeadlineExceeded": (Kind.KILLED, "time-limit", "give it more time, and resume from a checkpoint"),
    "ContainerCannotRun": (
        Kind.SCRIPT,
        "not-started",
        "see the image and the command: fab launch-kubernetes --dry-run",
    ),
    "StartError": (Kind.SCRIPT, "not-started", "see the image and the command: fab launch-kubernetes --dry-run"),
    "BATCH": (Kind.SCRIPT, "batch-script", "see what it said: fab logs"),
}


def recognise(text: str) -> Cause | None:
    """Return the first cause of the table whose sign is in the text."""
    return next((cause for each in RECOGNISERS if (cause := each.find(text))), None)


def of_schedule(sign: str, words: str) -> Cause:
    """Return the cause that a scheduler names."""
    kind, name, fix = SCHEDULED.get(sign, (Kind.UNKNOWN, "scheduler", ""))
    return Cause(kind, name, words, fix)

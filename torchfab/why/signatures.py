"""Patterns of common causes in exceptions and at the end of logs: a table that is searched in this order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchfab.why.causes import Cause, Kind


@dataclass(frozen=True)
class Recogniser:
    """A pattern in an exception or at the end of a log, and the cause that it indicates.

    Parameters
    ----------
    pattern : re.Pattern
        Searched in the text.
    cause : Cause
        In its `words`, `{line}` stands for the matching line and `{name}` for the group `name` of the pattern.
    """

    pattern: re.Pattern[str]
    cause: Cause

    def find(self, text: str) -> Cause | None:
        """Return the cause for the last match in a text.

        Parameters
        ----------
        text : str
            An exception, or the end of a log.

        Returns
        -------
        Cause or None
            With its `words` filled in; None if nothing matches.
        """
        match = None
        for match in self.pattern.finditer(text):  # noqa: B007  # keep the last match
            pass
        if match is None:
            return None
        start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
        line = " ".join(text[start : end if end >= 0 else len(text)].split())
        groups = {name: value or "?" for name, value in match.groupdict().items()}
        return replace(self.cause, words=self.cause.words.format(line=line[:300], **groups))


_SMALLER = "a smaller batch or a shorter sequence, gradient checkpointing, or sharding (FSDP)"
_LESS = "less memory per rank (data loader workers, caches), or lift the limit: ulimit -v, the control group"
_INTERFACE = "name the interface with --env NCCL_SOCKET_IFNAME=... or GLOO_SOCKET_IFNAME=...; fab doctor, fab network"
_HANG = f"see what the rank behind does: fab stacks, while it hangs; the network: {_INTERFACE}"
_REACH = "fab doctor: can every node reach node 0 and its port?"
_WITHOUT = "fab doctor; launch without that node"
_FILES = (
    "a higher limit of open files there (ulimit -n, /etc/security/limits.conf; a new login sees it), or fewer workers; "
    "of data loaders also: torch.multiprocessing.set_sharing_strategy('file_system')"
)
_INSTALL = "install it in the interpreter that runs there (--python), or copy your code there: fab sync"


def _recogniser(
    kind: Kind, name: str, patterns: Sequence[str], words: str, fix: str, is_symptom: bool = False
) -> Recogniser:
    return Recogniser(re.compile("|".join(patterns), re.MULTILINE), Cause(kind, name, words, fix, is_symptom))


_OPEN_FILES = _recogniser(
    *(Kind.SCRIPT, "open-files"),
    ("Too many open files", r"Errno 24\b", "received 0 items of ancdata"),  # the last: workers that share tensors
    *("it had too many files open: {line}", _FILES),
)
_MEMORY = (
    _recogniser(
        *(Kind.MEMORY, "device-memory"),
        (
            *("(?:CUDA|HIP) out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
            *(r"Cuda failure (?:\d+ )?'out of memory'", r"Failed to CUDA (?:calloc|malloc) (?:async )?\d+ bytes"),
        ),
        *("a GPU had no memory left: {line}", f"{_SMALLER}; if something else holds the GPU: nvidia-smi there"),
    ),
    _OPEN_FILES,  # before shared-memory, whose messages may hold it
    _recogniser(
        *(Kind.MEMORY, "shared-memory"),
        (
            *("Unexpected bus error encountered in worker", "insufficient shared memory"),
            # Another reason than a full disk must not match: the files of a worker that died are gone too.
            "unable to (?:mmap|write to|resize|allocate).*(?:shared memory|file </torch_)",
            "unable to open (?:shared memory|file </torch_).*No space left",
            "Error while creating shared memory segment",  # NCCL
            *(r"failed to extend /dev/shm/", "posix_fallocate failed ?: No space left on device"),
            r"SemLock\b.*(?:\n.*){0,3}?Errno 28\b",  # Python's semaphores are files of /dev/shm
            "(?:Errno 28|No space left on device).*'/(?:dev/shm/|psm_)",
        ),
        "/dev/shm was full, or is too small: {line}",
        "fewer data loader workers, or a larger /dev/shm (of containers: --shm-size); "
        "what is left over: ls -l /dev/shm",
    ),
    _recogniser(
        *(Kind.MEMORY, "locked-memory"),
        (r"ibv_\w+ .*Cannot allocate memory", r"NET/\w+\W.*[Rr]egister memory .*Cannot allocate memory"),
        "it may not lock the memory that its network adapter needs: {line}",
        "ulimit -l unlimited there (memlock in /etc/security/limits.conf; of containers: --ulimit memlock=-1); "
        "fab doctor",
    ),
    _recogniser(
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
    _recogniser(
        *(Kind.NODE, "disk-full"),
        ("No space left on device", r"Errno 28\b", "Disk quota exceeded", r"Errno 122\b"),
        *("no space was left on a disk: {line}", "free space there, or write to another disk"),
    ),
    _recogniser(
        *(Kind.NODE, "fabric-sick"),
        ("system not yet initialized", "Failed to bind NVLink SHARP", "error in the Fabric Manager or NVSwitches"),
        "the fabric of the node's GPUs (NVSwitch) is not ready: {line}",
        "systemctl status nvidia-fabricmanager there: of the driver's own version, and without errors; "
        "launch without that node",
    ),
    _recogniser(
        *(Kind.NODE, "driver-too-old"),
        ("NVIDIA driver on your system is too old", "CUDA driver version is insufficient"),
        "the NVIDIA driver of the node is too old for its torch: {line}",
        "update the driver there, or install a torch of an older CUDA: fab doctor compares the nodes",
    ),
    _recogniser(
        *(Kind.NODE, "gpu-busy"),
        (r"CUDA-capable device(?:s are|\(s\) is/are) busy or unavailable",),
        "a GPU of the node is held by something else, or does not work: {line}",
        "what holds it, and its compute mode: nvidia-smi -q -d COMPUTE,PIDS there; fab doctor",
    ),
    _recogniser(
        *(Kind.NODE, "no-gpu"),
        ("No CUDA GPUs are available", "CUDA error: no CUDA-capable device"),
        "the node has no GPU that it may use: {line}",
        "CUDA_VISIBLE_DEVICES there, and what fab doctor says of its driver; launch without that node",
    ),
    _recogniser(
        *(Kind.NODE, "gpu-sick"),
        (
            "uncorrectable (?:ECC|NVLink) error",
            "CUDA error: (?:the launch timed out|unspecified launch failure)",
            "GPU is lost",
            "Unable to determine the device handle",
        ),
        *("a GPU of the node does not work: {line}", _WITHOUT),
    ),
    _recogniser(
        *(Kind.NODE, "filesystem-sick"),
        ("Read-only file system", "Stale file handle", "Transport endpoint is not connected"),
        *("a file system of the node does not work: {line}", _WITHOUT),
    ),
)
_LOST = "its connection to another rank was lost: {line}"
_SEE_IT = "see that rank's log and node; where nothing failed there, the link: fab network"
_NETWORK = (
    _recogniser(
        *(Kind.NETWORK, "address-in-use"),
        ("EADDRINUSE", "[Aa]ddress already in use", r"Errno 98\b"),
        "an address that it wanted to listen on is in use: {line}",
        "leave --port out for a free one; what holds a port: ss -ltnp there",
    ),
    _recogniser(
        *(Kind.NETWORK, "no-interface"),
        ("Unable to find (?:address for|interface for): ", "no socket interface found"),
        *("it found no network interface of that name, or no address: {line}", _INTERFACE),
    ),
    _recogniser(
        *(Kind.NETWORK, "rendezvous-timeout"),
        ("RendezvousTimeoutError", r"Timed out after \d+ seconds waiting for clients\. \d+/\d+ clients joined"),
        *("the rendezvous timed out: not all nodes came", _REACH),
    ),
    _recogniser(
        *(Kind.NETWORK, "rendezvous-connection"),
        (
            *("RendezvousConnectionError", "client socket has timed out after .* while trying to connect to"),
            r"connect\(\) timed out\. Original timeout",  # torch 1.10
        ),
        *("it could not reach the rendezvous: {line}", _REACH),
        is_symptom=True,
    ),
    _recogniser(
        *(Kind.NETWORK, "nccl-timeout"),
        (r"(?:operation timeout:|Work) WorkNCCL\(SeqNum=(?P<seq>\d+), OpType=(?P<op>\w+)",),
        *("NCCL waited in vain for another rank, in {op} number {seq}", _HANG),
        is_symptom=True,
    ),
    _recogniser(
        *(Kind.NETWORK, "nccl-timeout"),
        (r"operation timeout: WorkNCCL\(OpType=(?P<op>\w+)",),  # torch 1.9 does not count them
        *("NCCL waited in vain for another rank, in {op}", _HANG),
        is_symptom=True,
    ),
    _recogniser(
        *(Kind.NETWORK, "nccl-stuck"),
        (r"(?P<sign>watchdog got stuck for \d+ seconds|Heartbeat monitor timed out)",),
        *("a call of NCCL or CUDA hung, says torch's monitor: {sign}", _HANG),
        is_symptom=True,
    ),
    _recogniser(
        *(Kind.NETWORK, "gloo-timeout"),
        (r"Timed out waiting \d+ms for \w+ operation to complete", "Application timeout caused pair closure"),
        *("gloo waited in vain for another rank: {line}", _HANG),
        is_symptom=True,
    ),
    _recogniser(
        *(Kind.NETWORK, "store-timeout"),
        (
            *(r"wait timeout after \d+ms, keys: ", "Timeout waiting for key", "Socket Timeout"),
            "Timed out initializing process group in store based barrier",
        ),
        *("it waited in vain for another rank at the store of node 0: {line}", _HANG),
        is_symptom=True,
    ),
    # NCCL reports most of its errors under one of three names, also the death of another rank.
    _recogniser(
        *(Kind.NETWORK, "connection-lost"),
        (
            *("ncclRemoteError", "Connection closed by remote peer", "Software caused connection abort"),
            r"\bsocket\w+: (?:Connect to|Call to \w+ (?:from|to)) .* failed",
            *("Net : Call to .* failed", r"NET/IB : Got completion from peer .*status=(?:12\b|IBV_WC_RETRY_EXC_ERR)"),
        ),
        *(_LOST, _SEE_IT),
        is_symptom=True,
    ),
    _recogniser(
        *(Kind.NETWORK, "nccl-error"),
        (r"nccl(?:SystemError|InternalError|InvalidUsage|UnhandledCudaError)\b.*(?:\n.*Last error:.*\n.*)?",),
        *("NCCL failed: {line}", f"launch again with --env NCCL_DEBUG=INFO; {_INTERFACE}"),
    ),
    _recogniser(
        *(Kind.NETWORK, "connection-lost"),
        (
            *("Connection (?:closed|reset) by peer", "connectFullMesh", "DistNetworkError"),
            *(r"recvValue\w* failed", "[Ff]ailed to recv, got 0 bytes", "RendezvousClosedError"),
            "(?:gloo|c10d).*(?:Broken pipe|Connection refused)",
        ),
        *(_LOST, _SEE_IT),
        is_symptom=True,
    ),
)
_ASSERT = _recogniser(
    *(Kind.SCRIPT, "device-assert"),
    ("CUDA error: (?:device-side assert triggered|an illegal memory access)",),
    "a kernel of the script failed on the GPU: {line}",
    "launch again with --env CUDA_LAUNCH_BLOCKING=1 to see which one",
)
_IMPORT = _recogniser(
    *(Kind.SCRIPT, "import-error"),
    ("^(?:ModuleNotFoundError|ImportError): .*",),
    *("an import failed: {line}", _INSTALL),
)
# A failed CUDA kernel also breaks connections in the same log; a failed import in it may have been caught.
RECOGNISERS = (*_MEMORY, *_NODE, _ASSERT, *_NETWORK, _IMPORT)


def recognise(text: str) -> Cause | None:
    """Return the first cause of the table whose pattern is in a text.

    Parameters
    ----------
    text : str
        An exception, or the end of a log.

    Returns
    -------
    Cause or None
        None if no pattern matches.
    """
    return next((cause for each in RECOGNISERS if (cause := each.find(text))), None)

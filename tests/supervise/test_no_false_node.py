"""No failure that is not the node's puts its host on the quarantine list, nor the second time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.supervise.factories import POLICY
from tests.why import evidence_factory
from tests.why.evidence_factory import LAUNCHED, log, node, process, rank
from torchfab import runtimes
from torchfab.supervise import outcome, policy
from torchfab.supervise.attempt_monitor import Trigger
from torchfab.supervise.model import PreviousAttempt
from torchfab.why.evidence import Evidence

PATHS = ("/jobs", "/home/u", "/tmp", "/dev/shm", "/scratch")
DISKS = [{"path": path, "free": 10**11, "size": 10**12, "free_files": 10**6} for path in PATHS]
# What one rank prints; every errno of these is also printed by nodes that are sick.
OWN_PATHS = (
    "OSError: [Errno 30] Read-only file system: '/mlruns'",
    "OSError: [Errno 30] Read-only file system: '/outputs/run-1'",
    "OSError: [Errno 30] Read-only file system: b'/usr/share/x'",
    "PermissionError: [Errno 13] Permission denied: '/scratch/shared/ckpt'",
    "PermissionError: [Errno 1] Operation not permitted: '/proc/sys/vm/overcommit_memory'",
    "FileNotFoundError: [Errno 2] No such file or directory: '/data/train.bin'",
    "NotADirectoryError: [Errno 20] Not a directory: '/home/u/run/x'",
    "IsADirectoryError: [Errno 21] Is a directory: '/home/u'",
    "FileExistsError: [Errno 17] File exists: '/tmp/lock'",
    "OSError: [Errno 36] File name too long: '/home/u/aaaa'",
    "OSError: [Errno 39] Directory not empty: '/home/u/ckpt'",
    "OSError: [Errno 26] Text file busy: '/home/u/bin/tool'",
    "OSError: [Errno 18] Invalid cross-device link: '/tmp/x' -> '/home/u/x'",
    "OSError: [Errno 22] Invalid argument: '/home/u/x'",
    "OSError: [Errno 27] File too large: '/home/u/x'",
    "OSError: [Errno 95] Operation not supported: '/home/u/x'",
    "OSError: [Errno 38] Function not implemented: flock of '/home/u/x'",
    "OSError: [Errno 6] No such device or address: '/dev/nvidia9'",
    "OSError: [Errno 19] No such device: '/home/u/x'",
    "OSError: [Errno 16] Device or resource busy: '/home/u/.nfs0001'",
    "OSError: [Errno 5] Input/output error: '/home/u/x.bin'",
    "OSError: [Errno 116] Stale file handle: '/home/u/x.bin'",
    "OSError: [Errno 116] Stale file handle",
    "OSError: [Errno 121] Remote I/O error: '/home/u/x.bin'",
)
LIMITS = (
    "OSError: [Errno 28] inotify watch limit reached",
    "OSError: [Errno 24] inotify instance limit reached",
    "OSError: [Errno 28] No space left on device",
    "OSError: [Errno 28] No space left on device: '/home/u/ckpt.pt'",
    "OSError: [Errno 28] Auf dem Ger\u00e4t ist kein Speicherplatz mehr verf\u00fcgbar: '/tmp/x'",
    "RuntimeError: [enforce fail at inline_container.cc:603] . PytorchStreamWriter failed: No space left on device",
    "safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull })",
    "sqlite3.OperationalError: database or disk is full",
    "OSError: [Errno 122] Disk quota exceeded",
    "OSError: [Errno 122] Disk quota exceeded: '/home/u/ckpt.pt'",
    "OSError: [Errno 69] Disk quota exceeded: '/home/u/ckpt.pt'",
    "OSError: [Errno 24] Too many open files: '/data/x'",
    "OSError: [Errno 23] Too many open files in system: '/data/x'",
    "RuntimeError: received 0 items of ancdata",
    "OSError: [Errno 11] Resource temporarily unavailable",
    "RuntimeError: can't start new thread",
    "BlockingIOError: [Errno 11] Resource temporarily unavailable: 'x.lock'",
    "OSError: [Errno 37] No locks available",
    "OSError: [Errno 12] Cannot allocate memory",
    "MemoryError",
)
SOCKETS = (
    "OSError: [Errno 107] Transport endpoint is not connected",
    "OSError: [Errno 98] Address already in use",
    "OSError: [Errno 99] Cannot assign requested address",
    "OSError: [Errno 101] Network is unreachable",
    "OSError: [Errno 113] No route to host",
    "ConnectionRefusedError: [Errno 111] Connection refused",
    "ConnectionResetError: [Errno 104] Connection reset by peer",
    "BrokenPipeError: [Errno 32] Broken pipe",
    "TimeoutError: [Errno 110] Connection timed out",
    "socket.gaierror: [Errno -3] Temporary failure in name resolution",
    "OSError: [Errno 9] Bad file descriptor",
    "OSError: AF_UNIX path too long",
)
SERVICES = (
    "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: https://huggingface.co/x",
    "huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url https://hf.co/x",
    "huggingface_hub.errors.HfHubHTTPError: 503 Server Error: Service Temporarily Unavailable for url: https://hf.co",
    "OSError: We couldn't connect to 'https://huggingface.co' to load this file",
    "requests.exceptions.ConnectionError: ('Connection aborted.', ConnectionResetError(104, 'reset'))",
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x'): [Errno 28] No space left on device",
    'botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL: "https://b.s3.amazonaws.com"',
    "wandb.errors.CommError: Run initialization has timed out after 90.0 sec",
    "redis.exceptions.ConnectionError: Error 111 connecting to cache:6379. Connection refused.",
    "psycopg2.OperationalError: server closed the connection unexpectedly",
)
DEVICES = (
    "RuntimeError: CUDA error: invalid device ordinal",
    "RuntimeError: No CUDA GPUs are available",
    "RuntimeError: Found no NVIDIA driver on your system.",
    "AssertionError: Torch not compiled with CUDA enabled",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "RuntimeError: CUDA error: device-side assert triggered",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "RuntimeError: CUDA error: unspecified launch failure",
    "RuntimeError: CUDA error: the launch timed out and was terminated",
    "ModuleNotFoundError: No module named 'wandb'",
)
TEXTS = (*OWN_PATHS, *LIMITS, *SOCKETS, *SERVICES, *DEVICES)
LOST_PEER = "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1"


def raised(error: str) -> str:
    """Return a traceback."""
    return f'Traceback (most recent call last):\n  File "/home/u/train.py", line 7, in <module>\n    main()\n{error}\n'


def evidence_of(error: str, who: int, hosts: tuple[tuple[int, ...], ...]) -> Evidence:
    """Return the evidence of a job of some hosts with these ranks, of which one raises and ends first."""
    at, count = LAUNCHED + 60, sum(map(len, hosts))
    texts = [raised(error if number == who else LOST_PEER) for number in range(count)]
    ends = [at if number == who else at + 2 for number in range(count)]
    nodes = [
        node(
            number,
            [process("failed", *(rank(each, 1, ends[each]) for each in own))],
            [log(each, texts[each], ends[each]) for each in own],
            disks=DISKS,
            gpus=8,
        )
        for number, own in enumerate(hosts)
    ]
    return evidence_factory.make_evidence(*nodes)


@pytest.mark.parametrize(
    ("who", "hosts"),
    [(0, ((0, 1), (2, 3))), (3, ((0, 1), (2, 3))), (0, ((0,), (1,)))],
    ids=["0-of-4", "3-of-4", "0-of-2"],
)
@pytest.mark.parametrize("error", TEXTS)
def test_host_is_not_quarantined(
    error: str, who: int, hosts: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = evidence_of(error, who, hosts)
    record = SimpleNamespace(attempt=1, created=LAUNCHED, runtime="tmux")
    monkeypatch.setattr(runtimes, "load", lambda _: SimpleNamespace(evidence=lambda _: evidence))
    trigger = Trigger("ended", evidence.status, 10)
    ended, diagnosed = outcome.classify(cast(Any, record), trigger)
    assert diagnosed.first
    assert diagnosed.first.rank == who, diagnosed.cause
    assert diagnosed.bad_nodes == ()
    assert (ended.bad, ended.blamed) == ({}, ())
    assert not policy.decide((), ended, POLICY).drop
    before = PreviousAttempt(ended, replaced=False)
    assert not policy.decide((before,), replace(ended, attempt=2), POLICY).drop


def test_at_least_60_texts_are_tried() -> None:
    assert len(set(TEXTS)) >= 60

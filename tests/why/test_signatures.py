"""Common causes, recognised in the messages of torch, NCCL, gloo and Python.

The files in tests/recorded/torch were printed by torch 1.0 to 2.9 and NCCL 2.9 to 2.29 on other people's machines
(INDEX.md there names the sources). In this file, the messages of gloo, the store and the rendezvous were printed by
torch 2.13 on CPU nodes (tests/integration provokes them), and those of Python and numpy by these programs. The messages
of CUDA and NCCL follow the format strings of their sources, where no recording was found.
"""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.recorded.recordings import names, recording
from tests.support import fuzzed
from torchfab.why import signatures

RECORDED = """\
memory device-memory: oom-1.0 oom-1.13 oom-2.1 oom-2.9-other-processes nccl-cuda-out-of-memory
memory shared-memory: shm-loader-bus-error shm-loader-no-space shm-loader-no-words-1.4 shm-loader-resize-1.1
memory shared-memory: nccl-shm-full-2.27 nccl-shm-full-2.9.6 semlock-no-space
memory locked-memory: nccl-ib-cannot-allocate-memory nccl-ofi-cannot-allocate-memory
node fabric-sick: fabric-802-1.4 fabric-802-2.6-warning nccl-unhandled-cuda-2.29.3-nvls
node driver-too-old: driver-too-old
node gpu-busy: device-busy-1.7 device-busy-2.0
node no-gpu: no-gpus
node gpu-sick: ecc-1.2 ecc-2.1-watchdog ecc-2.4-watchdog-torchrun nvlink-uncorrectable
network address-in-use: address-in-use-2.0 address-in-use-2.3 address-in-use-2.6-libuv
network no-interface: gloo-no-interface
network rendezvous-timeout: store-clients-joined
network rendezvous-connection: rendezvous-connection-2.0 rendezvous-connection-2.9 client-1800s-2.4-ipv6 store-client-1.10
network nccl-timeout: aborted-1.13-reason watchdog-1.9-no-seqnum watchdog-1.12-2022 watchdog-2.0 watchdog-2.3 watchdog-2.4
network nccl-timeout: watchdog-2.5.1 watchdog-2.5.1-ranks-differ watchdog-2.7 watchdog-2.7-blocking-wait
network nccl-stuck: heartbeat-2.3 heartbeat-2.7 heartbeat-2.9-many-groups
network gloo-timeout: gloo-recv-timeout-2.6
network store-timeout: store-barrier-1.9 store-barrier-2022-metaseq store-socket-timeout-2.4
network nccl-error: nccl-unhandled-cuda-2.20.5
network connection-lost: nccl-remote-2.5 nccl-remote-2.28.8-ofi nccl-remote-becomes-internal-2.14.3 nccl-ib-completion-12
network connection-lost: nccl-internal-closed-by-remote-2.0.1 nccl-system-2.18.5 store-got-0-bytes-2.8
network connection-lost: store-should-dump-2.9 gloo-closed-by-peer-2.x gloo-read-error
script device-assert: device-assert illegal-access-2.2-watchdog
"""  # noqa: E501  # a cause is a line


CAUSE_OF_RECORDING = {
    name: tuple(cause.split()) for cause, _, of in (line.partition(": ") for line in RECORDED.splitlines())
    for name in of.split()
}  # fmt: skip


SYMPTOMS = {
    "rendezvous-connection",
    "nccl-timeout",
    "nccl-stuck",
    "gloo-timeout",
    "store-timeout",
    "connection-lost",
    "nccl-error",
}


CASES = """\
memory device-memory    RuntimeError: CUDA error: out of memory
memory device-memory    RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`
memory shared-memory    RuntimeError: unable to allocate shared memory(shm) for file </torch_860_2407853_0>: No space left on device (28)
memory shared-memory    OSError: [Errno 28] No space left on device: '/dev/shm/x'
memory shared-memory    RuntimeError: unable to open shared memory object </torch_1_2_3> in read-write mode: No space left on device (28)
script open-files       RuntimeError: unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)
script open-files       OSError: [Errno 24] Too many open files: '/data/x'
script open-files       RuntimeError: received 0 items of ancdata
memory host-memory      MemoryError
memory host-memory      numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 TiB for an array with shape (1,)
memory host-memory      RuntimeError: [enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 87 bytes
memory host-memory      OSError: [Errno 12] Cannot allocate memory
node disk-full          OSError: [Errno 28] No space left on device
script quota            OSError: [Errno 122] Disk quota exceeded: 'x.pt'
node no-gpu             RuntimeError: CUDA error: no CUDA-capable device is detected
node filesystem-sick    OSError: [Errno 116] Stale file handle: '/data/x'
network address-in-use  OSError: [Errno 98] Address already in use
network rendezvous-timeout     torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError
network store-timeout   torch.distributed.DistStoreError: wait timeout after 4000ms, keys: /default_pg/0//cpu//0/0
network nccl-error      ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
script import-error     ModuleNotFoundError: No module named 'flash_attn'
script import-error     ImportError: libcudart.so.12: cannot open shared object file: No such file or directory
"""  # noqa: E501  # a text is a line


FILE_MISSING = (
    "RuntimeError: unable to open shared memory object </torch_1_2_3> in read-write mode: No such file or directory (2)"
)


MESSAGES = {text: (kind, name) for kind, name, text in (line.split(maxsplit=2) for line in CASES.splitlines())}


def test_every_recording_has_an_expected_cause() -> None:
    assert sorted(CAUSE_OF_RECORDING) == sorted(name.removesuffix(".txt") for name in names("torch"))


@pytest.mark.parametrize("name", CAUSE_OF_RECORDING)
def test_recorded_errors_are_recognised(name: str) -> None:
    found = signatures.recognise(recording("torch", f"{name}.txt"))
    assert found is not None
    assert (found.kind.name.lower(), found.name) == CAUSE_OF_RECORDING[name]
    assert found.is_symptom == (found.name in SYMPTOMS)
    assert "{" not in found.words


@pytest.mark.parametrize("text", MESSAGES)
def test_error_messages_are_recognised(text: str) -> None:
    found = signatures.recognise(text)
    assert found is not None
    assert (found.kind.name.lower(), found.name) == MESSAGES[text]
    assert found.fix
    assert "{" not in found.words


@pytest.mark.parametrize("text", ["ValueError: bad", "KeyError: 'Timed out'", "AssertionError", "", FILE_MISSING])
def test_unrelated_errors_are_not_recognised(text: str) -> None:
    assert signatures.recognise(text) is None


@fuzzed(st.text())
def test_recognise_accepts_any_text(text: str) -> None:
    found = signatures.recognise(text)
    assert found is None or found.words

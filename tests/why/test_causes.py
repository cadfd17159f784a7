"""The usual causes, recognised in what torch, NCCL, gloo and Python say.

The texts of gloo, of the store and of the rendezvous are what torch 2.13 printed on CPU nodes (tests/integration makes
them happen). Those of CUDA and NCCL follow the format strings of CUDACachingAllocator.cpp and ProcessGroupNCCL.cpp as
they are known: no GPU was at hand, and torch's CPU build, which the tests install, does not hold them.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.why.makers import log, node, process, rank, told
from torchfab.why import causes
from torchfab.why.causes import Kind

CASES = """\
memory device-memory    torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 79.11
memory device-memory    RuntimeError: CUDA error: out of memory
memory device-memory    RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`
memory shared-memory    ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory
memory shared-memory    RuntimeError: unable to allocate shared memory(shm) for file </torch_860_2407853_0>: No space left on device (28)
memory host-memory      MemoryError
memory host-memory      numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 TiB for an array with shape (1,)
memory host-memory      RuntimeError: [enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 87 bytes
memory host-memory      OSError: [Errno 12] Cannot allocate memory
node disk-full          OSError: [Errno 28] No space left on device
node disk-full          OSError: [Errno 122] Disk quota exceeded: 'x.pt'
node gpu-sick           RuntimeError: CUDA error: uncorrectable ECC error encountered
node gpu-sick           RuntimeError: CUDA error: no CUDA-capable device is detected
node filesystem-sick    OSError: [Errno 116] Stale file handle: '/data/x'
network address-in-use  OSError: [Errno 98] Address already in use
network address-in-use  torch.distributed.DistNetworkError: port: 5001, useIpv6: false, code: -98, name: EADDRINUSE
network rendezvous-timeout     torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError
network rendezvous-timeout     torch.distributed.DistStoreError: Timed out after 61 seconds waiting for clients. 1/2 clients joined.
network rendezvous-connection  torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d store has failed.
network rendezvous-connection  torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect to (node1, 5001).
network gloo-timeout    RuntimeError: [/x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete
network store-timeout   torch.distributed.DistStoreError: wait timeout after 4000ms, keys: /default_pg/0//cpu//0/0
network connection-lost RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:2475
network connection-lost ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
network nccl-error      ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
script import-error     ModuleNotFoundError: No module named 'flash_attn'
script import-error     ImportError: libcudart.so.12: cannot open shared object file: No such file or directory
script device-assert    RuntimeError: CUDA error: device-side assert triggered
"""  # noqa: E501  # a text is a line
TEXTS = {text: (kind, name) for kind, name, text in (line.split(maxsplit=2) for line in CASES.splitlines())}
WATCHDOG = """\
[rank{rank}]:[E1121 ProcessGroupNCCL.cpp:685] [Rank {rank}] Watchdog caught collective operation timeout: \
WorkNCCL(SeqNum={seq}, OpType=ALLREDUCE, NumelIn=1048576, NumelOut=1048576, Timeout(ms)=600000) ran for 600029 \
milliseconds before timing out.
[rank{rank}]:[E1121 ProcessGroupNCCL.cpp:2252] [PG ID 0 PG GUID 0(default_pg) Rank {rank}]  failure detected by \
watchdog at work sequence id: {seq} PG status: last enqueued work: {seq}, last completed work: {done}
terminate called after throwing an instance of 'c10::DistBackendError'
"""


@pytest.mark.parametrize("text", TEXTS)
def test_what_torch_says_is_recognised(text: str) -> None:
    found = causes.recognise(text)
    assert found is not None
    assert (found.kind.name.lower(), found.name) == TEXTS[text]
    assert found.fix
    assert "{" not in found.words


@pytest.mark.parametrize("text", ["ValueError: bad", "KeyError: 'Timed out'", "AssertionError", ""])
def test_what_is_nobody_s_usual_cause_is_not(text: str) -> None:
    assert causes.recognise(text) is None


@given(st.text())
def test_no_text_breaks_the_table(text: str) -> None:
    found = causes.recognise(text)
    assert found is None or found.words


def test_the_watchdogs_of_nccl_tell_which_rank_was_behind() -> None:
    ranks = [(0, 14, 13), (1, 14, 13), (2, 11, 11)]
    nodes = [
        node(number, [process("failed", rank(number, -6, 1060.0 + number / 10))],
             [log(number, WATCHDOG.format(rank=number, seq=seq, done=done))])
        for number, seq, done in ranks
    ]  # fmt: skip
    found = told(*nodes)
    assert (found.cause.kind, found.cause.name) == (Kind.NETWORK, "nccl-timeout")
    assert found.cause.words == "NCCL waited in vain for another rank, in ALLREDUCE number 14"
    assert [each.words for each in found.behind] == ["rank 2 on node3 had begun 11 collectives, the others up to 14"]


@pytest.mark.parametrize("sign", causes.SCHEDULED)
def test_what_schedulers_name_has_a_kind(sign: str) -> None:
    assert causes.of_schedule(sign, "words").kind is not Kind.UNKNOWN
    assert causes.of_schedule("SOMETHING_NEW", "words").kind is Kind.UNKNOWN

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
from tests.why.evidence_factory import LAUNCHED, diagnose_nodes, log, make_evidence, node, process, rank
from torchfab.why import causes, failures, signatures
from torchfab.why.causes import Kind

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
# Handwritten after the recording of torch 2.7, which has one rank only; here for all ranks of a job.
WATCHDOG = """\
[rank{rank}]:[E1121 ProcessGroupNCCL.cpp:685] [Rank {rank}] Watchdog caught collective operation timeout: \
WorkNCCL(SeqNum={seq}, OpType=ALLREDUCE, NumelIn=1048576, NumelOut=1048576, Timeout(ms)=600000) ran for 600029 \
milliseconds before timing out.
[rank{rank}]:[E1121 ProcessGroupNCCL.cpp:2252] [PG ID 0 PG GUID 0(default_pg) Rank {rank}]  failure detected by \
watchdog at work sequence id: {seq} PG status: last enqueued work: {seq}, last completed work: {done}
terminate called after throwing an instance of 'c10::DistBackendError'
"""


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


def test_nccl_watchdog_logs_identify_the_straggler() -> None:
    ranks = [(0, 14, 13), (1, 14, 13), (2, 11, 11)]
    nodes = [
        node(number, [process("failed", rank(number, -6, 1060.0 + number / 10))],
             [log(number, WATCHDOG.format(rank=number, seq=seq, done=done))])
        for number, seq, done in ranks
    ]  # fmt: skip
    found = diagnose_nodes(*nodes)
    assert (found.cause.kind, found.cause.name) == (Kind.NETWORK, "nccl-timeout")
    assert found.cause.words == "NCCL waited in vain for another rank, in ALLREDUCE number 14"
    assert [each.words for each in found.stragglers] == [
        "rank 2 on node3 had begun 11 collectives, the others up to 14"
    ]


def stragglers(*logs: str) -> list[str]:
    """Return the stragglers if rank N on node N+1 wrote the Nth of these logs and failed."""
    nodes = [
        node(number, [process("failed", rank(number, -6, 1060.0 + number / 10))], [log(number, text)])
        for number, text in enumerate(logs)
    ]
    return [each.words for each in diagnose_nodes(*nodes).stragglers if "had begun" in each.words]


def test_collective_counts_are_compared_within_a_process_group() -> None:
    default, second = recording("torch", "watchdog-2.4.txt"), recording("torch", "watchdog-2.5.1.txt")
    assert stragglers(default, second) == []
    late = second.replace("work: 4486, last enqueued NCCL work: 4489", "work: 4484, last enqueued NCCL work: 4484")
    assert stragglers(second + default, late + default) == [
        "rank 1 on node2 had begun 4484 collectives of process group 9, the others up to 4489"
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("watchdog-2.0.txt", "rank 1 on node2 had begun 64088 collectives, the others up to 96120"),
        ("watchdog-2.5.1-ranks-differ.txt", "rank 0 on node1 had begun 532339 collectives, the others up to 532341"),
    ],
)
def test_straggler_is_found_in_logs_without_group_names(name: str, words: str) -> None:
    assert stragglers(*recording("torch", name).splitlines()) == [words]


def test_device_assert_takes_precedence_over_lost_connections() -> None:
    both = recording("torch", "illegal-access-2.2-watchdog.txt") + recording("torch", "store-should-dump-2.9.txt")
    found = signatures.recognise(both)
    assert found is not None
    assert found.name == "device-assert"


@pytest.mark.parametrize("is_in_kernel_log", [True, False])
def test_killed_loader_is_certain_only_if_the_kernel_names_its_pid(is_in_kernel_log: bool) -> None:
    text = (
        "Traceback (most recent call last):\nRuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed. \n"
    )
    kernel = [(1059.0, "Out of memory: Killed process 4711 (python3) total-vm:9kB")] if is_in_kernel_log else []
    failed = node(0, [process("failed", rank(0, 1))], [log(0, text)], kernel={"lines": kernel, "unread": ""})
    found = diagnose_nodes(failed)
    assert found.cause.name == "host-memory"
    assert found.certainty == ("certain" if is_in_kernel_log else "probable")


def test_semaphore_without_space_is_a_shared_memory_cause() -> None:
    recorded = recording("torch", "semlock-no-space.txt")
    (end,) = failures.all_failures(
        make_evidence(
            node(0, [process("failed", rank(0, 1))], [log(0, f"Traceback (most recent call last):\n{recorded}")])
        )
    )
    assert (end.cause.kind, end.cause.name) == (Kind.MEMORY, "shared-memory")
    assert end.cause.words.endswith("OSError: [Errno 28] No space left on device")


@pytest.mark.parametrize("sign", causes.SCHEDULED)
def test_every_scheduler_reason_has_a_kind(sign: str) -> None:
    assert causes.cause_of_schedule(sign, "words").kind is not Kind.UNKNOWN
    assert causes.cause_of_schedule("SOMETHING_NEW", "words").kind is Kind.UNKNOWN


def of_rank(number: int, operation: str, age_s: float) -> dict[str, object]:
    """Return the collectives of a rank that waits in its second call."""
    calls = [
        ["0", 1, "all_reduce", [[1]], ["Float"], [[1]], ["Float"], True, age_s + 1, []],
        ["0", 2, operation, [[1]], ["Float"], [[1]], ["Float"], False, age_s, []],
    ]
    stack = [["step", "/w/train.py", 30 + number]]
    return {
        "rank": number,
        "pid": 100 + number,
        "time": 1050.0,
        "groups": [["0", "default_pg", [0, 1]]],
        "calls": calls if operation else calls[:1],
        "stack": stack,
    }


def of_a_failed_job(text: str, operation: str) -> list[str]:
    """Return what is said about collectives where rank 0 failed with a text and rank 1 was in an operation."""
    logs = [log(0, text)]
    failed = node(0, [process("failed", rank(0, 1))], logs, collectives=[of_rank(0, "all_reduce", 9.0)])
    other = node(1, [process("failed", rank(1, -15))], collectives=[of_rank(1, operation, 9.0)])
    return [each.words for each in diagnose_nodes(failed, other).collectives]


RAISED = 'Traceback (most recent call last):\n  File "/w/train.py", line 3, in <module>\nValueError: x'
TIMED_OUT = "RuntimeError: Timed out waiting 9000ms for recv operation to complete"


def test_calls_that_cannot_belong_together_are_named_whatever_failed_first() -> None:
    words = "rank 1 called broadcast no. 2 (float32[1], train.py:31); rank 0 all_reduce no. 2 (float32[1], train.py:30)"
    assert of_a_failed_job(RAISED, "broadcast") == [words]
    assert of_a_failed_job(TIMED_OUT, "broadcast") == [words]


def test_a_rank_that_is_late_is_named_after_a_timeout_only() -> None:
    assert of_a_failed_job(RAISED, "") == []
    (words,) = of_a_failed_job(TIMED_OUT, "")
    assert words.startswith("rank 1 has not reached all_reduce no. 2, at train.py:31 in step; rank 0 waits there")


def test_of_a_rank_that_was_killed_it_is_said_where_the_others_were() -> None:
    failed = node(0, [process("failed", rank(0, -9))])
    other = node(1, [process("failed", rank(1, -15, ended=LAUNCHED + 61))], collectives=[of_rank(1, "all_reduce", 0.1)])
    (found,) = diagnose_nodes(failed, other).collectives
    assert found.words == "rank 0 has ended, and rank 1 waits in all_reduce no. 2 (float32[1], train.py:31)"

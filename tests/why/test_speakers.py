"""The same words from different speakers: only those of the job's own communication mean a lost rank."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.why.evidence_factory import diagnose_nodes, log, node, process, rank
from torchfab.remote.host import kernel_log
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis
from torchfab.why.signature_table import SIGNATURES
from torchfab.why.signatures import find

SITE, STANDARD = "/opt/env/lib/python3.11/site-packages/", "/opt/env/lib/python3.11/"
CLIENTS = {
    "requests": ("requests.exceptions.ConnectionError", f"{SITE}requests/adapters.py"),
    "urllib3": ("urllib3.exceptions.ProtocolError", f"{SITE}urllib3/response.py"),
    "builtin in urllib3": ("ConnectionResetError", f"{SITE}urllib3/connectionpool.py"),
    "builtin in ssl below requests": ("ConnectionResetError", f"{SITE}requests/sessions.py", f"{STANDARD}ssl.py"),
    "botocore": ("botocore.exceptions.EndpointConnectionError", f"{SITE}botocore/httpsession.py"),
    "aiohttp": ("aiohttp.client_exceptions.ClientOSError", f"{SITE}aiohttp/client.py"),
    "wandb": ("wandb.errors.CommError", f"{SITE}wandb/sdk/wandb_init.py"),
    "psycopg2": ("psycopg2.OperationalError", "/home/u/proj/db.py"),
    "redis": ("redis.exceptions.ConnectionError", f"{SITE}redis/connection.py"),
    "grpc": ("grpc._channel._InactiveRpcError", f"{SITE}grpc/_channel.py"),
    "a client that nobody listed": ("acme_store.errors.StoreConnectionError", "/home/u/proj/store.py"),
    "another one": ("qdrant.http.exceptions.ApiHttpTransportError", "/home/u/proj/store.py"),
    "fsspec": ("fsspec.exceptions.FSTimeoutError", "/home/u/proj/store.py"),
    "mlflow": ("mlflow.exceptions.MlflowException", f"{SITE}mlflow/utils/rest_utils.py"),
}
OWN = {
    "all_reduce": ("RuntimeError", f"{SITE}torch/distributed/distributed_c10d.py"),
    "store": ("torch.distributed.DistNetworkError", f"{SITE}torch/distributed/rendezvous.py"),
    "DDP": ("RuntimeError", f"{SITE}torch/nn/parallel/distributed.py"),
    "deepspeed": ("RuntimeError", f"{SITE}deepspeed/comm/torch.py", f"{SITE}torch/distributed/distributed_c10d.py"),
    "gloo": ("RuntimeError: [/x/gloo/transport/tcp/pair.cc:553]", "/home/u/proj/train.py"),
}
LOADERS = {
    "pin memory": ("ConnectionResetError", f"{SITE}torch/utils/data/_utils/pin_memory.py", f"{STANDARD}threading.py"),
    "connection": ("ConnectionResetError", f"{STANDARD}multiprocessing/connection.py"),
    "manager": (
        "BrokenPipeError",
        f"{STANDARD}multiprocessing/managers.py",
        f"{STANDARD}multiprocessing/connection.py",
    ),
}
WORDS = (
    *("Connection reset by peer", "Connection refused", "Broken pipe", "[Errno 104] Connection reset by peer"),
    *("Connection closed by peer", "('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))"),
)


def traceback(raised: str, words: str, *files: str) -> str:
    frames = "".join(f'  File "{path}", line 7, in f\n    f()\n' for path in ("/home/u/proj/train.py", *files))
    return f"Traceback (most recent call last):\n{frames}{raised}: {words}\n"


def of_one(text: str, **more: Any) -> Diagnosis:
    return diagnose_nodes(node(0, [process("failed", rank(0, 1))], [log(0, text)], **more))


@pytest.mark.parametrize(("client", "words"), [*itertools.product(CLIENTS, WORDS)])
def test_lost_connection_of_a_client_is_not_a_lost_rank(client: str, words: str) -> None:
    raised, *files = CLIENTS[client]
    text = traceback(raised, words, *files)
    found = of_one(text)
    assert (found.cause.kind, found.cause.name) == (Kind.NETWORK, "service-lost")
    late = node(1, [process("failed", rank(1, 1, 1062.0))], [log(1, traceback("IndexError", "x"), 1062.0)])
    both = diagnose_nodes(node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, text, 1060.0)]), late)
    assert (both.first and both.first.rank) == 0


LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
SOCKET_ERRORS = (
    *("ConnectionResetError: [Errno 104] Connection reset by peer", "TimeoutError: [Errno 110] Connection timed out"),
    *("socket.gaierror: [Errno -3] Temporary failure in name resolution", "BrokenPipeError: [Errno 32] Broken pipe"),
    *("ssl.SSLEOFError: EOF occurred in violation of protocol (_ssl.c:1000)", "socket.timeout: The read timed out"),
)


@pytest.mark.parametrize(("client", "error"), [*itertools.product(CLIENTS, SOCKET_ERRORS)])
@pytest.mark.parametrize("link", LINKS)
def test_client_speaks_for_the_error_of_its_socket(client: str, error: str, link: str) -> None:
    raised, *files = CLIENTS[client]
    inner = traceback(*error.split(": ", 1), f"{STANDARD}http/client.py", f"{STANDARD}socket.py")
    middle = traceback("urllib3.exceptions.MaxRetryError", "HTTPSConnectionPool(host='x')", f"{SITE}urllib3/util/r.py")
    outer = traceback(raised, f"cannot go on: {error}", *files)
    found = of_one(f"\n{link}\n\n".join((inner, middle, outer)))
    assert (found.cause.kind, found.cause.name, found.cause.is_symptom) == (Kind.NETWORK, "service-lost", False)


@pytest.mark.parametrize(("speaker", "words"), [*itertools.product(OWN, WORDS[:5])])
def test_lost_connection_of_the_job_is_a_symptom(speaker: str, words: str) -> None:
    raised, *files = OWN[speaker]
    text = traceback(raised, words, *files)
    assert of_one(text).cause.name == "connection-lost"
    late = node(1, [process("failed", rank(1, 1, 1062.0))], [log(1, traceback("IndexError", "x"), 1062.0)])
    both = diagnose_nodes(node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, text, 1060.0)]), late)
    assert (both.first and both.first.rank, both.cause.name) == (1, "exception")


@pytest.mark.parametrize(("loader", "words"), [*itertools.product(LOADERS, WORDS)])
def test_lost_connection_to_a_loader_is_no_lost_rank(loader: str, words: str) -> None:
    raised, *files = LOADERS[loader]
    assert of_one(traceback(raised, words, *files)).cause.name == "worker-lost"


@pytest.mark.parametrize("words", ["the group was torn down", "work 17 is void", "error -3"])
@pytest.mark.parametrize("speaker", ["all_reduce", "DDP", "deepspeed"])
def test_unknown_words_from_torch_distributed_weigh_less_than_own_code(speaker: str, words: str) -> None:
    raised, *files = OWN[speaker]
    lost = node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, traceback(raised, words, *files), 1060.0)])
    own = node(1, [process("failed", rank(1, 1, 1062.0))], [log(1, traceback("IndexError", "x"), 1062.0)])
    found = diagnose_nodes(lost, own)
    assert found.first
    assert found.first.rank == 1


# ---- the node is blamed only if another fact of it agrees

HEALTHY = [{"path": path, "free": 10**11, "size": 10**12, "free_files": 10**6} for path in ("/jobs", "/home/u", "/tmp")]
ERRORS = (
    *("[Errno 28] No space left on device", "[Errno 30] Read-only file system", "[Errno 116] Stale file handle"),
    *(
        "[Errno 107] Transport endpoint is not connected",
        "[Errno 5] Input/output error",
        "[Errno 122] Disk quota exceeded",
    ),
    *("[Errno 28] inotify watch limit reached", "[Errno 37] No locks available", "[Errno 24] Too many open files"),
    *("[Errno 13] Permission denied", "[Errno 12] Cannot allocate memory", "[Errno 98] Address already in use"),
)
PLACES = ("", ": '/mlruns'", ": '/home/u/ckpt/x.pt'", ": '/scratch/tmp/y'", ": 'relative.bin'")


@pytest.mark.parametrize(("error", "place"), [*itertools.product(ERRORS, PLACES)])
def test_errno_alone_puts_no_node_on_the_list(error: str, place: str) -> None:
    found = of_one(traceback("OSError", error + place, f"{STANDARD}os.py"), disks=HEALTHY)
    assert found.bad_nodes == ()
    assert found.cause.kind is not Kind.NODE
    assert found.cause.name != "disk-full" or found.cause.kind is Kind.SCRIPT


@pytest.mark.parametrize("place", ["", ": '/home/u/ckpt/x.pt'"])
@pytest.mark.parametrize("full", [{"free": 0}, {"free_files": 0}])
def test_full_disk_is_the_node_s_if_it_is_full(place: str, full: dict[str, int]) -> None:
    disks = [{**disk, **(full if disk["path"] == "/home/u" else {})} for disk in HEALTHY]
    found = of_one(traceback("OSError", f"[Errno 28] No space left on device{place}"), disks=disks)
    assert (found.cause.kind, found.bad_nodes) == (Kind.NODE, ("node1",))


def test_disk_that_is_full_on_all_nodes_is_no_fault_of_a_node() -> None:
    full = [{**disk, "free": 0} for disk in HEALTHY]
    text = traceback("OSError", "[Errno 28] No space left on device: '/home/u/ckpt/x.pt'")
    nodes = [
        node(0, [process("failed", rank(0, -15, 1061.0))], disks=full),
        node(1, [process("failed", rank(1, 1, 1060.0))], [log(1, text)], disks=full),
    ]
    found = diagnose_nodes(*nodes)
    assert (found.cause.name, found.bad_nodes) == ("disk-full", ())
    assert found.cause.words.endswith("is full on other nodes too")


def test_file_server_that_no_node_reaches_is_no_fault_of_a_node() -> None:
    kernel = {"lines": [[1059.0, "nfs: server fs1 not responding, still trying"]], "unread": ""}
    text = traceback("OSError", "[Errno 116] Stale file handle: '/home/u/x'")
    nodes = [
        node(0, [process("failed", rank(0, -15, 1061.0))], kernel=kernel),
        node(1, [process("failed", rank(1, 1, 1060.0))], [log(1, text)], kernel=kernel),
    ]
    assert diagnose_nodes(*nodes).bad_nodes == ()
    assert diagnose_nodes(node(0, [process("failed", rank(0, -15, 1061.0))]), nodes[1]).bad_nodes == ("node2",)


def test_sick_file_system_is_the_node_s_if_the_kernel_says_so() -> None:
    kernel = {
        "lines": [[1059.0, "EXT4-fs error (device sda1): ext4_find_entry: reading directory lblock 0"]],
        "unread": "",
    }
    found = of_one(traceback("OSError", "[Errno 30] Read-only file system: '/home/u/x'"), kernel=kernel, disks=HEALTHY)
    assert (found.cause.kind, found.bad_nodes) == (Kind.NODE, ("node1",))


KERNEL = (
    "XFS (nvme0n1p1): Corruption of in-memory data (0x8) detected at xfs_defer_finish. Shutting down filesystem.",
    "XFS (sdb1): metadata I/O error in xfs_da_read_buf at daddr 0x1 len 8 error 5",
    "nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10",
    "nvme0n1: I/O error, dev nvme0n1, sector 812 op 0x0:(READ) flags 0x80700",
    "blk_update_request: I/O error, dev sda, sector 812 op 0x0:(READ)",
    "blk_update_request: critical medium error, dev sdb, sector 812",
    "EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm python3: reading directory lblock 0",
    "JBD2: Aborting journal on device sda1-8.",
    "BTRFS info (device sdb): forced readonly",
    "md/raid1:md0: Disk failure on sdb1, disabling device.",
    "LustreError: 167-0: lus-OST0012-osc-ffff9c: This client was evicted by lus-OST0012; in progress operations fail.",
    "libceph: osd3 (1)10.0.0.9:6801 connection lost",
)
GONE = (
    "[Errno 5] Input/output error",
    "[Errno 30] Schreibgesch\u00fctztes Dateisystem",
    "[Errno 108] x",
    "[Errno 117] y",
)


@pytest.mark.parametrize(("said", "error"), [*itertools.product(KERNEL, GONE)])
def test_every_failing_disk_that_a_kernel_reports_is_collected_and_confirms(said: str, error: str) -> None:
    assert kernel_log._kept([[1059.0, said]], 1000.0)
    text = traceback("OSError", f"{error}: '/home/u/x'")
    sick = node(1, [process("failed", rank(1, 1))], [log(1, text)], kernel={"lines": [[1059.0, said]], "unread": ""})
    found = diagnose_nodes(node(0, [process("failed", rank(0, -15, 1061.0))]), sick)
    assert found.bad_nodes == ("node2",)
    assert said[:60] in found.cause.words


@pytest.mark.parametrize("code", [-7, -9, 135])
@pytest.mark.parametrize(
    "said",
    [
        "mce: Uncorrected hardware memory error in user-access at 3f2a4c8040",
        "Memory failure: 0x3f2a4c: Sending SIGBUS to python3:812 due to hardware memory corruption",
    ],
)
def test_faulty_memory_of_a_machine_is_the_node_s(said: str, code: int) -> None:
    assert kernel_log._kept([[1059.0, said]], 1000.0)
    kernel = {"lines": [[1059.0, said]], "unread": ""}
    found = diagnose_nodes(node(0, [process("failed", rank(0, code))], [log(0, "step 1\n")], kernel=kernel))
    assert (found.cause.kind, found.cause.name) == (Kind.NODE, "memory-faulty"), found.cause


def test_missing_gpu_is_the_node_s_if_other_nodes_have_some() -> None:
    text = traceback("RuntimeError", "No CUDA GPUs are available")
    nodes = [
        node(0, [process("failed", rank(0, -15, 1061.0))], gpus=8),
        node(1, [process("failed", rank(1, 1, 1060.0))], [log(1, text)], gpus=0),
    ]
    assert diagnose_nodes(*nodes).bad_nodes == ("node2",)
    alike = [node(at, [process("failed", rank(at, 1, 1060.0))], [log(at, text)], gpus=0) for at in (0, 1)]
    assert diagnose_nodes(*alike).bad_nodes == ()


# ---- the table


@pytest.mark.parametrize("index", range(len(SIGNATURES)))
def test_example_of_every_signature_is_recognised_by_it(index: int) -> None:
    signature = SIGNATURES[index]
    match = find(signature.example, signature.spoken_by[0] if signature.spoken_by else None)
    assert match
    assert match.signature is signature
    assert "{" not in match.cause.words
    assert signature.fix

"""Determine the source of an exception or a log line: equal messages from different sources have different meanings."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence

from torchfab.why.frames import INSTALLED, STANDARD
from torchfab.why.tracebacks import Member


class Speaker(enum.Enum):
    """The source of an exception or a log line."""

    SCRIPT = "the script, or a library that it calls"
    DISTRIBUTED = "torch.distributed, gloo or the store"
    COMMUNICATION = "NCCL, RCCL, HCCL or MPI"
    CLIENT = "a client of another service: HTTP, object storage, a database, an experiment tracker"
    WORKER = "a data loader, or a connection between processes of one rank"
    SUBPROCESS = "Python's subprocess: the program that it starts"
    SYSTEM = "the kernel, Slurm or the shell"


_CLIENTS = (
    *("requests", "urllib3", "httpx", "httpcore", "aiohttp", "h11", "anyio", "botocore", "boto3", "aiobotocore"),
    *("s3fs", "s3transfer", "gcsfs", "google", "grpc", "wandb", "mlflow", "comet_ml", "neptune", "clearml", "swanlab"),
    *("redis", "psycopg", "psycopg2", "asyncpg", "pymongo", "pymysql", "MySQLdb", "mysql", "sqlalchemy", "sqlite3"),
    *("kafka", "pika", "zmq", "websocket", "websockets", "paramiko", "huggingface_hub", "smart_open", "azure"),
    *("minio", "oss2", "elasticsearch", "openai", "kubernetes", "dns", "adlfs", "cloudpathlib", "modelscope"),
)
_CLIENT_CLASSES = re.compile(
    rf"^(?:(?:{'|'.join(_CLIENTS)})\.|(?:\w+\.)*(?:HfHubHTTPError|HTTPError|GatedRepoError|RepositoryNotFoundError"
    r"|LocalEntryNotFoundError|MaxRetryError|ProtocolError|NewConnectionError|EndpointConnectionError"
    r"|ClientConnectorError|ClientOSError|ServerDisconnectedError|IncompleteRead|ReadTimeoutError|CommError"
    r"|RemoteDisconnected|URLError|SSLError)\b)"
)
# A class of a library, named after what clients of services meet; not of those that connect ranks or processes.
_CLIENT_NAMES = re.compile(
    r"^(?!torch|multiprocessing|concurrent|asyncio|queue|subprocess|ray|builtins|zmq|deepspeed|horovod)\w+(?:\.\w+)*\."
    r"\w*(?:Connect|Connection|ConnectionFailed|Network|Transport|Http|HTTP|API|Service|Server|RateLimit|Unavailable"
    r"|Throttling|Proxy)\w*(?:Error|Exception|Timeout|Failed)\b|^(?:fsspec|pyarrow\.fs)\."
)
_CLIENT_LINE = re.compile(
    r"HTTPS?ConnectionPool|Retrying \(Retry|\bwandb: |requests\.exceptions|urllib3\.|botocore\.|aiohttp\.|httpx\.|grpc"
    r"|psycopg2?\.|redis\.|https?://"
)
# Clients that are written in Rust raise plain exceptions (hyper, tonic, reqwest).
_CLIENT_WORDS = re.compile(
    r"\b(?:tcp connect error|error sending request|error trying to connect|transport error|dns error)\b"
)
_DISTRIBUTED_CLASSES = re.compile(
    r"^(?:torch\.distributed\.|horovod\.common\.exceptions\.|mpi4py\.MPI\.|(?:\w+\.)*Dist(?:Backend|Network|Store)?Error\b)"
)
_DISTRIBUTED_WORDS = re.compile(
    r"[/\\]gloo[/\\]|\bgloo\b|ProcessGroup(?:NCCL|Gloo|MPI|Wrapper|XCCL)|TCPStore|\[c10d\]|\bc10d|Watchdog caught"
    r"|connectFullMesh|store->get|socket\.cpp"
)
_COMMUNICATION_WORDS = re.compile(
    r"\bNCCL\b|\bnccl[A-Z]\w+|\bRCCL\b|\bHCCL\b|\bHccl\w+|\boneCCL\b|\bUCX\b|NET/|/nvshmem/"
)
_DISTRIBUTED_FILES = re.compile(
    r"/torch/(?:distributed/(?!fsdp|tensor|checkpoint|pipelin|algorithms|optim|_composable)|_C/_distributed_c10d"
    r"|nn/parallel/distributed\.py)|/deepspeed/(?:comm|runtime/comm)/|/torch/distributed/tensor/parallel/_utils"
)
_USAGE = (
    "ValueError",
    "TypeError",
    "AssertionError",
    "AttributeError",
    "KeyError",
    "NotImplementedError",
    "ImportError",
)
_WORKER_FILES = re.compile(
    r"[/\\]multiprocessing[/\\]|/torch/(?:utils/data|multiprocessing)/|[/\\]concurrent[/\\]futures[/\\]"
)
_SUBPROCESS_FILES = re.compile(r"[/\\]subprocess\.py$")
_SYSTEM_LINE = re.compile(
    r"^(?:srun|slurmstepd|kernel|bash|sh|\S+\.sh): |line \d+:\s+\d+ (?:Killed|Aborted|Segm|Bus)"
    r"|^=>> PBS: |^TERM_[A-Z_]+: |systemd-oomd|^job \S+ exceeded (?:hard|soft) "
)


def speaker_of(members: Sequence[Member]) -> Speaker:
    """Return the source of the exceptions of a traceback.

    A client that wraps a socket error is the source of the whole chain.

    Parameters
    ----------
    members : sequence of Member
        One chain, the cause first.

    Returns
    -------
    Speaker
        SCRIPT if neither classes, messages nor frames indicate another source.
    """
    found = [_speaker_of_one(member) for member in members]
    if Speaker.CLIENT in found:
        return Speaker.CLIENT
    return found[0] if found else Speaker.SCRIPT


def _speaker_of_one(member: Member) -> Speaker:
    if _CLIENT_CLASSES.match(member.exception) or _CLIENT_NAMES.match(member.exception):
        return Speaker.CLIENT
    by_frames = _speaker_of_frames(member)
    if by_frames is Speaker.CLIENT:
        return by_frames
    if _DISTRIBUTED_CLASSES.match(member.exception) or _DISTRIBUTED_WORDS.search(member.exception):
        return Speaker.DISTRIBUTED
    if _COMMUNICATION_WORDS.search(member.exception):
        return Speaker.COMMUNICATION
    return Speaker.CLIENT if _CLIENT_WORDS.search(member.first_line) else by_frames


def _speaker_of_frames(member: Member) -> Speaker:
    standard = Speaker.SCRIPT
    for path, _ in reversed(member.calls):
        plain = path.replace("\\", "/")
        if _DISTRIBUTED_FILES.search(plain):
            return Speaker.SCRIPT if member.name in _USAGE else Speaker.DISTRIBUTED
        if _WORKER_FILES.search(plain):
            return Speaker.WORKER
        if _SUBPROCESS_FILES.search(plain):
            standard = Speaker.SUBPROCESS
            continue
        if STANDARD.search(plain) and not INSTALLED.search(plain):
            continue
        installed = INSTALLED.search(plain)
        if installed and installed["package"] in _CLIENTS:
            return Speaker.CLIENT
        return standard
    return standard


def speaker_of_line(line: str) -> Speaker:
    """Return the source of a log line.

    Parameters
    ----------
    line : str
        The line.

    Returns
    -------
    Speaker
        SCRIPT if its text indicates no other source.
    """
    if _SYSTEM_LINE.search(line):
        return Speaker.SYSTEM
    if _DISTRIBUTED_WORDS.search(line):
        return Speaker.DISTRIBUTED
    if _COMMUNICATION_WORDS.search(line):
        return Speaker.COMMUNICATION
    return Speaker.CLIENT if _CLIENT_LINE.search(line) else Speaker.SCRIPT

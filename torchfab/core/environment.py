"""Environment dictionaries: what is forwarded from the launch machine, what torch.distributed needs, what is secret."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torchfab.core.errors import UsageError

SECRET_PATTERNS = ("*TOKEN*", "*KEY*", "*SECRET*", "*PASSWORD*", "*PASSWD*", "*CREDENTIAL*")
JOB_ID, NODE_RANK = "TORCHFAB_JOB_ID", "TORCHFAB_NODE_RANK"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_secret(name: str) -> bool:
    """Say whether the value of an environment variable must never be shown or stored."""
    return any(fnmatchcase(name.upper(), pattern) for pattern in SECRET_PATTERNS)


def split_secrets(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the part of an environment that may be shown, and the part that may not."""
    shown = {name: value for name, value in env.items() if not is_secret(name)}
    return shown, {name: value for name, value in env.items() if is_secret(name)}


def forwarded(environ: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Return the variables of `environ` whose names match one of the patterns (`NCCL_*`), sorted by name.

    A name that a shell could not assign to (`BASH_FUNC_x%%`) is left out.
    """
    names = sorted(name for name in environ if _NAME.fullmatch(name))
    return {name: environ[name] for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def parse_flags(pairs: Sequence[str]) -> dict[str, str]:
    """Return the variables given as `--env K=V`.

    Raises
    ------
    UsageError
        One of them has no `=`, or a name that no environment variable can have.
    """
    env = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--env expects NAME=VALUE, got {pair!r}", f"--env {name}=VALUE")
        if not _NAME.fullmatch(name) or "\0" in value:
            raise UsageError(f"--env: {name!r} cannot name an environment variable")
        env[name] = value
    return env


def marks(job_id: str, node_rank: int) -> dict[str, str]:
    """Return what every process of a job carries, so that `stop` can find it wherever it went."""
    return {JOB_ID: job_id, NODE_RANK: str(node_rank)}


def threads(processes: int, gpus: int, cpus: int) -> dict[str, str]:
    """Return OMP_NUM_THREADS: 1 where GPUs do the work, else a fair share of the cores.

    Parameters
    ----------
    processes : int
        Ranks on the node.
    gpus, cpus : int
        GPUs and cores of the node; 0 cpus: not known.
    """
    share = 1 if gpus else max(1, cpus // max(1, processes))
    return {"OMP_NUM_THREADS": str(share)}


def rank_variables(
    rank: int, local_rank: int, world_size: int, local_world_size: int, master_addr: str, master_port: int
) -> dict[str, str]:
    """Return what `torch.distributed.init_process_group("env://")` reads, as torchrun sets it."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
    }


def visible_devices(gpus: Sequence[str]) -> dict[str, str]:
    """Return CUDA_VISIBLE_DEVICES for the named devices; nothing where none is named."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}

"""Environment variables of a job: forwarded ones, those that torch.distributed needs, and secret ones."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

from torchfab.core.errors import UsageError

SECRET_PATTERNS = ("*TOKEN*", "*KEY*", "*SECRET*", "*PASSWORD*", "*PASSWD*", "*CREDENTIAL*")
JOB_ID, NODE_RANK = "TORCHFAB_JOB_ID", "TORCHFAB_NODE_RANK"
# Variables that launchers and torchrun set for every process, with the flag that decides on the value, if any.
RESERVED = MappingProxyType(
    {
        **dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "NODE_RANK"), ""),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "it follows from --nproc-per-node and the hosts"),
        **dict.fromkeys(("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"), "it follows from the hosts"),
        "MASTER_ADDR": "give it with --master-addr",
        "MASTER_PORT": "give it with --port",
        "TORCHELASTIC_RUN_ID": "it follows from --name",
        "TORCHELASTIC_MAX_RESTARTS": "give it with --max-restarts",
        **dict.fromkeys(("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_ERROR_FILE"), ""),
        **dict.fromkeys((JOB_ID, NODE_RANK), ""),
    }
)
# Every flag of torchrun can be given as PET_<FLAG>, which would override the launcher's flags.
RESERVED_PREFIX = "PET_"
# Variables that often matter to training and are not forwarded: the launch prints those that are set here.
NOTEWORTHY = (
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH", "CC", "CXX", "MAX_JOBS", "XDG_CACHE_HOME", "DATA_DIR"),
    *("CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "CUDA_CACHE_*"),
    *("ROCM_*", "ROCR_*", "HIP_*", "TRITON_*", "NVTE_*", "XLA_*", "PJRT_*", "I_MPI_*", "TORCHELASTIC_*"),
    *(
        "AWS_ACCESS_*",
        "AWS_PROFILE",
        "S3_*",
        "AZURE_*",
        "GOOGLE_APPLICATION_*",
        "CLEARML_*",
        "AIM_*",
        "PL_*",
        "LIGHTNING_*",
        "VLLM_*",
    ),
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# NAME=value, setenv NAME value, set -gx NAME value: with a literal value.
_ASSIGNMENT = re.compile(
    r"(?:^|[\s;&|({])(?:setenv\s+|set\s+(?:-\S+\s+)+|(?=\w+=))([A-Za-z_]\w*)[=\s]\s*([^\s;&|]+)", re.MULTILINE
)
# TOKENIZERS_PARALLELISM=false, a path, a value that is read from elsewhere, or an empty value.
_NO_SECRET = re.compile(r"(true|false|yes|no|on|off|\d{0,3})$|[/~]|.*[$`(]", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Return whether the value of an environment variable must never be shown or stored.

    Parameters
    ----------
    name : str
        The variable's name.

    Returns
    -------
    bool
        True if the name matches one of `SECRET_PATTERNS`; case is ignored.
    """
    return any(fnmatchcase(name.upper(), pattern) for pattern in SECRET_PATTERNS)


def split_secrets(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split an environment by whether its values may be shown.

    Parameters
    ----------
    env : mapping of str to str
        The environment.

    Returns
    -------
    tuple of dict and dict
        The part that may be shown, and the secret part.
    """
    public = {name: value for name, value in env.items() if not is_secret(name)}
    return public, {name: value for name, value in env.items() if is_secret(name)}


def select_forwarded(environ: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Select the variables to forward from the launch machine.

    Names that a shell cannot assign to (`BASH_FUNC_x%%`), and those that launchers set, are left out.

    Parameters
    ----------
    environ : mapping of str to str
        The environment of the launch machine.
    patterns : sequence of str
        Patterns of names: `NCCL_*`.

    Returns
    -------
    dict of str to str
        Sorted by name.
    """
    names = sorted(name for name in environ if _NAME.fullmatch(name) and not is_reserved(name))
    return {name: environ[name] for name in names if _matches(name, patterns)}


def not_forwarded(environ: Mapping[str, str], given: Container[str]) -> list[str]:
    """Return the names of variables of the launch machine that may matter to training and are not forwarded.

    Parameters
    ----------
    environ : mapping of str to str
        The environment of the launch machine.
    given : container of str
        Names of the variables that the job has.

    Returns
    -------
    list of str
        Sorted; those that match one of `NOTEWORTHY`.
    """
    return sorted(
        name for name in environ if name not in given and not is_reserved(name) and _matches(name, NOTEWORTHY)
    )


def is_reserved(name: str) -> bool:
    """Return whether launchers set a variable themselves.

    Parameters
    ----------
    name : str
        The variable's name.

    Returns
    -------
    bool
        True for `RANK` and the like, and for torchrun's `PET_*`.
    """
    return name in RESERVED or name.startswith(RESERVED_PREFIX)


def check_not_reserved(name: str, where: str) -> None:
    """Check that a variable is not one that launchers set themselves.

    Parameters
    ----------
    name : str
        The variable's name.
    where : str
        Where it was given, for the error.

    Raises
    ------
    UsageError
        The launchers set it.
    """
    if name.startswith(RESERVED_PREFIX):
        raise UsageError(f"{where}: {name} would override a flag of torchrun", "give the launcher's own flag instead")
    if name in RESERVED:
        raise UsageError(f"{where}: the launcher sets {name} for every process", RESERVED[name] or "leave it out")


_SECOND_NAME = re.compile(r"=.*?,\s*([A-Z][A-Z0-9_]*)=", re.DOTALL)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def parse_env_flags(pairs: Sequence[str], environ: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Parse the values of `--env`.

    Parameters
    ----------
    pairs : sequence of str
        Each `NAME=VALUE`, or `NAME` for the value in `environ`; the last one for a name wins.
    environ : mapping of str to str
        The environment of the launch machine. Default: empty.

    Returns
    -------
    dict of str to str
        The values by name.

    Raises
    ------
    UsageError
        A pair has no `=` and its name is not set, its name is not valid for an environment variable, or launchers set
        the variable themselves.
    """
    env = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals and name in environ:
            value = environ[name]
        elif not equals:
            raise UsageError(f"--env expects NAME=VALUE, got {pair!r}", f"--env {name}=VALUE")
        if not _NAME.fullmatch(name) or "\0" in value:
            raise UsageError(f"--env: {name!r} cannot name an environment variable")
        check_not_reserved(name, f"--env {name}")
        env[name] = value
    return env


def joined_pairs(pairs: Sequence[str]) -> list[str]:
    """Return notes on values of `--env` that seem to hold a second variable: `A=1,B=2`.

    Parameters
    ----------
    pairs : sequence of str
        The values of `--env`.

    Returns
    -------
    list of str
        One note per variable; values are not shown, as they may be secret.
    """
    found = ((pair.partition("=")[0], _SECOND_NAME.search(pair)) for pair in pairs)
    return [
        f"--env {name}: its value has a comma and {second[1]}= in it; to set two variables: "
        f"--env {name}=VALUE --env {second[1]}=VALUE"
        for name, second in found
        if second
    ]


def check_setup(text: str, where: str) -> str:
    """Check the commands of `--setup`.

    Parameters
    ----------
    text : str
        The commands.
    where : str
        Where they were given, for the error.

    Returns
    -------
    str
        The commands.

    Raises
    ------
    UsageError
        They assign a secret, which records and dry runs would show, or contain a NUL.
    """
    if "\0" in text:
        raise UsageError(f"{where} contains a NUL character", "write shell commands")
    for name, value in _ASSIGNMENT.findall(text):
        if is_secret(name) and not _NO_SECRET.match(value.strip("\"'")):
            fix = f"read the value there: {name}=$(cat FILE); or export {name} here, and give --env {name}"
            raise UsageError(f"{where} contains the value of {name}, which records and dry runs would show", fix)
    return text


def job_markers(job_id: str, node_rank: int) -> dict[str, str]:
    """Return the variables that mark every process of a job, so that `fab stop` finds it under any parent process.

    Parameters
    ----------
    job_id : str
        The job's id.
    node_rank : int
        The rank of the node, from 0.

    Returns
    -------
    dict of str to str
        TORCHFAB_JOB_ID and TORCHFAB_NODE_RANK.
    """
    return {JOB_ID: job_id, NODE_RANK: str(node_rank)}


def omp_threads(processes: int, gpus: int, cpus: int) -> dict[str, str]:
    """Return OMP_NUM_THREADS: 1 on nodes with GPUs, else an equal share of the cores.

    Parameters
    ----------
    processes : int
        Number of ranks on the node.
    gpus, cpus : int
        Number of GPUs and cores of the node; 0 cpus if unknown.

    Returns
    -------
    dict of str to str
        OMP_NUM_THREADS.
    """
    share = 1 if gpus else max(1, cpus // max(1, processes))
    return {"OMP_NUM_THREADS": str(share)}


def rank_variables(
    rank: int, local_rank: int, world_size: int, local_world_size: int, master_addr: str, master_port: int
) -> dict[str, str]:
    """Return the variables that `torch.distributed.init_process_group("env://")` reads, as torchrun sets them.

    Parameters
    ----------
    rank, local_rank : int
        The rank in the job, and on its node; from 0.
    world_size, local_world_size : int
        The number of ranks in the job, and on the node.
    master_addr, master_port : str, int
        The address of the rendezvous.

    Returns
    -------
    dict of str to str
        RANK, WORLD_SIZE, MASTER_ADDR and so on.
    """
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
    }


def visible_devices(gpus: Sequence[str]) -> dict[str, str]:
    """Return CUDA_VISIBLE_DEVICES.

    Parameters
    ----------
    gpus : sequence of str
        Devices, by index or UUID.

    Returns
    -------
    dict of str to str
        CUDA_VISIBLE_DEVICES; empty if no device is given.
    """
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}

"""Run a Python function on all ranks: pickle it, and unpickle the results of the ranks.

The function is sent with the launch, pickled by cloudpickle: a lambda or a function of `__main__` or of a notebook by
value, a function of a module by name, so that the nodes need the module. `remote/shims/call.py` is the script of the
launch and calls the function in each rank. Results are files of the job on the nodes; they are copied into the job's
record and unpickled there.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torchfab.core.command import PYTHON, Command
from torchfab.core.errors import FunctionError, JobFailedError, TorchfabError, UsageError
from torchfab.core.format import format_bytes
from torchfab.core.status import JobStatus
from torchfab.launchers.shims import source_of
from torchfab.records import Record
from torchfab.runtimes import tmux_call_results
from torchfab.runtimes.tmux_call_results import Outcome

MOST_CALL_BYTES = 16 * 2**20  # compressed: it is sent to all nodes with the request that starts the job
MAX_RESULT_MB = 1024.0
# Shown by `fab jobs` and `ps`: the comment names the function.
_CODE = """# {name}
import os, runpy
runpy.run_path(os.environ["TORCHFAB_FILES"] + "/call.py", run_name="torchfab_call")"""


def command_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], max_result_mb: float
) -> Command:
    """Return the command that calls a function in each rank.

    Parameters
    ----------
    function : callable
        The function.
    args, kwargs : sequence, Mapping
        Its arguments.
    max_result_mb : float
        The largest result of a rank, in MiB.

    Returns
    -------
    Command

    Raises
    ------
    UsageError
        The function or an argument cannot be pickled, or they are too large.
    """
    import cloudpickle

    try:
        pickled = cloudpickle.dumps((function, tuple(args), dict(kwargs)))
    except Exception as error:
        raise UsageError(
            f"{name_of(function)} or one of its arguments cannot be pickled: {type(error).__name__}: {error}",
            "open files and connections inside the function",
        ) from error
    text = base64.b64encode(zlib.compress(pickled, 6)).decode()
    if len(text) > MOST_CALL_BYTES:
        raise UsageError(
            f"{name_of(function)} and its arguments are {format_bytes(len(text))} when compressed, and at most "
            f"{format_bytes(MOST_CALL_BYTES)} can be sent with a launch",
            "put the data into a file that all nodes read, and give its path",
        )
    version = "{}.{}".format(*sys.version_info[:2])
    call = {"python": version, "path": _import_folders(), "limit": round(max_result_mb * 2**20)}
    files = {"call.py": source_of("call"), "call.json": json.dumps(call), "call.pickle": text, **_sources(cloudpickle)}
    words = (PYTHON, "-u", "-c", _CODE.format(name=f"{name_of(function)}(…)"))
    return Command(words, True, files=files, python_version=version)


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function.

    Parameters
    ----------
    function : callable
        The function, or any object that can be called.

    Returns
    -------
    str
        One word.
    """
    return str(getattr(function, "__name__", type(function).__name__)).split()[0]


def _import_folders() -> list[str]:
    """Return the folder of the running script, which may contain its modules, if it is below the current folder."""
    first, here = os.path.abspath(sys.path[0] or "."), os.getcwd()
    return [first] if first.startswith(here + os.sep) else []


def _sources(package: ModuleType) -> dict[str, str]:
    """Return the source of cloudpickle: only the version that pickled a value can unpickle it."""
    folder = Path(str(package.__file__)).parent
    return {f"cloudpickle/{path.name}": path.read_text(encoding="utf-8") for path in folder.glob("*.py")}


def results(record: Record, found: JobStatus, message: str) -> tuple[Any, ...]:
    """Return the values that a function returned on all ranks.

    Parameters
    ----------
    record : Record
        The job; it has ended.
    found : JobStatus
        Its final status.
    message : str
        Error message for a failure of the job without an exception of the function.

    Returns
    -------
    tuple of Any
        By rank.

    Raises
    ------
    FunctionError
        The function raised an exception, on the rank that failed first.
    JobFailedError
        The job failed otherwise: a rank was killed, a node was lost.
    TorchfabError
        A result cannot be fetched or unpickled.
    """
    if found.exit_code != 0:
        raise _failure(record, found) or JobFailedError(message, found.exit_code or 1)
    found_results = {
        rank: each for rank, each in tmux_call_results.outcomes(record).items() if "result" in each.of_rank.files
    }
    missing = set() if record.is_elastic else {*range(record.world_size)} - {*found_results}
    if missing:
        raise TorchfabError(f"job {record.name} succeeded, but rank {min(missing)} left no result")
    folder = _private_folder(record)
    try:
        paths = tmux_call_results.fetch(record, found_results, "result", folder)
        return tuple(_unpickled(paths[rank], found_results[rank]) for rank in sorted(paths))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _private_folder(record: Record) -> Path:
    """Make the folder for results in the job's record, which only this user can enter."""
    folder = record.folder / f"results-{os.getpid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _unpickled(path: Path, outcome: Outcome) -> Any:
    try:
        with path.open("rb") as file:
            return pickle.load(file)
    except Exception as error:
        raise TorchfabError(
            f"the result of rank {outcome.of_rank.rank} on {outcome.node.label} cannot be unpickled here: "
            f"{type(error).__name__}: {error}",
            "install the packages of its types here, or return plain values: numbers, texts, lists, dicts",
        ) from error


def _failure(record: Record, found: JobStatus) -> FunctionError | None:
    """Return the exception of the rank that failed first; None if it left none, or its node is unreachable."""
    try:
        failed = {rank: each for rank, each in tmux_call_results.outcomes(record).items() if each.of_rank.failure}
    except TorchfabError:
        return None
    first = found.first_failure
    if first is not None and first.rank is not None and first.rank not in failed:  # killed: others only followed
        return None
    chosen = failed[first.rank] if first is not None and first.rank is not None else _earliest(failed)
    if chosen is None:
        return None
    error = function_error(chosen)
    error.__cause__ = _exception(record, chosen)
    return error


def function_error(outcome: Outcome) -> FunctionError:
    """Return the error of a rank whose function has raised an exception.

    Parameters
    ----------
    outcome : Outcome
        An outcome with a failure.

    Returns
    -------
    FunctionError
    """
    raised = outcome.of_rank.failure
    assert raised is not None
    summary = f"{raised.type}: {raised.message.splitlines()[0]}" if raised.message.strip() else raised.type
    return FunctionError(outcome.of_rank.rank, outcome.node.label, summary, raised.traceback)


def _earliest(failed: Mapping[int, Outcome]) -> Outcome | None:
    return min(failed.values(), key=lambda each: each.of_rank.failure.time if each.of_rank.failure else 0, default=None)


def _exception(record: Record, chosen: Outcome) -> BaseException | None:
    """Return the exception itself; None if it could not be pickled there, or cannot be unpickled here."""
    if "failure" not in chosen.of_rank.files:
        return None
    folder = _private_folder(record)
    try:
        path = tmux_call_results.fetch(record, {chosen.of_rank.rank: chosen}, "failure", folder)[chosen.of_rank.rank]
        with path.open("rb") as file:
            found = pickle.load(file)
    except Exception:  # unpickling may raise anything; the traceback is known as text
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found if isinstance(found, BaseException) else None

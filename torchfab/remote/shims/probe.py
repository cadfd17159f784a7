"""The `sitecustomize` of the ranks: starts torch's worker server on a private Unix socket, and changes nothing else.

Python imports it at the start of every program that has its folder in PYTHONPATH. In a process that has RANK, it waits
for the import of torch.distributed. The server then reports, from a thread of its own without Python's lock, the
collectives of the flight recorder and the stacks of all threads. The node program queries it
(`torchfab.remote.job.recorder`). It does not listen on a network.

An error in it is one line on stderr; the script runs as without the probe. Standard library of Python 3.9 only.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
AWAITED = "torch.distributed.distributed_c10d"
NATIVE = "torch._C._distributed_c10d"
HANDLER, PROFILE_HANDLER = "torchfab", "torchfab_profile"
MAX_PATH_BYTES = 100  # the kernel takes 107
NCCL_DUMPS = "nccl-"
_kept: list[Any] = []  # the server ends with the process


def install() -> None:
    """Hide this folder from the program, run its own sitecustomize, and in a rank await torch.distributed."""
    try:
        sys.path[:] = [path for path in sys.path if not path or os.path.abspath(path) != HERE]
        if "RANK" in os.environ:
            _set_defaults()
            sys.meta_path.insert(0, AfterImport(AWAITED, lambda: guarded(start)))
    except Exception as error:
        report(error)
    run_next_sitecustomize()


def _set_defaults() -> None:
    """Enable the flight recorder, and let NCCL's watchdog write its dump into the job's folder."""
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in os.environ:  # the name before torch 2.9
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if "TORCH_FR_DUMP_TEMP_FILE" not in os.environ:
        os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", os.path.join(HERE, NCCL_DUMPS))


def run_next_sitecustomize() -> None:
    """Import the sitecustomize that Python would have found without this one; Python reports its errors."""
    from importlib import import_module

    own = sys.modules.pop("sitecustomize", None)
    try:
        import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        if own is not None:
            sys.modules.setdefault("sitecustomize", own)


class AfterImport:
    """A module finder that calls a function once, after the import of a given module.

    Parameters
    ----------
    name : str
        The module.
    then : callable
        Called when the module has been executed.
    """

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the other finders' spec of the awaited module; None for every other module.

        Parameters
        ----------
        name, path, target : Any
            As Python passes them to a finder.

        Returns
        -------
        ModuleSpec or None
        """
        if name != self.name:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((each for each in found if each is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._wrap(spec.loader)
        return spec

    def _wrap(self, loader: Any) -> None:
        exec_module = loader.exec_module

        def execute(module: ModuleType) -> None:
            loader.exec_module = exec_module
            exec_module(module)
            self.then()

        loader.exec_module = execute


def start() -> None:
    """Start the worker server of this rank, if torch has one."""
    native: Any = sys.modules.get(NATIVE)
    server = getattr(native, "_WorkerServer", None)
    if server is None or not os.environ.get("RANK", "").isdigit():
        return
    leave_environment()
    if hasattr(native, "_register_handler"):
        native._register_handler(HANDLER, answer)
        native._register_handler(PROFILE_HANDLER, answer_profile)
    name = f"{os.environ['RANK']}-{os.getpid()}"
    path = os.path.join(HERE, f"{name}.sock")
    remove(path)
    _kept.append(_quietly(server, path))
    os.chmod(path, 0o600)
    import atexit

    atexit.register(guarded, lambda: at_exit(name, os.getpid()), os.getpid())


def leave_environment() -> None:
    """Remove this folder from PYTHONPATH, because programs that the rank starts are not ranks."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(path for path in paths if path != HERE)
    if kept:
        os.environ["PYTHONPATH"] = kept
    else:
        os.environ.pop("PYTHONPATH", None)


def _quietly(server: Callable[[str], Any], path: str) -> Any:
    """Start the server without torch's warning about listening; shorten a long path by a descriptor of the folder."""
    folder = os.open(HERE, os.O_RDONLY)
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        return server(path if len(os.fsencode(path)) <= MAX_PATH_BYTES else short_path(folder, path))
    finally:
        os.dup2(stderr, 2)
        for fd in (folder, stderr, null):
            os.close(fd)


def short_path(folder: int, path: str) -> str:
    """Return a short path of a file in an open folder.

    Parameters
    ----------
    folder : int
        Descriptor of the folder.
    path : str
        Path of the file.

    Returns
    -------
    str
    """
    return f"/proc/self/fd/{folder}/{os.path.basename(path)}"


# ---- queries that the server cannot answer by itself


def answer(request: Any, response: Any) -> None:
    """Answer the node program: the process groups, and the frames of their running collectives.

    Parameters
    ----------
    request, response : object
        As the worker server passes them.
    """
    import json

    try:
        response.set_content(json.dumps({"groups": groups(), "frames": frames()}), "application/json")
    except Exception as error:  # an exception must not reach C++
        response.set_content(json.dumps({"problem": repr(error)}), "application/json")


def answer_profile(request: Any, response: Any) -> None:
    """Profile this rank, as `rank_profile.py` beside this file does; it is loaded when it is first asked.

    Parameters
    ----------
    request, response : object
        As the worker server gives them.
    """
    try:
        _profile().answer(request, response, os.path.join(HERE, f"{os.environ['RANK']}-{os.getpid()}.trace.json.gz"))
    except Exception as error:  # it must not reach C++
        response.set_content(
            f'{{"problem": "the profiler could not be loaded: {type(error).__name__}"}}', "application/json"
        )


def _profile() -> Any:
    from importlib import util

    if PROFILE_HANDLER not in sys.modules:
        spec = util.spec_from_file_location(PROFILE_HANDLER, os.path.join(HERE, "rank_profile.py"))
        assert spec is not None
        assert spec.loader is not None
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[PROFILE_HANDLER] = module
    return sys.modules[PROFILE_HANDLER]


def groups() -> dict[str, list[Any]]:
    """Return the process groups of this rank.

    Returns
    -------
    dict of str to list
        Description and ranks by the group's name.
    """
    world = getattr(sys.modules.get(AWAITED), "_world", None)
    found = dict(getattr(world, "pg_group_ranks", {}))
    return {group.group_name: [getattr(group, "group_desc", ""), sorted(ranks)] for group, ranks in found.items()}


def frames() -> dict[str, list[Any]]:
    """Return the frames of the calls of collectives that have not ended.

    torch imports torch._inductor to resolve frames, which would hold Python's lock for seconds: if the script has not
    imported it, no frames are returned.

    Returns
    -------
    dict of str to list
        Function, file, line of each frame, innermost first, by the number of the record.
    """
    if not hasattr(sys.modules.get("torch._inductor.codecache"), "PyCodeCache"):
        return {}
    import pickle

    native, found = sys.modules[NATIVE], {}
    for name in ("_dump_fr_trace", "_dump_nccl_trace"):
        if hasattr(native, name):
            for entry in pickle.loads(getattr(native, name)(True, True, True)).get("entries", ()):
                rows = [[frame["name"], frame["filename"], frame["line"]] for frame in entry.get("frames", ())]
                found[f"{entry['profiling_name'].partition(':')[0]} {entry['record_id']}"] = rows
    return found


def at_exit(name: str, pid: int) -> None:
    """Remove the socket; after an uncaught exception, write the collectives to a file.

    Parameters
    ----------
    name : str
        Name of the files, without suffix.
    pid : int
        This process.
    """
    remove(os.path.join(HERE, f"{name}.sock"))
    if PROFILE_HANDLER in sys.modules:
        sys.modules[PROFILE_HANDLER].end()
    native = sys.modules[NATIVE]
    if getattr(sys, "last_value", None) is None or not hasattr(native, "_dump_fr_trace_json"):
        return
    import json
    import time

    recorded = {"recorder": json.loads(native._dump_fr_trace_json(True, False)), "groups": groups()}
    record = {"rank": int(name.partition("-")[0]), "pid": pid, "time": time.time(), "stack": last_stack(), **recorded}
    path = os.path.join(HERE, f"{name}.json")
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.replace(f"{path}.new", path)


def last_stack() -> list[list[Any]]:
    """Return the frames of the exception that ended the program, the innermost first.

    Returns
    -------
    list of list
        Function, file, line.
    """
    import traceback

    found = traceback.extract_tb(sys.last_traceback)
    return [[frame.name, frame.filename, frame.lineno or 0] for frame in reversed(found)]


# ---- errors


def guarded(step: Callable[[], None], pid: int = 0) -> None:
    """Do a step; report an error of it as a line on stderr.

    Parameters
    ----------
    step : callable
        The step.
    pid : int
        The process that may do it; 0 for any. A forked process inherits its parent's exit handlers.
    """
    try:
        if pid in (0, os.getpid()):
            step()
    except Exception as error:
        report(error)


def report(error: Exception) -> None:
    """Report an error.

    Parameters
    ----------
    error : Exception
        The error.
    """
    try:
        os.write(2, f"torchfab: the probe of this rank does not work: {error!r}; --no-probe omits it\n".encode())
    except OSError:
        pass


def remove(path: str) -> None:
    """Remove a file, if it exists.

    Parameters
    ----------
    path : str
        The file.
    """
    try:
        os.unlink(path)
    except OSError:
        pass


if __name__ == "sitecustomize":
    install()

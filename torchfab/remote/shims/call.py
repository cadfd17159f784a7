"""One rank of a function call: unpickle the function, call it, and write its result or its failure to a file.

call.py      with TORCHFAB_FILES naming the folder of this file, and RANK its rank

call.json            `python`: the version of Python that pickled the function, as 3.11; `path`: folders for
                     sys.path; `limit`: the largest result, in bytes
call.pickle          function, args and kwargs, pickled by cloudpickle; base64
cloudpickle/         the version that pickled the function
result-<rank>.pickle the result
failure-<rank>.json  `time`, `type`, `message` and `traceback` of the exception
failure-<rank>.pickle    the exception itself, if it can be pickled
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import traceback
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, BinaryIO

HERE = os.path.dirname(os.path.abspath(__file__))


class TooLargeError(Exception):
    """A result is larger than the limit."""


class LimitedFile:
    """A file with a maximum size: results are sent over the network, and stored on the disks of both sides.

    Parameters
    ----------
    file : binary file
        The file to write to.
    limit : int
        Maximum size, in bytes.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.limit, self.size = file, limit, 0

    def write(self, data: Any) -> None:
        """Write bytes.

        Parameters
        ----------
        data : bytes-like
            The bytes.

        Raises
        ------
        TooLargeError
            The file would be larger than the limit.
        """
        self.size += memoryview(data).nbytes
        if self.size > self.limit:
            raise TooLargeError(
                f"the result is larger than {self.limit / 2**20:.0f} MiB; write it to a file, and return its path, or "
                "give max_result_mb"
            )
        self.file.write(data)


def main() -> None:
    """Call the function as the rank of this process."""
    rank = os.environ.get("RANK", "0")
    _remove(*(f"{kind}-{rank}.{suffix}" for kind in ("result", "failure") for suffix in ("pickle", "json")))
    with open(os.path.join(HERE, "call.json"), encoding="utf-8") as file:
        call = json.load(file)
    version = "{}.{}".format(*sys.version_info[:2])
    if version != call["python"]:  # the launch has checked it; torchfab may not have started this interpreter
        sys.exit(f"{sys.executable} is Python {version}, and the function was pickled by Python {call['python']}")
    cloudpickle = _load_cloudpickle()
    try:
        sys.path[1:1] = [path for path in call["path"] if path not in sys.path]
        with open(os.path.join(HERE, "call.pickle"), "rb") as file:
            function, args, kwargs = cloudpickle.loads(zlib.decompress(base64.b64decode(file.read())))
        _write_result(cloudpickle, function(*args, **kwargs), rank, call["limit"])
    except BaseException as error:
        _write_failure(cloudpickle, error, rank)
        raise


def _load_cloudpickle() -> ModuleType:
    """Import the version that pickled the function, whether or not another one is installed."""
    sys.path.insert(0, HERE)
    try:
        import cloudpickle
    finally:
        sys.path.remove(HERE)
    module: ModuleType = cloudpickle
    return module


def _write_result(cloudpickle: ModuleType, result: Any, rank: str, limit: int) -> None:
    path = os.path.join(HERE, f"result-{rank}.pickle")
    try:
        with open(path + ".new", "wb") as file:
            cloudpickle.dump(result, LimitedFile(file, limit))
        os.replace(path + ".new", path)
    except TooLargeError:
        raise
    except Exception as error:
        raise TypeError(f"the result, of type {type(result).__name__}, cannot be pickled: {error}") from error
    finally:
        _remove(f"result-{rank}.pickle.new")


def _write_failure(cloudpickle: ModuleType, error: BaseException, rank: str) -> None:
    """Write a description of a failure; its traceback begins in the function."""
    try:
        with open(os.path.join(HERE, f"failure-{rank}.pickle"), "wb") as file:
            cloudpickle.dump(error, file)
    except Exception:
        _remove(f"failure-{rank}.pickle")
    trace = error.__traceback__
    own = trace.tb_next if trace is not None and trace.tb_next is not None else trace
    text = "".join(traceback.format_exception(type(error), error, own))
    failure = {"time": time.time(), "type": type(error).__name__, "message": str(error), "traceback": text}
    path = os.path.join(HERE, f"failure-{rank}.json")
    with open(path + ".new", "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(failure, file)
    os.replace(path + ".new", path)


def _remove(*names: str) -> None:
    for name in names:
        try:
            os.unlink(os.path.join(HERE, name))
        except OSError:
            pass


if __name__ in ("__main__", "torchfab_call"):
    main()

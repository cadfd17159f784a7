"""Mishaps of Fabric and Invoke themselves, which they would meet with a traceback: told as plainly as our own errors.

They happen outside of any task (a file named on the command line, a FABRIC_* variable), where nobody but Python's own
`sys.excepthook` is asked.
"""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

from invoke.config import AmbiguousMergeError
from invoke.exceptions import UnknownFileType

from torchfab.errors import Interrupted, TorchfabError, UsageError


def tell_plainly() -> None:
    """Print such a mishap on stderr as an error with its fix; whatever else happens is shown as before."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, BrokenPipeError):  # `fab --help TASK | head`
            sys.stderr.close()
            return
        known = explain(error, trace)
        if known is None:
            before(kind, error, trace)
        else:
            print(f"error: {known}", file=sys.stderr)

    sys.excepthook = hook


def explain(error: BaseException, trace: TracebackType | None) -> TorchfabError | None:
    """Return what went wrong in plain words; None for what is no mishap that we know."""
    if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps one that comes while a class is made
        return Interrupted("interrupted")
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    names = [frame.f_code.co_name for frame in frames]
    if "load_shell_env" in names:
        variable = next((frame.f_locals["real_var"] for frame in frames if "real_var" in frame.f_locals), "FABRIC_*")
        return _variable(str(variable), error)
    if "load_ssh_config" in names:
        return UsageError(f"the ssh config cannot be read: {_words(error)}", "check the file that fab -S names")
    if isinstance(error, UnknownFileType) or "load_runtime" in names:
        return UsageError(f"the file that fab -f names cannot be read: {_words(error)}", "fab -f takes a .yaml file")
    if isinstance(error, AmbiguousMergeError):
        return UsageError(
            "settings do not fit together: where one file has a section (torchfab:), another has a single value",
            "compare the file of fab -f, or ~/.fabric.yaml, with fabric.yaml",
        )
    return None


def _variable(name: str, error: BaseException) -> TorchfabError:
    if isinstance(error, ValueError):
        return UsageError(f"the environment variable {name} is no number: {error}", f"unset {name}, or correct it")
    return UsageError(
        f"the environment variable {name} names a setting that is no single value",
        f"unset {name}; such a setting goes into fabric.yaml, or into a file for fab -f",
    )


def _words(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:100]} … {text[-99:]}"

"""Mishaps of Fabric and Invoke themselves, which they would meet with a traceback: told as plainly as our own errors.

They happen outside of any task (a file named on the command line, a FABRIC_* variable), where nobody but Python's own
`sys.excepthook` is asked.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from invoke.config import AmbiguousMergeError
from invoke.exceptions import UnknownFileType

from torchfab.core.errors import Interrupted, TorchfabError, UsageError


def install() -> None:
    """Print such a mishap on stderr as an error with its fix; whatever else happens is shown as before."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, BrokenPipeError):  # `fab --help TASK | head`
            sys.stderr.close()
            return
        known = explain(error, trace)
        if known is None:
            before(kind, error, trace)
            return
        print(f"error: {known}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(known.exit_code)  # a hook cannot change Python's own 1; no task has begun

    sys.excepthook = hook


def explain(error: BaseException, trace: TracebackType | None) -> TorchfabError | None:
    """Return what went wrong in plain words; None for what is no mishap that we know."""
    if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps one that comes while a class is made
        return Interrupted("interrupted")
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    names = [frame.f_code.co_name for frame in frames]
    if isinstance(error, ValueError) and names[-1:] == ["set_value"]:
        return _flag(frames[-1].f_locals)
    if "load_shell_env" in names:
        variable = next((frame.f_locals["real_var"] for frame in frames if "real_var" in frame.f_locals), "FABRIC_*")
        return _variable(str(variable), error)
    return _of_files(error, names) or _of_settings(error, frames)


def _of_settings(error: BaseException, frames: Sequence[FrameType]) -> TorchfabError | None:
    """Tell of a file of settings that Fabric has found by itself (fabric.yaml), and could not read or take over."""
    for frame in reversed(frames):
        seen, name = frame.f_locals, frame.f_code.co_name
        if name == "_load_file" and "filepath" in seen:
            return UsageError(f"{seen['filepath']} cannot be read: {_words(error)}", "correct it; it is a .yaml file")
        if name == "_merge_file":
            config, kind = seen["self"], seen["name"]
            path, data = getattr(config, f"_{kind}_path"), getattr(config, f"_{kind}")
            if not isinstance(data, Mapping):
                what = f"{path} holds no settings, got {data!r:.60}"
                return UsageError(what, "write sections: torchfab:, and below it names and values")
    return None


def _of_files(error: BaseException, names: Sequence[str]) -> TorchfabError | None:
    """Tell what is wrong with a file, by the names of the functions that were at it."""
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


def _flag(seen: Mapping[str, Any]) -> TorchfabError:
    """Tell of a flag of `fab` itself that stands behind a task; one before it is read before any file of ours."""
    name = str(seen["self"].name)
    dashes = "-" if len(name) == 1 else "--"
    return UsageError(f"fab {dashes}{name} takes a whole number, got {seen['value']!r}", "fab --help explains it")


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

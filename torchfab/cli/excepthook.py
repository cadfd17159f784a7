"""Turn known crashes of Fabric and Invoke into one-line errors.

They occur outside of any task (a file named on the command line, a FABRIC_* variable), where only `sys.excepthook` can
intercept them.
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

from torchfab.core import program_name
from torchfab.core.errors import Interrupted, TorchfabError, UsageError


def install() -> None:
    """Print a known crash on stderr as an error with its fix; any other exception gets the previous hook."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, BrokenPipeError):  # `fab --help TASK | head`
            sys.stderr.close()
            return
        known = explain(error, trace)
        if known is None:
            previous(kind, error, trace)
            return
        print(program_name.called().replace_in(f"error: {known}"), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(known.exit_code)  # a hook cannot change Python's exit code 1; no task has begun

    sys.excepthook = hook


def explain(error: BaseException, trace: TracebackType | None) -> TorchfabError | None:
    """Return a known crash as an error with its fix.

    Parameters
    ----------
    error : BaseException
        The uncaught exception.
    trace : TracebackType or None
        Its traceback.

    Returns
    -------
    TorchfabError or None
        None for an unknown crash.
    """
    if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps one that is raised while a class is created
        return Interrupted("interrupted")
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    names = [frame.f_code.co_name for frame in frames]
    if isinstance(error, ValueError) and names[-1:] == ["set_value"]:
        return _invalid_flag(frames[-1].f_locals)
    if "load_shell_env" in names:
        variable = next((frame.f_locals["real_var"] for frame in frames if "real_var" in frame.f_locals), "FABRIC_*")
        return _invalid_variable(str(variable), error)
    return _invalid_file(error, names) or _invalid_settings(error, frames)


def _invalid_settings(error: BaseException, frames: Sequence[FrameType]) -> TorchfabError | None:
    """Return the error for a settings file that Fabric finds itself (fabric.yaml) and cannot read or merge."""
    for frame in reversed(frames):
        seen, name = frame.f_locals, frame.f_code.co_name
        if name == "_load_file" and "filepath" in seen:
            return UsageError(f"{seen['filepath']} cannot be read: {_describe(error)}", "correct its YAML syntax")
        if name == "_merge_file":
            config, kind = seen["self"], seen["name"]
            path, data = getattr(config, f"_{kind}_path"), getattr(config, f"_{kind}")
            if not isinstance(data, Mapping):
                what = f"{path} is not a mapping of settings, got {data!r:.60}"
                return UsageError(what, "write a section torchfab: with names and values below it")
    return None


def _invalid_file(error: BaseException, names: Sequence[str]) -> TorchfabError | None:
    """Return the error for an unreadable file, found by the function names in the traceback."""
    if "load_ssh_config" in names:
        return UsageError(f"the ssh config cannot be read: {_describe(error)}", "check the file that fab -S names")
    if isinstance(error, UnknownFileType) or "load_runtime" in names:
        return UsageError(f"the file that fab -f names cannot be read: {_describe(error)}", "fab -f takes a .yaml file")
    if isinstance(error, AmbiguousMergeError):
        return UsageError(
            "settings files contradict each other: one has a section (torchfab:) where another has a single value",
            "compare the file of fab -f, or ~/.fabric.yaml, with fabric.yaml",
        )
    return None


def _invalid_flag(local_variables: Mapping[str, Any]) -> TorchfabError:
    """Return the error for a flag of `fab` itself after a task; flags before it are parsed before our files load."""
    name = str(local_variables["self"].name)
    dashes = "-" if len(name) == 1 else "--"
    return UsageError(f"fab {dashes}{name} takes a whole number, got {local_variables['value']!r}", "see fab --help")


def _invalid_variable(name: str, error: BaseException) -> TorchfabError:
    if isinstance(error, ValueError):
        return UsageError(f"the environment variable {name} is not a number: {error}", f"unset {name}, or correct it")
    return UsageError(
        f"the environment variable {name} is for a setting that is not a single value",
        f"unset {name}; such a setting goes into fabric.yaml, or into a file for fab -f",
    )


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:100]} … {text[-99:]}"

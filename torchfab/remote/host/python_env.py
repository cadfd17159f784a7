"""The training interpreter of a node and the versions of its packages, without importing torch, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess

from torchfab.remote.host import environment_marker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# torch/version.py holds the versions that torch reports, and needs no import; NCCL is a package of its own.
_QUERY = r"""
import ast, importlib.metadata as m, importlib.util as u, json, os, re, sys
def version(*names):
    for name in names:
        try: return m.version(name) or ""
        except Exception: pass
    return ""
found = {"python": ".".join(map(str, sys.version_info[:3])), "path": sys.executable, "torch": "", "cuda": ""}
try: spec = u.find_spec("torch")
except Exception: spec = None
if spec is not None:
    found["torch"] = version("torch") or "?"
    try:
        text = open(os.path.join(os.path.dirname(spec.origin), "version.py")).read()
        for name, key in (("__version__", "torch"), ("hip", "cuda"), ("cuda", "cuda")):
            match = re.search(r"^%s(?:: [^=]+)? = (.+)$" % name, text, re.M)
            value = ast.literal_eval(match[1]) if match else None
            if value: found[key] = ("ROCm " if name == "hip" else "") + str(value)
    except Exception: pass
found["nccl"] = version("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")
print("\n" + json.dumps(found))
"""


def query(
    python: str, workdir: str, python_path: str | None, timeout_s: float, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Query an interpreter for its version and those of torch, CUDA and NCCL.

    Parameters
    ----------
    python : str
        The interpreter.
    workdir : str
        The directory to run it in, if it exists.
    python_path : str, optional
        PYTHONPATH of the job.
    timeout_s : float
        Time limit in seconds.
    environ : mapping of str to str
        The environment to run it in.

    Returns
    -------
    dict
        `python`, `path`, `torch`, `cuda`, `nccl` (empty if not installed), `packages` (see `environment_marker`); or
        `problem`.
    """
    extra = {"PYTHONPATH": python_path} if python_path else {}
    try:
        done = subprocess.run(
            [python, "-c", _QUERY],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd=workdir if os.path.isdir(workdir) else None,
            env={**environ, **extra},
        )
        return {**json.loads(done.stdout.splitlines()[-1]), "packages": environment_marker.read_marker(python)}
    except FileNotFoundError:
        return {"problem": f"there is no {python}"}
    except subprocess.TimeoutExpired:
        return {"problem": f"{python} did not answer within {timeout_s:g} s"}
    except OSError as error:
        return {"problem": f"{python} does not run: {error.strerror}"}
    except (ValueError, IndexError):
        tail = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        return {"problem": f"{python} does not run: {tail[0][:200]}"}

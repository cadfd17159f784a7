"""Submit a job to Slurm: check its requirements, create its folder, run sbatch; or roll the submission back."""

from __future__ import annotations

import os
import shutil
import time

from torchfab.remote import job_files
from torchfab.remote.job import redaction
from torchfab.remote.slurm import job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def submit(request: dict[str, Any], bundle: str) -> dict[str, Any]:
    """Create the job's folder and submit its file with sbatch.

    Parameters
    ----------
    request : dict
        `folder`, `text` (the sbatch file), `options` (names of the options that it sets), `spec`, `secrets`, `workdir`,
        `script` (a path or None), `python` (empty: do not check the interpreter), `timeout_s`.
    bundle : str
        Source of node.py.

    Returns
    -------
    dict
        `slurm_id`, or `problems`; after problems, no folder and no job are left.
    """
    problems = _check(request)
    if problems:
        return {"problems": problems}
    try:
        _make_folder(request, bundle)
        return {"slurm_id": _sbatch(request)}
    except OSError as error:
        what = f"cannot write {request['folder']}: {error.strerror or error}"
        fix = "free space, check permissions, or set node_dir (fab config) to a folder that all nodes share"
    except job.SlurmError as error:
        what, fix = str(error), job.suggest_fix(str(error))
    shutil.rmtree(request["folder"], ignore_errors=True)
    return {"problems": [{"what": what, "fix": fix}]}


def _check(request: dict[str, Any]) -> list[dict[str, str]]:
    """Check the requirements of the nodes here, so that a job does not fail after days in the queue."""
    if shutil.which("sbatch") is None:
        fix = "install Slurm's client, or name a host that has it with --login user@host"
        return [{"what": "there is no sbatch here", "fix": fix}]
    conf = os.environ.get("SLURM_CONF", "")
    if conf and not os.path.isfile(conf):  # sbatch would keep trying for a minute
        fix = "set SLURM_CONF to the cluster's slurm.conf, or name a host of the cluster with --login user@host"
        return [{"what": f"SLURM_CONF names {conf}, and there is no such file", "fix": fix}]
    workdir, python = request["workdir"], request["python"]
    if not os.path.isdir(workdir):
        fix = "name a directory that all nodes share with --workdir"
        return [{"what": f"the working directory {workdir} does not exist", "fix": fix}]
    script = os.path.join(workdir, request["script"] or "")
    problems = []
    if request["script"] and not os.path.isfile(script):
        problems.append(
            {"what": f"the script {script} does not exist", "fix": "copy your code there, or give --workdir"}
        )
    if python and shutil.which(os.path.join(workdir, python) if "/" in python else python) is None:
        fix = "give an interpreter that exists on every node with --python"
        problems.append({"what": f"there is no {python}", "fix": fix})
    return problems


def _make_folder(request: dict[str, Any], bundle: str) -> None:
    folder = request["folder"]
    job_files.make_private(os.path.dirname(folder))
    ignore = os.path.join(os.path.dirname(os.path.dirname(folder)), ".gitignore")
    if not os.path.exists(ignore):  # the folder may be inside the user's working copy
        job_files.write_text(ignore, "*\n")
    os.mkdir(folder, 0o700)
    job_files.write_text(os.path.join(folder, job_files.BUNDLE), bundle)
    job_files.write_json(os.path.join(folder, job.SPEC), request["spec"])
    redaction.write(folder, request["secrets"], request.get("mask_key", ""))
    job_files.write_text(os.path.join(folder, job.FILE), request["text"])


def _sbatch(request: dict[str, Any]) -> str:
    """Submit the file; return Slurm's id of the job. Secrets are in sbatch's environment, which ps does not show."""
    # SBATCH_... variables are a user's defaults, but sbatch gives them precedence over the file.
    overriding = {f"SBATCH_{name.upper().replace('-', '_')}" for name in request["options"]} | {"SBATCH_TIMELIMIT"}
    overriding -= set() if "time" in request["options"] else {"SBATCH_TIMELIMIT"}
    env = dict.fromkeys(overriding & set(os.environ), "")
    for name in env:
        del os.environ[name]
    path = os.path.join(request["folder"], job.FILE)
    out = job.run("sbatch", "--parsable", "--export=ALL", path, timeout_s=request["timeout_s"], env=request["secrets"])
    return out.strip().splitlines()[-1].partition(";")[0]


def rollback(request: dict[str, Any], slurm_id: str) -> None:
    """Cancel a job whose submission was not committed, and remove its folder.

    Parameters
    ----------
    request : dict
        `folder`.
    slurm_id : str
        Id of the job in Slurm.
    """
    try:
        job.run("scancel", slurm_id)
        job.await_end({"slurm_id": slurm_id}, time.time() + 15)
    except job.SlurmError:
        pass
    job.forget(request)

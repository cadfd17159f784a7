"""Convert launch files of other tools to command lines of fab, and list the parts that are not carried over.

    draft = importers.read(text, "train.slurm")
    print(render(draft, "train.slurm"))

All functions are pure; a script is read, never run.
"""

from __future__ import annotations

import re
from typing import Any

from torchfab.core.errors import InventoryError, UsageError
from torchfab.core.hostfiles import documents as host_documents
from torchfab.core.hostfiles.dialect import Source
from torchfab.core.hostfiles.structured import load
from torchfab.importers import accelerate_config, manifests, ray_cluster, scripts
from torchfab.importers.draft import Draft, clean

KINDS = (
    "a batch script of Slurm, LSF or PBS, a shell script, a configuration of accelerate or DeepSpeed, a cluster file "
    "of Ray, or a PyTorchJob, TrainJob, JobSet or Job of Kubernetes"
)
_TITLE = re.compile(r"---.*|[A-Za-z_][\w.-]*:(\s.*)?")
_KNOWN_KEY = re.compile(r"^(apiVersion|kind|compute_environment|num_machines|cluster_name):", re.MULTILINE)
_DEEPSPEED_KEYS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "zero_optimization",
    "gradient_accumulation_steps",
}


def read(text: str, name: str) -> Draft:
    """Convert a launch file to a command line.

    Parameters
    ----------
    text : str
        The text of the file.
    name : str
        The name of the file, for messages.

    Returns
    -------
    Draft
        The command line, and the parts of the file that it does not represent.

    Raises
    ------
    UsageError
        The file is of a kind that cannot be imported, or starts nothing.
    """
    text = clean(text)
    source = Source(text, name)
    if text.startswith("#!") or not _is_document(text, source):
        return _script(text, name)
    try:
        values = [_load(part, text, name) for part in text.split("\n---\n")]
    except InventoryError as error:
        raise UsageError(error.message, "correct the file") from None
    kinds = [f"the kind {value['kind']} of Kubernetes" for value in values if _is_other_manifest(value)]
    found = [draft for value in values if (draft := _document(value, name)) is not None]
    if not found:
        what = f"{' and '.join(kinds)} cannot be imported" if kinds else "an unknown kind of JSON or YAML document"
        raise UsageError(f"{name}: {what}", f"fab import reads {KINDS}")
    first, *others = sorted(found, key=lambda draft: not draft.script)
    for title in (*kinds, *(other.title for other in others)):
        first.skip(0, title, "another document of the file: fab launches one job")
    return first


def _is_document(text: str, source: Source) -> bool:
    if host_documents.is_document(source):
        return True
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return bool(_TITLE.fullmatch(next(lines, ""))) and bool(_KNOWN_KEY.search(text))


def _script(text: str, name: str) -> Draft:
    try:
        draft = scripts.read(text)
    except UsageError as error:
        raise UsageError(f"{name}:{error.message}", error.fix) from None
    if not draft.script:
        raise UsageError(
            f"{name}: no command in it starts a Python script with torchrun, accelerate, deepspeed, mpirun or python"
            + scripts.other_commands(draft),
            f"fab import reads {KINDS}",
        )
    return draft


def _load(part: str, text: str, name: str) -> Any:
    # Replace the documents before this one by blank lines, so that line numbers stay correct.
    lines_before = text.count("\n", 0, text.find(part))
    return load(Source("\n" * lines_before + part, name))


def _is_other_manifest(value: Any) -> bool:
    return manifests.matches(value) and str(value["kind"]) not in manifests.KINDS


def _document(value: Any, name: str) -> Draft | None:
    if _is_other_manifest(value):
        return None
    if accelerate_config.matches(value):
        return accelerate_config.read(value)
    if ray_cluster.matches(value):
        return ray_cluster.read(value)
    if manifests.matches(value):
        return manifests.read(value)
    if isinstance(value, dict) and _DEEPSPEED_KEYS & set(value):
        return _deepspeed_config(name)
    return None


def _deepspeed_config(name: str) -> Draft:
    """Return the command line for a configuration of DeepSpeed, which the script itself reads."""
    from torchfab.importers.draft import PLACEHOLDER

    draft = Draft("a configuration of DeepSpeed, which the script reads", task="launch-deepspeed")
    draft.script = (PLACEHOLDER, "--deepspeed", "--deepspeed_config", name)
    return draft

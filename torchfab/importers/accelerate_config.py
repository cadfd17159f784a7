"""Convert a configuration of accelerate (`accelerate config`) to a command line."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torchfab.core.flag_values import is_whole
from torchfab.core.hostfiles.structured import number_of
from torchfab.importers import accelerate_settings
from torchfab.importers.document_values import Document
from torchfab.importers.draft import Draft

_USES = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DEEPSPEED": "ACCELERATE_USE_DEEPSPEED",
    "MEGATRON_LM": "ACCELERATE_USE_MEGATRON_LM",
}
_PREFIXES = {"fsdp_config": "fsdp-", "fp8_config": "fp8-", "dynamo_config": "dynamo-"}
_NO_MEANING = (
    "compute_environment",
    "distributed_type",
    "tpu_env",
    "tpu_use_cluster",
    "tpu_use_sudo",
    "use_cpu",
    "debug",
)


def matches(document: Any) -> bool:
    """Say whether a document is a configuration of accelerate.

    Parameters
    ----------
    document : any
        The document, as `structured.load` returns it.

    Returns
    -------
    bool
    """
    return isinstance(document, dict) and bool({"compute_environment", "num_machines"} & set(document))


def read(document: dict[str, Any]) -> Draft:
    """Convert a configuration to a command line.

    Parameters
    ----------
    document : dict
        The document, as `structured.load` returns it; its values are removed.

    Returns
    -------
    Draft
        Without a script, because the configuration names none.
    """
    draft = Draft("a configuration of accelerate")
    root = Document(document, draft)
    kind = root.text("distributed_type").upper().removeprefix("DISTRIBUTEDTYPE.")
    if kind in _USES:
        draft.env[_USES[kind]] = "true"
    settings: dict[str, str] = {}
    for name, value in _flat(root.value):
        if value is None:
            continue
        number = number_of(value)
        if name.replace("-", "_") in _NO_MEANING and value.lower() in ("false", "[]", "", "local_machine"):
            continue
        accelerate_settings.apply(name, value, settings, draft.env, partial(_skip, draft, number, f"{name}: {value}"))
    root.value.clear()
    _set_counts(draft, settings)
    return draft


def _skip(draft: Draft, number: int, text: str, option: object, reason: str) -> None:
    draft.skip(number, text.replace("-", "_", text.partition(":")[0].count("-")), reason)


def _flat(document: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Return the settings of the configuration and of the mappings in it, with dashes in their names."""
    found: list[tuple[str, str | None]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            prefix = _PREFIXES.get(name, "")
            for key, each in value.items():
                flag = str(key).replace("_", "-")
                found += [(flag if flag.startswith(prefix) else prefix + flag, text) for text in _texts(each)]
        else:
            found += [(str(name).replace("_", "-"), text) for text in _texts(value)]
    return found


def _texts(value: Any) -> list[str | None]:
    if isinstance(value, list):
        return [each for each in value if isinstance(each, str)]
    return [value if isinstance(value, str) else None]


def _set_counts(draft: Draft, settings: dict[str, str]) -> None:
    nodes, total = settings.pop("nodes", "1"), settings.pop("num-processes", "")
    for name, value in (("num_machines", nodes), ("num_processes", total)):
        if value and not is_whole(value):
            draft.skip(number_of(value), f"{name}: {value}", "not a number: --nodes and --nproc-per-node set it")
    if is_whole(nodes) and int(nodes):
        draft.set("nodes", nodes)
        if is_whole(total):
            draft.set("nproc-per-node", str(max(1, int(total) // int(nodes))))
    for name, value in settings.items():
        draft.set(name, value)

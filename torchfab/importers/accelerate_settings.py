"""Convert accelerate's configuration and flags to the variables that `accelerate launch` sets for the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torchfab.importers.draft import is_dynamic
from torchfab.importers.options import Option

Skip = Callable[[object, str], None]
_MACHINE = "fab sets it: node 0, a free port, the ranks of the nodes"
# Settings of torchrun or of machines, which the ranks do not need.
_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("machine-rank", "main-process-ip", "same-network", "rdzv-conf", "rdzv-backend"), _MACHINE),
    **dict.fromkeys(("main-process-port",), "fab takes a free port; --port sets one"),
    **dict.fromkeys(("role", "tee", "log-dir"), "fab keeps the logs of all ranks: fab logs"),
    **dict.fromkeys(("deepspeed-exclusion-filter", "deepspeed-inclusion-filter"), "write gpus= into the hosts file"),
    "deepspeed-multinode-launcher": "fab starts the ranks over SSH itself",
    "gpu-ids": "write them into the hosts file: node1 gpus=0,1",
    "config-file": "convert that file too: fab import FILE",
    "monitor-interval": "an option of torchrun that fab does not pass on",
    "main-training-function": "only for notebooks and TPUs",
    "no-python": "not needed: fab runs any program",
}
_IGNORED = frozenset(("compute-environment", "quiet", "q", "m", "module", "multi-gpu"))
# Variables that differ from the pattern of their group.
_NAMES: Mapping[str, str] = {
    "fsdp-transformer-layer-cls-to-wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
    "gradient-accumulation-steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "gradient-clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "zero-stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "offload-optimizer-device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload-param-device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "offload-optimizer-nvme-path": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH",
    "offload-param-nvme-path": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH",
    "zero3-init-flag": "ACCELERATE_DEEPSPEED_ZERO3_INIT",
    "zero3-save-16bit-model": "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
    "deepspeed-config-file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    "deepspeed-moe-layer-cls-names": "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES",
    "mixed-precision": "ACCELERATE_MIXED_PRECISION",
    "dynamo-backend": "ACCELERATE_DYNAMO_BACKEND",
    "dynamo-mode": "ACCELERATE_DYNAMO_MODE",
    "dynamo-use-fullgraph": "ACCELERATE_DYNAMO_USE_FULLGRAPH",
    "dynamo-use-dynamic": "ACCELERATE_DYNAMO_USE_DYNAMIC",
    "dynamo-use-regional-compilation": "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
    "num-cpu-threads-per-process": "OMP_NUM_THREADS",
}
_GROUPS = {
    "fsdp-": "FSDP_",
    "megatron-lm-": "MEGATRON_LM_",
    "parallelism-config-": "PARALLELISM_CONFIG_",
    "fp8-": "ACCELERATE_FP8_",
}
_SWITCHES: Mapping[str, Mapping[str, str]] = {
    "use-fsdp": {"ACCELERATE_USE_FSDP": "true"},
    "use-deepspeed": {"ACCELERATE_USE_DEEPSPEED": "true"},
    "use-megatron-lm": {"ACCELERATE_USE_MEGATRON_LM": "true"},
    "use-parallelism-config": {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
    "cpu": {"ACCELERATE_USE_CPU": "True"},
    "use-cpu": {"ACCELERATE_USE_CPU": "True"},
    "debug": {"ACCELERATE_DEBUG_MODE": "true"},
    "enable-cpu-affinity": {"ACCELERATE_CPU_AFFINITY": "1"},
    "downcast-bf16": {"ACCELERATE_DOWNCAST_BF16": "true"},
}


def variables(name: str, value: str | None) -> dict[str, str]:
    """Return the variables that a setting becomes.

    Parameters
    ----------
    name : str
        Its name, with dashes: `fsdp-sharding-strategy`.
    value : str, optional
        Its value; None for a switch.

    Returns
    -------
    dict of str to str
        Empty for a setting that the ranks do not see.
    """
    if name in _SWITCHES:
        return dict(_SWITCHES[name]) if (value or "true").lower() in ("true", "yes", "1") else {}
    text = "true" if value is None else value
    if not name.startswith("dynamo-use"):  # accelerate reads those with a capital
        text = text.lower() if text in ("True", "False") else text
    if name in _NAMES:
        return {_NAMES[name]: text.upper() if name == "dynamo-backend" else text}
    for prefix, variable in _GROUPS.items():
        if name.startswith(prefix):
            return {variable + name.removeprefix(prefix).replace("-", "_").upper(): text}
    return {}


def apply_options(options: Sequence[Option], settings: dict[str, str], env: dict[str, str], skip: Skip) -> None:
    """Apply the options of `accelerate launch`.

    Parameters
    ----------
    options : sequence of Option
        The options.
    settings : dict of str to str
        Flags of fab; completed in place.
    env : dict of str to str
        Variables of the ranks; completed in place.
    skip : callable
        Called with an option and the reason, for each option that is not carried over.
    """
    for option in options:
        if option.value is not None and is_dynamic(option.value) and option.name not in _REASONS:
            if option.name not in ("num-processes", "num-machines"):
                skip(option, "its value is not known without running the shell")
            continue
        apply(option.name, option.value, settings, env, skip)


def apply(name: str, value: str | None, settings: dict[str, str], env: dict[str, str], skip: Skip) -> None:
    """Apply one setting of accelerate.

    Parameters
    ----------
    name : str
        Its name, with dashes.
    value : str or None
        Its value; None for a switch.
    settings : dict of str to str
        Flags of fab; completed in place.
    env : dict of str to str
        Variables of the ranks; completed in place.
    skip : callable
        Called with the setting and the reason if the setting is not carried over.
    """
    flags = {"num-processes": "num-processes", "num-machines": "nodes", "deepspeed-hostfile": "hostfile"}
    found = variables(name, value)
    if name in flags and value is not None:
        settings[flags[name]] = value
    elif name == "max-restarts" and value not in (None, "0"):
        settings["max-restarts"] = value or ""
    elif found:
        env.update(found)
    elif name not in _IGNORED and name not in _SWITCHES and name != "max-restarts":
        skip(Option(name, value), _REASONS.get(name, "a setting of accelerate that has no variable for the ranks"))

"""Import launch files in tests, and check that fab accepts the resulting command lines."""

from __future__ import annotations

from textwrap import dedent

from torchfab import importers
from torchfab.cli.flags import JobFlags, LaunchFlags, PodFlags
from torchfab.core.flag_values import parse
from torchfab.importers.draft import Draft
from torchfab.launchers import deepspeed, kubernetes, mpi, per_node, slurm

_TASKS = {
    "launch-per-node": (per_node, LaunchFlags),
    "launch-deepspeed": (deepspeed, LaunchFlags),
    "launch-mpi": (mpi, LaunchFlags),
    "launch-slurm": (slurm, JobFlags),
    "launch-kubernetes": (kubernetes, PodFlags),
}


def read(text: str, name: str = "file") -> Draft:
    """Return the command line for a launch file, after checking that fab accepts its flags."""
    draft = importers.read(dedent(text), name)
    check_flags(draft)
    return draft


def check_flags(draft: Draft) -> None:
    """Parse the flags of a draft as the task would."""
    launcher, shared = _TASKS[draft.task]
    repeatable = ("sbatch-arg", "pvc", "image-pull-secret", "node-selector", "toleration")
    values: dict[str, object] = {}
    for name, given in draft.flags.items():
        assert len(given) == 1 or name in repeatable, (name, given)
        values[name.replace("-", "_")] = list(given) if name in repeatable else given[0] or True
    known = {*shared.__dataclass_fields__, *launcher.Flags.__dataclass_fields__}
    assert set(values) <= known, set(values) - known
    parse(shared, values)
    launcher.options(parse(launcher.Flags, values))


def command(draft: Draft) -> list[str]:
    """Return the words of the command, without `fab`."""
    return list(draft.words()[1:])


def notes(draft: Draft) -> dict[str, str]:
    """Return the parts that were not carried over, with the reasons."""
    return {f"{each.number}: {each.text}": each.reason for each in draft.skipped}

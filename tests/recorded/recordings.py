"""What nvidia-smi, kernels, torch and NCCL really printed, on the machines of others: INDEX.md says whose."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def names(folder: str) -> list[str]:
    """Return the names of the recordings of one kind."""
    return sorted(path.name for path in (FOLDER / folder).iterdir())


def recording(folder: str, name: str) -> str:
    """Return one of them."""
    return (FOLDER / folder / name).read_text(encoding="utf-8")

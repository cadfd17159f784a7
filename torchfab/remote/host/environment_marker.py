"""Read the file that `torchfab env push` leaves in the environment that it created.

Apart from the module that creates it, because every launch reads it, and that one imports much.
"""

from __future__ import annotations

import os

from torchfab.remote import job_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "torchfab-env.json"


def read_marker(python: str) -> dict[str, Any] | None:
    """Return the list of packages from which the environment of an interpreter was created.

    Parameters
    ----------
    python : str
        Path of the interpreter; links are not followed, because they point outside the environment.

    Returns
    -------
    dict or None
        `digest`, `source` (name of the file), `tool`; None if `env push` did not create it.
    """
    if not os.path.isabs(python):
        return None
    found = job_files.read_json(os.path.join(os.path.dirname(os.path.dirname(python)), NAME))
    known = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("digest", "source"))
    return found if known else None

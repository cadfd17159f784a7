"""What this machine's clock reads."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the time, in seconds since the epoch."""
    return {"time": time.time()}

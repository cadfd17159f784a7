"""What several tests share."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from torchfab.rehearsal.claiming import find_program


def require(program: str) -> str:
    """Give the program's path, or do without the test as `absent` says."""
    return find_program(program) or absent(f"{program} is not installed")


def absent(what: str) -> NoReturn:
    """Fail in CI, where everything must be there; skip with the reason on a laptop."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and CI=true allows no skip", pytrace=False)
    pytest.skip(what)

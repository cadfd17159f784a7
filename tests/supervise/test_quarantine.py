"""The hosts that supervised launches leave out."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torchfab.core.errors import TorchfabError
from torchfab.supervise.quarantine import Lemon, Quarantine


def test_lemons_are_stored_and_forgiven(tmp_path: Path) -> None:
    lemons = Quarantine(tmp_path / "jobs")
    assert lemons.all() == {}
    lemons.add({"b": Lemon("cannot be reached", 2.0, "gpt2"), "a": Lemon("GPU 3 is lost", 1.0, "gpt2")})
    assert list(lemons.all()) == ["a", "b"]
    assert stat.S_IMODE(lemons.path.stat().st_mode) == 0o600
    assert lemons.forgive("c") == []
    assert lemons.forgive("a") == ["a"]
    assert lemons.forgive("all") == ["b"]
    assert lemons.all() == {}


def test_lemons_added_concurrently_are_all_stored(tmp_path: Path) -> None:
    def add(number: int) -> None:
        Quarantine(tmp_path).add({f"node{number}": Lemon("sick", float(number), "x")})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(32)))
    assert len(Quarantine(tmp_path).all()) == 32


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": 1}', '{"a": {"reason": "x"}}'])
def test_a_malformed_list_of_lemons_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "lemons.json").write_text(text)
    with pytest.raises(TorchfabError, match="cannot be read as the list of lemons"):
        Quarantine(tmp_path).all()

"""The options of ssh's configuration, indexed: one with a block for each of 1000 hosts is not searched 1000 times."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchfab.transport.ssh.config import Option


class Indexed(tuple["Option", ...]):
    """All options that were read, in their order."""

    @cached_property
    def _numbers(self) -> tuple[list[int], dict[str, list[int]]]:
        """Which options may be about any host, and which are about hosts that are named plainly, by their names."""
        general: list[int] = []
        named: dict[str, list[int]] = {}
        for number, option in enumerate(self):
            plain = [block.words for block in option.blocks if block.keyword == "host" and _are_plain(block.words)]
            for name in set(plain[0]) if plain else ():
                named.setdefault(name, []).append(number)
            if not plain:
                general.append(number)
        return general, named

    def about(self, host: str) -> list[Option]:
        """Return the options that can be about a host, in their order."""
        general, named = self._numbers
        return [self[number] for number in sorted([*general, *named.get(host, ())])]


def _are_plain(patterns: tuple[str, ...]) -> bool:
    return not any(sign in pattern for pattern in patterns for sign in "*?!")

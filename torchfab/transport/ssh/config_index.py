"""An index over the options of ssh's configuration.

If the configuration has a block for each of 1000 hosts, the index avoids 1000 searches through all of it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchfab.transport.ssh.config import Option


class Indexed(tuple["Option", ...]):
    """All options that were read, in the order of the files."""

    @cached_property
    def _indices(self) -> tuple[list[int], dict[str, list[int]]]:
        """Indices of the options that may apply to any host, and, by host name, of those in a plain `Host` block."""
        general: list[int] = []
        by_host: dict[str, list[int]] = {}
        for index, option in enumerate(self):
            plain = [block.args for block in option.blocks if block.keyword == "host" and _are_plain(block.args)]
            for name in set(plain[0]) if plain else ():
                by_host.setdefault(name, []).append(index)
            if not plain:
                general.append(index)
        return general, by_host

    def candidates(self, host: str) -> list[Option]:
        """Return the options that may apply to a host.

        Parameters
        ----------
        host : str
            The name of the host, as the user gave it.

        Returns
        -------
        list of Option
            In the order of the files.
        """
        general, by_host = self._indices
        return [self[index] for index in sorted([*general, *by_host.get(host, ())])]


def _are_plain(patterns: tuple[str, ...]) -> bool:
    return not any(sign in pattern for pattern in patterns for sign in "*?!")

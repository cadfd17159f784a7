"""Parse texts of hosts files in tests."""

from __future__ import annotations

from typing import Any

import pytest

from torchfab.core.errors import InventoryError
from torchfab.core.hostfiles import HostFile, parse_hosts
from torchfab.core.hostfiles.dialect import Source

_SHOWN = ("user", "port", "address", "slots", "gpus")


def read(text: str, file_format: str = "", groups: tuple[str, ...] = ()) -> HostFile:
    """Return the parsed content of a text."""
    return parse_hosts(Source(text, "hosts", groups), file_format)


def hosts(found: HostFile) -> list[Any]:
    """Return each host: its name, or a dict of its name and the other values of its line."""
    return [_host({"host": node.host, **{k: getattr(node, k) for k in _SHOWN}}) for node in found.inventory.nodes]


def _host(values: dict[str, Any]) -> Any:
    given = {key: value for key, value in values.items() if value not in (None, "", ())}
    return given if len(given) > 1 else given["host"]


def error(text: str, file_format: str = "", groups: tuple[str, ...] = ()) -> str:
    """Return the error about a text."""
    with pytest.raises(InventoryError) as caught:
        read(text, file_format, groups)
    return str(caught.value)

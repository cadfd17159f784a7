"""The value of `gpus=`."""

from __future__ import annotations

import pytest

from torchfab.core.errors import InventoryError
from torchfab.core.hostlines import devices
from torchfab.core.hostlines.words import Line

LINE = Line("hosts:3", ("node1",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", ("0",)),
        ("2,0", ("2", "0")),
        ("0-2,6", ("0", "1", "2", "6")),
        ("GPU-8932f937-d72c,MIG-1/2/3", ("GPU-8932f937-d72c", "MIG-1/2/3")),
    ],
)
def test_devices_keep_the_order_of_the_text(text: str, expected: tuple[str, ...]) -> None:
    assert devices.parse(LINE, text) == expected


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("0,0", "name each device once"),
        ("0-2,1", "name each device once"),
        ("3-1", "a range begins with the lower number: gpus=1-3"),
        ("cuda:0,cuda:1", "devices are numbers here: gpus=0,1"),
        ("all", "leave gpus= out"),
        ("0-1024", "gpus=2,3"),
        ("", "gpus=2,3"),
    ],
)
def test_an_error_names_the_line_and_what_to_write(text: str, fix: str) -> None:
    with pytest.raises(InventoryError) as caught:
        devices.parse(LINE, text)
    assert str(caught.value).startswith(f"hosts:3: gpus={text}: not a list of devices")
    assert fix in str(caught.value)

"""docs/troubleshooting.md lists all causes and fixes word for word."""

from __future__ import annotations

from pathlib import Path

from torchfab.why.signature import Signature
from torchfab.why.signature_table import SIGNATURES

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def row(each: Signature) -> str:
    """Return the row of the page's table for a cause."""
    cause = each.cause
    shown = {"{line}": "…", "{op}": "ALLREDUCE", "{seq}": "14", "{sign}": "watchdog got stuck for 480 seconds"}
    words = cause.words
    for name, value in shown.items():
        words = words.replace(name, value)
    return f"| {cause.kind.name.lower()} | {cause.name} | {words} | {cause.fix} |"


def test_page_lists_every_cause_with_its_description_and_fix() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [row(each) for each in SIGNATURES if row(each) not in page]
    assert not missing, "put these lines into docs/troubleshooting.md:\n" + "\n".join(missing)

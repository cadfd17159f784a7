"""The page on troubleshooting shows the causes and fixes that the program knows, word by word."""

from __future__ import annotations

from pathlib import Path

from torchfab.why import causes

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def row(each: causes.Recogniser) -> str:
    """Return the line of the page's table about a cause."""
    cause = each.cause
    words = cause.words.replace("{line}", "…").replace("{op} number {seq}", "ALLREDUCE number 14")
    return f"| {cause.kind.name.lower()} | {cause.name} | {words} | {cause.fix} |"


def test_the_page_has_every_cause_of_the_table_with_its_words_and_its_fix() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [row(each) for each in causes.RECOGNISERS if row(each) not in page]
    assert not missing, "put these lines into docs/troubleshooting.md:\n" + "\n".join(missing)

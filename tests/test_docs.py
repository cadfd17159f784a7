"""The documentation names files, links and settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
SOURCE = re.compile(r"`((?:torchfab|tests|testbed|bench|docs)/[\w/.-]*)`")
PLANNED = ("tests/launchers/test_once.py", "torchfab/launchers/once.py")  # what CONTRIBUTING.md shows how to add


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_source_path_in_backticks_exists(page: Path) -> None:
    paths = SOURCE.findall(page.read_text(encoding="utf-8"))
    assert [path for path in paths if path not in PLANNED and not (ROOT / path).exists()] == []


def test_the_architecture_page_has_a_line_for_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "torchfab").glob("*/__init__.py")}
    assert sorted(name for name in packages if f"\n| `{name}` | " not in text) == []


def test_every_patched_place_exists() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## What we patch")[2]
    places = re.findall(r"`((?:cli|launching|transport|remote|runtimes)/[\w/]+\.py)`", table)
    assert len(places) > 10
    assert [place for place in places if not (ROOT / "torchfab" / place).exists()] == []


def test_every_time_out_of_the_settings_is_in_the_reference() -> None:
    settings = re.findall(r"^  (\w+_s): ", (ROOT / "fabric.yaml").read_text(), re.MULTILINE)
    text = (ROOT / "docs" / "reference" / "timeouts.md").read_text(encoding="utf-8")
    assert settings
    assert [name for name in settings if f"| `{name}`" not in text] == []

"""The table of the fault matrix."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import faulttable
from tests.integration.faults import CHECKS, FAULTS
from tests.integration.plays import PLAYS
from tests.integration.test_ends import ENDS

PAGE = f"# Reliability\n\n{faulttable.BEGIN}\nOLD TABLE\n{faulttable.END}\n\n## More\n"


def rows() -> list[list[str]]:
    return [[fault, "failed on 10.77.3.1 port 40321: /tmp/x/here/y | b", "nothing", "all", "–"] for fault in FAULTS]


def test_rows_come_from_reports_in_the_order_of_the_faults() -> None:
    report = SimpleNamespace(user_properties=[("other", 1), *(("fault", row) for row in reversed(rows()))])
    assert faulttable.in_order(faulttable.rows_of(report)) == rows()
    assert faulttable.rows_of(SimpleNamespace()) == []


def test_the_table_replaces_the_old_one_and_names_the_versions(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    faulttable.write(page, rows())
    text = page.read_text()
    assert text.startswith("# Reliability\n")
    assert text.endswith(f"{faulttable.END}\n\n## More\n")
    assert "OLD TABLE" not in text
    assert "Python 3." in text
    assert f"| {FAULTS[0]} | failed on ADDRESS: .../y \\| b | nothing | all | – |" in text
    faulttable.write(page, rows())
    assert page.read_text() == text


def test_an_incomplete_table_is_not_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(AssertionError, match=FAULTS[0]):
        faulttable.write(page, rows()[1:])
    assert page.read_text() == PAGE


def test_the_head_names_the_checks() -> None:
    assert faulttable.HEAD[1:] == CHECKS


def test_the_page_of_the_docs_has_every_fault() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    assert [fault for fault in FAULTS if f"| {fault} |" not in text] == []
    assert "NOT " not in text.partition(faulttable.BEGIN)[2].partition(faulttable.END)[0]


def end_rows() -> list[list[str]]:
    return [[end.what, name, *["saved"] * 3, "ended", "stopped"] for end in ENDS.values() for name in end.launchers]


def test_the_ends_replace_the_old_table_and_say_why_rows_are_empty(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Head\n\n{faulttable.ENDS_BEGIN}\nOLD\n{faulttable.ENDS_END}\n\nmore\n")
    faulttable.write_ends(page, end_rows()[::-1])
    text = page.read_text()
    assert text.index("| `fab stop` | launch-per-node |") < text.index("| `fab stop` | launch-kubernetes |")
    assert "| `scancel` | launch-slurm | saved | saved | saved | ended | stopped |\n" in text
    assert "| `scancel` | the others | – | – | – | – | – (only Slurm has it) |\n" in text
    assert "OLD" not in text
    assert text.endswith(f"{faulttable.ENDS_END}\n\nmore\n")


def test_an_end_that_was_not_run_keeps_its_row_or_the_table_is_not_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{faulttable.ENDS_BEGIN}\nOLD\n{faulttable.ENDS_END}\n")
    with pytest.raises(AssertionError, match=r"not whole: \[\['`kubectl delete job`', 'launch-kubernetes'\]\]"):
        faulttable.write_ends(page, end_rows()[:-1])
    assert "OLD" in page.read_text()
    faulttable.write_ends(page, end_rows())
    faulttable.write_ends(page, [["`scancel`", "launch-slurm", "not saved", "saved", "saved", "ended", "cancelled"]])
    text = page.read_text()
    assert "| `scancel` | launch-slurm | not saved | saved | saved | ended | cancelled |\n" in text
    assert "| `kubectl delete job` | launch-kubernetes | saved | saved | saved | ended | stopped |\n" in text


def test_plays_keep_the_cells_that_were_not_run_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Head\n\n{faulttable.PLAYS_BEGIN}\n{faulttable.PLAYS_END}\n\nmore\n")
    hangs, early = PLAYS["hangs"].what, PLAYS["early"].what
    faulttable.write_plays(page, [[hangs, "launch-per-node", "rank 3"], [early, "launch-slurm", "rank 3"]])
    faulttable.write_plays(page, [[hangs, "launch-slurm", "rank 2"], [early, "launch-slurm", "rank 1"]])
    text = page.read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    cells = {(row[0], name): cell for row in rows for name, cell in zip(rows[0], row, strict=True)}
    assert cells[hangs, "launch-per-node"] == "rank 3"
    assert cells[hangs, "launch-slurm"] == "rank 2"
    assert cells[early, "launch-slurm"] == "rank 1"
    assert cells[early, "launch-per-node"] == "–"
    assert len(rows) == len(PLAYS) + 2
    assert text.endswith(f"{faulttable.PLAYS_END}\n\nmore\n")

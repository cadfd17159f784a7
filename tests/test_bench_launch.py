"""The parts of bench-launch that do not measure: stored results, goals, reports and command lines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))
from launching import goals, hosts, report, tools  # noqa: E402 (they lie outside any package)
from launching.store import Store  # noqa: E402

RUN = {"part": "fan-out", "kind": "true", "kex": "curve25519", "hosts": 64}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "launch.jsonl")


def add(store: Store, tool: str, wall_s: float, number: int = 0, code: int = 0) -> None:
    costs = {"wall_s": wall_s, "cpu_s": wall_s / 2, "memory_mb": 50.0, "nodes_cpu_s": 2.0, "code": code, "when": "d"}
    store.add({**RUN, "tool": tool, "round": number}, costs)


def test_saved_results_are_found_by_the_next_run(store: Store) -> None:
    add(store, "pdsh", 2.0)
    again = Store(store.path)
    assert again.has({**RUN, "tool": "pdsh", "round": 0})
    assert not again.has({**RUN, "tool": "pdsh", "round": 1})
    again.drop("fan-out")
    assert Store(store.path).results == []


def test_results_are_selected_by_key_and_value(store: Store) -> None:
    for number, code in enumerate((0, 1)):
        store.add({"part": "life", "round": number}, {"wall_s": 1.0 + number, "code": code})
    assert store.median("wall_s", part="life", code=0) == 1.0
    assert store.median("wall_s", part="life", code=9) is None


def test_a_goal_is_judged_by_the_medians(store: Store) -> None:
    for number, (ours, theirs) in enumerate([(1.0, 2.0), (9.0, 2.5), (1.1, 9.0)]):
        add(store, tools.OURS, ours, number)
        add(store, "pdsh", theirs, number)
    first = next(iter(goals.goals(store)))
    assert (first.shown, first.goal, first.verdict) == ("0.44 x", "≤ 1 x", "met")


def test_a_goal_without_result_is_not_measured(store: Store) -> None:
    assert {each.verdict for each in goals.goals(store)} == {"not measured"}


@pytest.mark.parametrize(("value", "least", "verdict"), [(2.0, False, "missed"), (2.0, True, "met")])
def test_a_goal_is_an_upper_or_lower_limit(value: float, least: bool, verdict: str) -> None:
    assert goals.Goal("x", value, 1.0, "s", least).verdict == verdict


def test_the_table_shows_failures_and_tools_without_results(store: Store) -> None:
    add(store, tools.OURS, 1.0)
    add(store, "pdsh", 300.0, code=124)
    store.add({**RUN, "hosts": 2, "tool": "clush", "round": 0}, {"wall_s": 1.0, "code": 0, "when": "d"})
    text = report._comparison(store, "true", "curve25519")
    rows = {line.split(" | ")[1]: line for line in text.splitlines() if line.startswith("| 64")}
    assert rows["torchfab"].endswith("| none |")
    assert rows["pdsh -f 64"].endswith("| 1 of 1 runs over the limit |")
    assert "not measured" in rows["clush -f 64"]
    assert "mpirun (Open MPI)" not in text


def test_the_goals_show_the_figures_of_an_earlier_version(store: Store, tmp_path: Path) -> None:
    add(store, tools.OURS, 1.0)
    add(store, "pdsh", 2.0)
    before = Store(tmp_path / "before.jsonl")
    assert "before" not in report.goals_text(store, before)
    costs = {"wall_s": 3.0, "code": 0, "versions": {tools.OURS: "6f97f63-dirty"}}
    before.add({**RUN, "tool": "pdsh", "round": 0}, costs)
    before.add({**RUN, "tool": tools.OURS, "round": 0}, costs)
    text = report.goals_text(store, before).splitlines()
    assert text[2] == "| what | before (6f97f63) | measured | goal |  |"
    assert text[4].endswith("| 1 x | 0.5 x | ≤ 1 x | met |")
    assert "| not measured |" in text[5]


def test_a_document_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "scale.md"
    path.write_text(f"a\n{report.BEGIN}old\n{report.END}\nb\n")
    for _ in range(2):
        report.write_into(path, "new\n")
        assert path.read_text() == f"a\n{report.BEGIN}new\n{report.END}\nb\n"


def test_the_document_has_the_marks() -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_every_host_has_an_address_of_its_own() -> None:
    found = hosts.addresses(1000)
    assert len(set(found)) == 1000
    assert all(address.startswith("127.80.") and address.split(".")[3] not in ("0", "255") for address in found)


@pytest.mark.parametrize("tool", report.TOOL_LABELS)
@pytest.mark.parametrize("ranks", [0, 8])
def test_every_tool_gets_the_same_hosts(tool: str, ranks: int, tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text("Host *\n")
    files = hosts.Files(tmp_path, ("127.80.0.1", "127.80.0.2", "127.80.0.3"))
    (tmp_path / "starts").mkdir()
    words = tools.whole(tool, files, 2, ranks, tmp_path / "starts", tmp_path / "venv", "x")
    named = " ".join(words.argv)
    for path in tmp_path.glob("hosts-*"):
        assert path.read_text().split() == [host for host in files.hosts[:2] for _ in range(int(path.name[-1]))]
        named = named.replace(str(path), path.read_text())
    assert "127.80.0.1" in named
    assert "127.80.0.2" in named
    assert "127.80.0.3" not in named

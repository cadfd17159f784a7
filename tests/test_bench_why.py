"""The benchmark of `fab why`: the logs that it makes, and its table."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import why as bench  # noqa: E402 (they lie outside any package)
from launching.store import Store  # noqa: E402

VALUES = {
    "why_s": 3.24,
    "ssh_s": 1.2,
    "cpu_s": 0.8,
    "memory_mb": 61.0,
    "node_cpu_s": 0.6,
    "node_mb": 30.0,
    "warm_s": 0.7,
    "cold_s": 1.1,
    "sent_mb": 0.15,
    "when": "2026-01-02",
}


def test_logs_have_the_size_and_end_with_what_the_rank_printed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    bench.write_log(path, 10_000_000, "ValueError: no label\n")
    assert 5_000_000 < path.stat().st_size < 10_000_000
    assert path.read_text().endswith("ValueError: no label\n")


def test_table_has_the_time_beyond_ssh_and_replaces_the_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "why.jsonl")
    store.add(bench.CASES["ranks"].key, VALUES)
    store.add(bench.CASES["log"].key, VALUES)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    bench.write_page(page, bench.render(store))
    text = page.read_text()
    assert "| 8 nodes × 8 ranks, 1 GB of logs a node | 3.2 s | 2.0 s |" in text
    assert "| 1 rank, one log of 10 GB | 3.2 s | 2.0 s |" in text
    assert "old" not in text
    assert text.endswith(f"{bench.END}\nafter\n")

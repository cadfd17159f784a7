"""Paths and patterns on a node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote.host import find_files


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A working directory with brackets in its name."""
    folder = tmp_path / "work [1]"
    (folder / "ckpt" / "step-1").mkdir(parents=True)
    (folder / "ckpt" / "step-1" / "a.pt").write_text("abc")
    (folder / "ckpt" / "b.pt").write_text("b")
    (folder / "ckpt" / "latest").symlink_to("step-1")
    (folder / "out [x].txt").write_text("xx")
    os.mkfifo(folder / "ckpt" / "pipe")
    return folder


def find(workdir: Path, *patterns: str) -> dict[str, Any]:
    return find_files.find({"workdir": str(workdir), "patterns": list(patterns)})


def files(workdir: Path, *patterns: str) -> dict[str, int]:
    """Return name and size of all files that were found."""
    return {name: size for match in find(workdir, *patterns)["matches"] for name, size in match["files"]}


def test_a_folder_stands_for_all_files_below_it(workdir: Path) -> None:
    (match,) = find(workdir, "ckpt")["matches"]
    assert match == {
        "pattern": 0,
        "base": str(workdir),
        "name": "ckpt",
        "files": [["ckpt/b.pt", 1], ["ckpt/step-1/a.pt", 3]],
        "links": [["ckpt/latest", "step-1"]],
    }


def test_patterns_expand_and_a_file_of_that_very_name_comes_first(workdir: Path) -> None:
    assert files(workdir, "ckpt/*.pt") == {"ckpt/b.pt": 1}
    assert files(workdir, "**/*.pt") == {"ckpt/b.pt": 1, "ckpt/step-1/a.pt": 3, "ckpt/latest/a.pt": 3}
    assert files(workdir, "out [x].txt") == {"out [x].txt": 2}
    assert files(workdir, "no*", "gone") == {}


def test_the_workdir_itself_and_paths_outside(workdir: Path, tmp_path: Path) -> None:
    assert "ckpt/b.pt" in files(workdir, ".")
    (tmp_path / "data").write_text("d")
    (match,) = find(workdir, str(tmp_path / "dat*"))["matches"]
    assert (match["base"], match["name"]) == ("/", str(tmp_path / "data").lstrip("/"))
    assert files(workdir, "../data") == {str(tmp_path / "data").lstrip("/"): 1}


def test_a_link_that_leads_elsewhere_stands_for_what_it_leads_to(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "c.pt").write_text("cc")
    (workdir / "runs").symlink_to(tmp_path / "scratch")
    (workdir / "ckpt" / "far").symlink_to("../../scratch")
    (workdir / "ckpt" / "circle").symlink_to(workdir / "ckpt")
    (workdir / "ckpt" / "broken").symlink_to("gone")
    assert files(workdir, "runs") == {"runs/c.pt": 2}
    assert files(workdir, "ckpt") == {"ckpt/b.pt": 1, "ckpt/step-1/a.pt": 3, "ckpt/far/c.pt": 2}
    assert files(workdir, "ckpt/latest") == {"ckpt/latest/a.pt": 3}


def test_digests_follow_links_and_end_with_the_time(workdir: Path) -> None:
    pairs = [[str(workdir), "ckpt/step-1/a.pt"], [str(workdir), "ckpt/latest/a.pt"], [str(workdir), "ckpt/b.pt"]]
    first, second, third = find_files.digests({"files": pairs, "within_s": 10.0})["digests"]
    assert first == second != third
    assert find_files.digests({"files": pairs, "within_s": -1.0})["digests"] == []


def test_without_rsync_it_says_so(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (problem,) = find(workdir, "ckpt")["problems"]
    assert problem["what"] == "rsync is not installed there"

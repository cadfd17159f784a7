"""Files that git includes but rsync would exclude, tested with real git and rsync."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import require
from torchfab.sync import gitignore, rsync

IGNORE = "*.pt\n!best.pt\n/data/*\n!/data/small\n/logs/\n"
# Files that git includes, and files that it ignores.
KEPT = [
    *("train.py", "best.pt", "deep/best.pt", "data/small", "logs/tracked/kept", "odd/[a]*\\\n.txt", "odd/b\\c"),
    *(".gitignore", "odd/.gitignore", "odd/link"),
]
IGNORED = [
    *("model.pt", "data/large", "data/sub/x", "logs/new", "logs/tracked/new", "odd/other.txt", "odd/d\\c"),
    *("jobs/x", ".venv/v", ".torchfab/t", ".torchfab-sync-1", "deep/x.pt"),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    require("rsync")
    folder = tmp_path / "source"
    for name in {*KEPT, *IGNORED} - {"odd/link"}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "odd" / "link").symlink_to("nowhere")
    (folder / ".gitignore").write_text(IGNORE)
    (folder / "odd" / ".gitignore").write_text("*\n!*/\n!.gitignore\n!link\n!\\[a]\\**\n!b*c\n")
    git(folder, "init", "-q")
    git(folder, "add", "-f", "logs/tracked/kept", "jobs/x")
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run([require("git"), "-C", str(folder), *words], check=True, capture_output=True)


def listed(folder: Path, *rules: str) -> list[str]:
    argv = rsync.list_argv(str(folder), rules)
    return rsync.parse_list(subprocess.run(argv, capture_output=True, check=True).stdout)


def test_rsync_lists_exactly_the_files_that_git_includes(source: Path) -> None:
    known = gitignore.list_git_files(str(source), 20.0)
    records = gitignore.exclude_rule(str(source), str(source / "jobs"))
    rules = (*records, *gitignore.include_rules(known, listed(source, *records)))
    assert sorted(listed(source, *rules)) == sorted(KEPT)


def test_ignored_files_that_exist_only_on_a_node_are_kept(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    for name in ("own.pt", "data/own", "logs/own", "logs/tracked/own", "old.py"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("")
    (there / ".gitignore").write_text(IGNORE)
    records = gitignore.exclude_rule(str(source), str(source / "jobs"))
    known = gitignore.list_git_files(str(source), 20.0)
    rules = (*records, *gitignore.include_rules(known, listed(source, *records)))
    subprocess.run(rsync.copy_argv(str(source), str(there), "", (), True, rules=rules), check=True, capture_output=True)
    found = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_symlink() or not path.is_dir()}
    assert found == {*KEPT, "own.pt", "data/own", "logs/own", "logs/tracked/own"}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/a/b/jobs", ("--filter=- /jobs",)),
        ("/a/b/.torchfab/[x]", ("--filter=- /.torchfab/\\[x]",)),
        ("/a/b", ()),
        ("/a/bc", ()),
        ("/a", ()),
    ],
)
def test_a_folder_inside_the_source_is_left_out(folder: str, expected: tuple[str, ...]) -> None:
    assert gitignore.exclude_rule("/a/b", folder) == expected


def test_no_rules_without_git_or_a_work_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert gitignore.list_git_files(str(tmp_path), 20.0) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gitignore.list_git_files(str(tmp_path), 20.0) == []
    assert gitignore.include_rules([], ["a"]) == ()


def test_no_rules_if_git_and_rsync_agree() -> None:
    assert gitignore.include_rules(["a", "b/c", ".venv/x", "x/.git/y"], ["a", "b/c"]) == ()

"""Lists of packages: found, read with what they include, compared by digest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.core import requirements_file
from torchfab.core.errors import UsageError


def test_uv_lock_comes_before_requirements(tmp_path: Path) -> None:
    assert requirements_file.find(tmp_path) is None
    for name in ("requirements.txt", "uv.lock"):
        (tmp_path / name).write_text("x")
        assert requirements_file.find(tmp_path) == tmp_path / name
    assert requirements_file.read(tmp_path / "uv.lock") == requirements_file.PackageList("uv.lock", "x")


@pytest.mark.parametrize("line", ["-r more/base.txt", "--requirement=more/base.txt", "-rmore/base.txt  # all"])
def test_included_files_stand_in_their_place(tmp_path: Path, line: str) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("b\n-r next.txt\n")
    (tmp_path / "more" / "next.txt").write_text("c==1  \n")
    path = tmp_path / "requirements.txt"
    path.write_text(f"a\n{line}\n./wheels/d.whl --hash=sha256:0\n")
    assert requirements_file.read(path).text == "a\nb\nc==1\n./wheels/d.whl --hash=sha256:0\n"


def test_a_change_in_an_included_file_changes_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("-r base.txt\n")
    digests = []
    for text in ("a==1\n", "a==2\n", "a==1"):
        (tmp_path / "base.txt").write_text(text)
        digests.append(requirements_file.read(path).digest)
    assert digests[0] == digests[2] != digests[1]
    assert requirements_file.digests(tmp_path) == {"requirements.txt": digests[2]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-r requirements.txt", "includes itself"),
        ("a\n-c limits.txt", ":2: constraints are not sent to the nodes"),
        ("-r none.txt", "none.txt cannot be read: No such file or directory"),
    ],
)
def test_a_list_that_cannot_be_sent_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=problem):
        requirements_file.read(path)
    assert requirements_file.digests(tmp_path) == {}


@fuzzed(st.text(st.characters(exclude_categories=["Cs"]), max_size=80).filter(lambda text: "-r" not in text))
def test_any_list_is_read(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text, newline="")
    if "-c" not in text and "--" not in text:
        assert len(requirements_file.read(path).digest) == 64

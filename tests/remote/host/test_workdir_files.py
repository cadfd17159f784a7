"""Comparison of a working directory with the launch machine's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.hostile import HOSTILE
from torchfab.remote.host import workdir_files


@pytest.fixture
def launch_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "mod.py").write_text("x = 1\n")
    (folder / "train.py").write_text("import pkg\n")
    (folder / "link").symlink_to("train.py")
    return folder


NAMES = ["pkg/mod.py", "train.py", "link"]


def compare(launch_dir: Path, there: Path, within_s: float = 60.0) -> dict[str, object]:
    digests = workdir_files.digests(str(launch_dir), NAMES, 60)
    return workdir_files.check({"workdir": str(there), "digests": digests, "within_s": within_s})


def test_a_copy_is_equal(launch_dir: Path, tmp_path: Path) -> None:
    there = shutil.copytree(launch_dir, tmp_path / "there", symlinks=True)
    assert compare(launch_dir, there) == {"checked": 3, "missing": 0, "differing": 0, "names": []}


def test_missing_and_differing_files_are_named(launch_dir: Path, tmp_path: Path) -> None:
    there = shutil.copytree(launch_dir, tmp_path / "there", symlinks=True)
    (there / "pkg" / "mod.py").write_text("x = 2\n")
    (there / "link").unlink()
    assert compare(launch_dir, there) == {"checked": 3, "missing": 1, "differing": 1, "names": ["link", "pkg/mod.py"]}


def test_a_link_is_not_the_file_that_it_points_to(launch_dir: Path, tmp_path: Path) -> None:
    there = shutil.copytree(launch_dir, tmp_path / "there", symlinks=False)
    assert compare(launch_dir, there)["names"] == ["link"]


def test_all_files_are_missing_in_an_empty_folder(launch_dir: Path, tmp_path: Path) -> None:
    assert compare(launch_dir, tmp_path / "nothing")["missing"] == 3


def test_a_comparison_ends_when_its_time_is_up(launch_dir: Path, tmp_path: Path) -> None:
    assert compare(launch_dir, launch_dir, within_s=-1)["checked"] == 0


def test_large_files_are_distinguished_by_size_and_ends(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "longer", "end")]
    for path, size in zip(paths, (0, 0, 1, 0), strict=True):
        with path.open("wb") as file:
            file.truncate(workdir_files.WHOLE_BYTES + 5 + size)
    with paths[3].open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    a, b, longer, end = (workdir_files.digest(str(path)) for path in paths)
    assert a == b
    assert len({a, longer, end}) == 3


@pytest.mark.parametrize("name", [text for text in HOSTILE.values() if "/" not in text and "\0" not in text])
def test_files_with_hostile_names_are_hashed(name: str, tmp_path: Path) -> None:
    name = f"a{name[:40]}"
    (tmp_path / name).write_text("x")
    assert workdir_files.digests(str(tmp_path), [name], 60)[name]


def test_a_shared_directory_is_detected_by_its_token(launch_dir: Path, tmp_path: Path) -> None:
    (launch_dir / "token").touch()
    assert workdir_files.prepare_workdir({"workdir": str(launch_dir), "token": "token"}) == {"shared": True}
    there = tmp_path / "new" / "there"
    assert workdir_files.prepare_workdir({"workdir": str(there), "token": "token"})["shared"] is False
    assert there.is_dir()


def test_a_workdir_that_cannot_be_made_is_reported_with_a_fix(launch_dir: Path) -> None:
    answer = workdir_files.prepare_workdir({"workdir": str(launch_dir / "train.py" / "below"), "token": ""})
    assert "cannot be created" in answer["problems"][-1]["what"]
    assert "--workdir" in answer["problems"][-1]["fix"]

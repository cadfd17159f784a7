"""Which files of a job are those of a checkpoint, and which of them are whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.remote.place import Place, wait_for
from torchfab.remote import job_files
from torchfab.remote.job import checkpoint_files


@pytest.mark.parametrize(
    ("argv", "folders"),
    [
        (["train.py", "--save-dir", "runs", "--data-path", "/data"], ["runs"]),
        (["train.py", "--output_dir=out", "--experiment-name", "x"], ["out"]),
        (["train.py", "--save", "ckpt", "--load", "old", "--lr", "3"], ["ckpt"]),
        (["train.py", "--checkpoint-path", "--verbose"], []),
        (["train.py", "hydra.run.dir=a", "trainer.default_root_dir=b", "model.hidden=3"], ["a", "b"]),
        (["torchrun", "--log-dir", "/logs", "train.py", "--ckpt_dir", "c"], ["c"]),
        (["train.py", "--save-dir"], []),
        ([], []),
    ],
)
def test_arguments_that_name_a_folder_of_output_are_recognised(argv: list[str], folders: list[str]) -> None:
    assert checkpoint_files.named_folders(argv) == folders


@pytest.mark.parametrize(
    ("path", "temporary"),
    [
        ("step-5.part", True),
        ("tmp-checkpoint-10/model.pt", True),
        ("checkpoint-10.tmp/model.pt", True),
        ("model.pt.tmp", True),
        ("model.pt.tmp-4711", True),
        ("model.pt.incomplete", True),
        ("model.pt~", True),
        ("step-5.pt", False),
        ("template/newton.pt", False),
        ("partition-3.pt", False),
    ],
)
def test_temporary_names_are_recognised(path: str, temporary: bool) -> None:
    assert checkpoint_files.is_temporary(path) is temporary


# A rank that writes when the file `go` appears: it keeps the file open until `close` appears.
WRITER = """
import os, time
out = os.getcwd()
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
os.makedirs("runs/checkpoint-7", exist_ok=True)
file = open("runs/checkpoint-7/model.bin", "w"); file.write("x" * 10); file.flush()
open("runs/log.jsonl", "w").close(); open("writes", "w").close()
while not os.path.exists("close"): time.sleep(0.01)
file.close()
open("closed", "w").close()
time.sleep(60)
"""


def find_changed(place: Place, **request: Any) -> dict[str, Any]:
    return checkpoint_files.find_changed(str(place.folder), {"folders": [], "since": {}, "busy": [], **request})


def changed(place: Place, first: dict[str, Any]) -> dict[str, bool]:
    found = find_changed(place, since=first["clocks"], busy=first["busy"])["files"]
    return {os.path.basename(each["path"]): each["whole"] for each in found}


def test_a_new_file_is_whole_once_its_rank_has_closed_it(place: Place, tmp_path: Path) -> None:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "model.bin").write_text("old")
    being_written = tmp_path / "runs" / "step-6.part"
    being_written.write_text("")
    place.prepare([sys.executable, "-c", WRITER, "--save-dir", "runs"], cwd=str(tmp_path), env={"RANK": "0"})
    place.supervise()
    wait_for((tmp_path / "ready").exists)
    wait_for(lambda: place.read(place.folder / "agent", job_files.RANKS))
    first = find_changed(place)
    assert (first["cwd"], list(first["clocks"]), first["running"]) == (str(tmp_path), [str(tmp_path / "runs")], 1)
    assert changed(place, first) == {}
    being_written.rename(tmp_path / "runs" / "step-6.pt")  # of a save that was under way: not the one asked for
    (tmp_path / "go").touch()
    wait_for((tmp_path / "writes").exists)
    assert changed(place, first) == {"model.bin": False}
    (tmp_path / "close").touch()
    wait_for((tmp_path / "closed").exists)
    (tmp_path / "runs" / "next.tmp").touch()
    assert changed(place, first) == {"model.bin": True, "next.tmp": False}
    (found,) = (
        each for each in find_changed(place, since=first["clocks"])["files"] if each["path"].endswith("model.bin")
    )
    assert (found["size"], found["root"]) == (10, str(tmp_path / "runs"))
    assert 0 < found["changed"] - first["clocks"][found["root"]] < 60


def test_the_usual_folders_are_searched_where_no_argument_names_one(place: Place, tmp_path: Path) -> None:
    place.prepare([sys.executable, "-c", ""], cwd=str(tmp_path))
    assert find_changed(place)["clocks"] == {}
    (tmp_path / "outputs").mkdir()
    assert list(find_changed(place)["clocks"]) == [str(tmp_path / "outputs")]
    (tmp_path / "checkpoints").mkdir()
    assert list(find_changed(place)["clocks"]) == [str(tmp_path / "checkpoints"), str(tmp_path / "outputs")]


def test_the_given_folder_is_searched_even_if_it_does_not_exist_yet(place: Place, tmp_path: Path) -> None:
    place.prepare([sys.executable, "-c", "", "--save-dir", "runs"], cwd=str(tmp_path))
    first = find_changed(place, folders=["mine"])
    assert list(first["clocks"]) == [str(tmp_path / "mine")]
    assert find_changed(place, folders=["no/such"])["clocks"] == {}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.pt").write_text("x")
    assert changed(place, first) == {"a.pt": True}


def test_logs_locks_and_folders_of_trackers_are_left_out(place: Place, tmp_path: Path) -> None:
    place.prepare([sys.executable, "-c", ""], cwd=str(tmp_path))
    (tmp_path / "runs" / "tensorboard").mkdir(parents=True)
    first = find_changed(place)
    for name in ("a.log", "b.jsonl", ".lock", "events.out.tfevents.1.x", "tensorboard/c.pt", "latest"):
        (tmp_path / "runs" / name).write_text("x")
    assert changed(place, first) == {"latest": True}


def test_a_last_step_is_read_from_the_logs(place: Place, tmp_path: Path) -> None:
    folder = place.prepare([sys.executable, "-c", ""], cwd=str(tmp_path))
    assert find_changed(place)["step"] is None
    (folder / job_files.OUTPUT).write_text("step=3 loss=1\nstep=4 loss=1\nsaved\n")
    assert find_changed(place)["step"] == 4

"""What torchrun starts for each rank, run after torchrun's substitution."""

from __future__ import annotations

import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.factories import make_job
from torchfab.launchers import torchrun_rank

SHOWS = 'echo "$0 $1"; echo err >&2; echo $$; exit 3'
PATH = {"PATH": "/usr/bin:/bin"}


def substituted(words: Sequence[str]) -> list[str]:
    """Return words as torchrun passes them on: each is a template of its own."""
    return [string.Template(word).safe_substitute(local_rank="1") for word in words]


SHOWS = 'echo "$0 $1"; echo err >&2; echo $$; exit 3'


@pytest.mark.parametrize("in_file", [False, True])
def test_the_rank_is_noted_and_its_streams_keep_their_order(tmp_path: Path, in_file: bool) -> None:
    path = tmp_path / "it's a; $folder"
    path.write_text(torchrun_rank.CODE)
    job = make_job(python=sys.executable, is_program=True, script=("sh", "-c", SHOWS, "a b", "$$x$local_rank"))
    option, *command = torchrun_rank.command(job, str(path) if in_file else "")
    folder = tmp_path / "logs" / "run" / "attempt_2" / "1"
    folder.mkdir(parents=True)
    env = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "TORCHELASTIC_RESTART_COUNT": "2", **PATH}
    env["TORCHELASTIC_ERROR_FILE"] = f"{folder}/error.json"
    done = subprocess.run(substituted(command), env=env, capture_output=True, text=True, check=False)
    assert (option, done.returncode, done.stderr) == ("--no-python", 3, "")
    *noted, pid = (tmp_path / "logs" / "ranks").read_text().split()
    assert noted == ["5", "1", "8", "2"]
    assert done.stdout.splitlines() == ["a b $$x$local_rank", "err", pid]


def test_without_a_folder_for_notes_a_script_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("import sys; print(sys.argv, sys.flags.isolated, sys.stdout.write_through)")
    command = torchrun_rank.command(make_job(python=sys.executable, script=("x.py", "-u")))[1:]
    done = subprocess.run(substituted(command), env=PATH, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['x.py', '-u'] 0 True\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["x.py"]


@pytest.mark.parametrize(("script", "name"), [(("train.py", "a"), "train.py"), (("-m", "pkg.train"), "pkg.train")])
def test_torchruns_report_names_the_script(script: tuple[str, ...], name: str) -> None:
    words = torchrun_rank.command(make_job(script=script), "/n/become_rank.py")
    assert words[:2] == ("--no-python", "/venv/bin/python")
    assert next(word for word in words[2:] if word[0] != "-") == name  # as torchrun's _get_entrypoint_name

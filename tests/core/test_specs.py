"""The central dataclasses, and the values that they reject."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from tests.factories import make_job, make_nodes
from tests.hostile import HOSTILE, texts
from tests.support import fuzzed
from torchfab.core.errors import JobNameError, UsageError
from torchfab.core.specs import NAME_PATTERN, NodePlan, Plan, Process, check_name, search_path, session_name, with_files


@pytest.mark.parametrize("name", ["a", "7", "gpt2", "GPT-2_small", "a" * 63, "a--", "0_"])
def test_letters_digits_dashes_and_underscores_are_valid_names(name: str) -> None:
    assert make_job(name=name).name == name


INVALID_NAMES = {
    **HOSTILE,
    **{text: text for text in ("-a", "_a", "a.b", "a:b", "a/b", "..", "a" * 64, "é", "a\n", "²")},
}


@pytest.mark.parametrize("name", [pytest.param(text, id=name) for name, text in INVALID_NAMES.items()])
def test_any_other_name_is_rejected(name: str) -> None:
    with pytest.raises(JobNameError) as caught:
        make_job(name=name)
    assert str(caught.value) == (
        "a job name is 1 to 63 letters, digits, '-' and '_', and begins with a letter or digit; "
        f"got {name!r}\n  fix: choose another --name"
    )


@fuzzed(texts())
def test_a_valid_name_is_safe_for_paths_shells_and_tmux(name: str) -> None:
    try:
        check_name(name)
    except JobNameError:
        return
    assert NAME_PATTERN.fullmatch(name)
    assert not set(name) & set("/.:;=$#'\" \n")


@pytest.mark.parametrize("port", [0, 1, 65535])
def test_a_valid_port_is_accepted(port: int) -> None:
    assert make_job(port=port).port == port


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_port_out_of_range_is_rejected(port: int) -> None:
    with pytest.raises(UsageError) as caught:
        make_job(port=port)
    assert str(caught.value) == f"--port must be a number from 1 to 65535, or 0 for a free one; got {port}"


def test_a_job_needs_a_script() -> None:
    with pytest.raises(UsageError, match="no script was given\n  fix: give it after --"):
        make_job(script=())


@pytest.mark.parametrize("workdir", ["", "work", "~/work", "./x"])
def test_a_relative_workdir_is_rejected(workdir: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_job(workdir=workdir)
    assert str(caught.value) == f"--workdir must be an absolute path, got {workdir!r}"


@pytest.mark.parametrize(
    ("script", "path"),
    [(("train.py",), "train.py"), (("-m", "pkg.train"), None), (("it's here/x.py",), "it's here/x.py")],
)
def test_a_module_has_no_script_path(script: tuple[str, ...], path: str | None) -> None:
    assert make_job(script=script).script_path == path


def test_a_job_is_immutable() -> None:
    job = make_job()
    with pytest.raises(FrozenInstanceError):
        job.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        job.env["A"] = "1"  # type: ignore[index]


def test_secrets_are_not_in_the_repr_of_a_job() -> None:
    assert "hunter2" not in repr(make_job(secrets={"HF_TOKEN": "hunter2"}))


def test_session_names_are_unique() -> None:
    names = {session_name(name, rank) for name in ("a", "a-node1", "a1") for rank in (0, 1, 11)}
    assert len(names) == 9


@pytest.mark.parametrize(
    ("python", "folders"),
    [
        ("/venv/bin/python", ("/own", "/venv/bin")),
        ("/usr/bin/python3", ("/own",)),
        ("python3", ("/own",)),
        ("bin/python", ("/own",)),
    ],
)
def test_the_interpreters_folder_follows_a_process_own_folders_on_path(python: str, folders: tuple[str, ...]) -> None:
    assert search_path(make_job(python=python), Process("agent", ("a",), path=("/own",))) == folders


def test_files_of_a_job_go_to_each_node_once_and_all_processes_know_their_folder() -> None:
    job = make_job(files={"call.py": "x", "lib/a.py": "y"})
    processes = (Process("rank-0", ("a",), {"A": "1"}, files={"own": "z"}), Process("rank-1", ("b",)))
    plan = Plan(job, (NodePlan(make_nodes("a")[0], "/jobs/x/node-0", processes),), 2)
    first, second = with_files(plan).nodes[0].processes
    assert dict(first.files) == {"own": "z", "files/call.py": "x", "files/lib/a.py": "y"}
    assert dict(first.env) == {"A": "1", "TORCHFAB_FILES": "/jobs/x/node-0/rank-0/files"}
    assert (dict(second.files), dict(second.env)) == ({}, {"TORCHFAB_FILES": "/jobs/x/node-0/rank-0/files"})
    without = Plan(make_job(), plan.nodes, 2)
    assert with_files(without) is without

"""`launch`: its arguments become what a command line gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import torchfab
from torchfab.api import launcher
from torchfab.cli.flags import LaunchFlags
from torchfab.core.errors import HostsFailedError, Interrupted, UsageError
from torchfab.launchers import per_gpu

torchfab_launch = torchfab.launch


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a launch gets; it is interrupted there, in a project of its own."""
    (tmp_path / "torchfab.yaml").write_text("records: records\nscript: [usual.py]\n")
    monkeypatch.chdir(tmp_path)
    got: list[Any] = []

    def stand_in(*args: Any) -> None:
        got.extend(args)
        raise Interrupted("here")

    monkeypatch.setattr(launcher, "launch_on_hosts", stand_in)
    monkeypatch.setattr(launcher, "submit", stand_in)
    return got


def test_a_launch_gets_flags_hosts_and_settings(given: list[Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        torchfab.launch(
            [Path("train.py"), "--lr", "3e-4"],
            hosts=["a", "b"],
            launcher="per-gpu",
            env={"A": "x y"},
            ssh_config=__file__,
            connect_timeout=3,
            name="gpt2",
        )
    module, flags, own, ctx = given
    assert (module, own) == (per_gpu, per_gpu.Flags())
    assert (flags.name, flags.env) == ("gpt2", ("A=x y",))
    assert (ctx.script, ctx.hosts, ctx.root, ctx.cwd) == (("train.py", "--lr", "3e-4"), "a,b", tmp_path, str(tmp_path))
    assert (ctx.settings.connect_timeout_s, ctx.settings.timeout_is_given) == (3, True)
    assert ctx.settings.ssh_config


def test_without_a_command_the_setting_counts(given: list[Any]) -> None:
    with pytest.raises(Interrupted):
        torchfab.launch()
    assert (given[-1].script, given[-1].hosts, given[-1].config["script"]) == (None, "", ["usual.py"])


def test_jobs_of_one_second_have_different_names(given: list[Any]) -> None:
    for _ in range(3):
        with pytest.raises(Interrupted):
            torchfab.launch(["src/train.py"])
    names = [each.name for each in given if isinstance(each, LaunchFlags)]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"train-\d{4}-\d{6}-[0-9a-f]{4}", name) for name in names)
    with pytest.raises(Interrupted):
        torchfab.launch(len, args=[""])
    assert re.fullmatch(r"len-\d{4}-\d{6}-[0-9a-f]{4}", given[-3].name)
    assert given[-1].script[:3] == ("python", "-u", "-c")


def test_a_single_path_is_a_command(given: list[Any]) -> None:
    with pytest.raises(Interrupted):
        torchfab.launch(Path("my train.py"))
    assert given[-1].script == ("my train.py",)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (
            "train.py --lr 3",
            "a list of words, got 'train.py --lr 3'\n  fix: launch(['train.py', '--lr', '3']",
        ),
        (["train.py", 3], "the command is a list of texts, got ['train.py', 3]"),
    ],
)
def test_a_command_is_a_list_of_texts(command: Any, text: str, given: list[Any]) -> None:
    with pytest.raises(UsageError) as caught:
        torchfab.launch(command)
    assert text in str(caught.value)
    assert given == []


def test_a_dry_run_is_a_text_and_starts_nothing(given: list[Any], tmp_path: Path) -> None:
    text = torchfab.dry_run(["train.py", "--lr", "1"], hosts=["a", "b"], nproc_per_node=2, port=5000, name="gpt2")
    assert text.startswith("# job: gpt2\n# nodes: 2 (a,b)\n")
    assert "ssh -- a bash -s" in text
    assert "#SBATCH --nodes=2\n" in torchfab.dry_run(["train.py"], launcher="slurm", nodes=2)
    assert given == []
    assert not (tmp_path / "records").exists()


def test_a_launch_with_supervise_starts_its_supervisor_in_tmux(
    given: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[Any] = []

    def stand_in(*args: Any) -> int:
        calls.append(args)
        raise Interrupted("here")

    monkeypatch.setattr("torchfab.commands.supervise.launch_supervised", stand_in)
    with pytest.raises(Interrupted):
        torchfab.launch(["x.py"], supervise=True, restarts=5, name="a")
    ((_, flags, _, _, fab),) = calls
    assert (flags.supervise, flags.restarts, flags.tmux, flags.name) == (True, 5, True, "a")
    assert fab[-2:] == ("-r", str(tmp_path))
    assert given == []


def test_a_scheduler_chooses_its_hosts(given: list[Any]) -> None:
    with pytest.raises(UsageError, match="launcher 'slurm' takes no hosts"):
        torchfab.launch(["x.py"], launcher="slurm", hosts="a")
    with pytest.raises(Interrupted):
        torchfab.launch(["x.py"], launcher="slurm", nodes=2)
    assert given


def test_a_file_that_does_not_exist_is_named(given: list[Any]) -> None:
    with pytest.raises(UsageError, match="there is no ssh config file /no/such"):
        torchfab.launch(["x.py"], ssh_config="/no/such")
    with pytest.raises(UsageError, match="/no/key: there is no such file"):
        torchfab.launch(["x.py"], identities=["/no/key"])
    assert given == []


def test_an_unreachable_host_is_an_exception_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torchfab.yaml").write_text("records: records\n")
    (tmp_path / "x.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HostsFailedError) as caught:
        torchfab.launch(["x.py"], hosts="no-such-host.invalid", name="a", connect_timeout=2)
    assert "1 of 1 hosts failed; nothing was started\n  no-such-host.invalid: " in str(caught.value)
    assert torchfab.jobs() == ()
    assert capsys.readouterr() == ("", "")


def test_the_function_stays_one_when_modules_below_are_imported() -> None:
    from torchfab import launch
    from torchfab.launching import launch as module

    assert launch is torchfab.launch is torchfab_launch
    assert module.__name__ == "torchfab.launching.launch"
    assert "launch" in dir(torchfab)
    with pytest.raises(AttributeError, match="module 'torchfab' has no attribute 'lunch'"):
        getattr(torchfab, "lunch")  # noqa: B009

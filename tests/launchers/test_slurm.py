"""launch-slurm: the flags, and the sbatch file, run by real shells."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import JOB_ID, make_job
from tests.hostile import HOSTILE, environments, texts
from tests.support import require
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import parse
from torchfab.core.specs import Job
from torchfab.launchers import sbatch, slurm, torchrun_agent, torchrun_rank

SET_UP = {"setup": "module load 'a'; true", "python_is_default": True, "before": "rsync -a x y", "env": {"A": "b"}}
FOLDER = f"/scratch/torchfab/jobs/{JOB_ID}"
# Programs that stand where Slurm's would: an allocation of two nodes, of which srun runs the second.
STUBS = {
    "scontrol": '[ "$2" = node ] && echo "NodeName=$3 NodeAddr=10.0.0.7 NodeX=1" || echo n1; echo n2',
    "srun": 'while [[ $1 == --* ]]; do shift; done; export SLURM_NODEID=1 SLURM_CPUS_ON_NODE=9; exec "$@"',
    "python": "import json, os, sys\nenv = {**os.environ, 'WHICH': sys.argv[0]}\n"
    "json.dump([sys.argv[1:], env], open(os.environ['OUT'], 'w'))",
}


def job_with(values: Mapping[str, Any] | None = None, **flags: Any) -> Job:
    return make_job(launcher="slurm", options=slurm.options(parse(slurm.Flags, flags)), **(values or {}))


def directives(**flags: Any) -> list[str]:
    text = slurm.plan(job_with(**flags)).text
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


# ---- the file


def full_job() -> Job:
    values = {
        "script": ("train.py", "--name", "my run", "--lr", "3e-4", "-x"),
        "env": {"NCCL_DEBUG": "INFO", "A": "b c"},
        "secrets": {"HF_TOKEN": "open sesame"},
        "workdir": "/project/a folder",
        "node_dir": "/project/a folder/.torchfab",
    }
    flags = {"partition": "gpu", "account": "lab", "qos": "high", "time": "1-12:00", "constraint": "a100&ib"}
    more = {
        "exclusive": True,
        "no_requeue": True,
        "job_name": "my first job",
        "sbatch_arg": ("--mem=0", "--overcommit"),
    }
    return job_with(values, nodes="2", gpus_per_node="a100:8", cpus_per_task="96", **flags, **more)


def test_the_whole_file_matches_the_golden_file(golden: Callable[[str, str], None]) -> None:
    golden("job-slurm.sbatch", slurm.plan(full_job()).text)


def test_the_file_passes_bash_and_shellcheck(tmp_path: Path) -> None:
    shellcheck = require("shellcheck")
    for name, job in {
        "full": full_job(),
        "least": job_with(),
        "hostile": job_with({"script": tuple(HOSTILE)}),
        "set-up": job_with(SET_UP),
    }.items():
        path = tmp_path / name
        path.write_text(slurm.plan(job).text, errors="surrogateescape")
        subprocess.run(("bash", "-n", path), check=True)
        done = subprocess.run((shellcheck, path), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_submission_has_what_the_runtime_needs_but_no_secrets() -> None:
    submission = slurm.plan(full_job())
    assert (submission.nodes, submission.world_size) == (2, 16)
    assert submission.details["folder"] == f"/project/a folder/.torchfab/jobs/{JOB_ID}"
    assert {"partition", "time", "mem", "output"} <= set(submission.details["options"])
    assert "open sesame" not in submission.text + json.dumps(dict(submission.details)) + str(submission.defaults)


@settings(max_examples=25)
@given(args=st.lists(texts(), max_size=6), env=environments(3))
def test_any_argv_and_environment_survives_the_file(args: list[str], env: dict[str, str]) -> None:
    assert_survives(args, env)


def test_every_hostile_text_survives_the_file() -> None:
    short = {name: text for name, text in HOSTILE.items() if len(text) < 1000}
    assert_survives(list(HOSTILE.values()), {f"V_{index}": text for index, text in enumerate(short.values())})


def assert_survives(args: list[str], env: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name, "it's a; $folder")
        base.mkdir()
        values = {"script": ("train.py", *args), "env": env, "secrets": {"A_TOKEN": "?"}, "workdir": str(base)}
        values.update(node_dir=str(base), python=str(base / "python"))
        argv, environ = run_file(slurm.plan(job_with(values, nodes="2")).text, base)
    options, script = argv[: argv.index("train.py")], argv[argv.index("train.py") + 1 :]
    assert [Template(word).safe_substitute(local_rank="0") for word in script] == args  # as torchrun does
    assert {name: environ[name] for name in env} == env
    assert environ["A_TOKEN"] == "open sesame"
    assert environ["OMP_NUM_THREADS"] == "4"
    node = f"{base}/jobs/{JOB_ID}/node-1/agent"
    assert environ["TORCHELASTIC_ERROR_FILE"] == f"{node}/errors/error.json"
    rendezvous = ("--rdzv-backend", "static", "--master-addr", "10.0.0.7", "--master-port", "13210")
    ranks = ("--nnodes", "2", "--node-rank", "1", "--nproc-per-node", "2")
    assert options == [
        "-c",
        torchrun_agent.CODE,
        *rendezvous,
        *ranks,
        "--redirects",
        "3",
        "--log-dir",
        f"{node}/logs",
        *torchrun_rank.command(job_with(values))[: -len(values["script"])],
    ]


def run_file(text: str, base: Path, more: Mapping[str, str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Run an sbatch file by bash with stubs for Slurm's programs; return python's argv and environment on node 1."""
    write_stubs(base)
    slurm_env = {"SLURM_JOB_ID": "1003210", "SLURM_JOB_NODELIST": "n[1-2]", "A_TOKEN": "open sesame"}
    env = {"PATH": f"{base}:{os.environ['PATH']}", "OUT": str(base / "out"), **slurm_env, **(more or {})}
    file = base / "job.sbatch"
    file.write_text(text, errors="surrogateescape")
    subprocess.run(("bash", file), env=env, check=True, timeout=30)
    argv, environ = json.loads((base / "out").read_text())
    return argv, environ


def write_stubs(base: Path) -> None:
    for program, body in STUBS.items():
        first = f"{sys.executable} -S" if program == "python" else "/bin/bash"
        path = base / program
        path.write_text(f"#!{first}\n{body}\n")
        path.chmod(0o700)


# ---- setup

LOADED = {
    "fish": "set -gx LOADED 'a  b'; set -gx A shell; set -gx PATH '{loaded}' $PATH; set -e GONE",
    "tcsh": "setenv LOADED 'a  b'; setenv A shell; setenv PATH '{loaded}':\"$PATH\"; unsetenv GONE",
}
LOADED_SH = "echo noise; export LOADED='a  b' A=shell PATH='{loaded}':\"$PATH\"; unset GONE"


def set_up(base: Path, shell: str, values: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Run the file of a job whose setup runs in a login shell; its job has A=job."""
    (base / "loaded").mkdir()
    shutil.copy(base / "python", base / "loaded" / "python")
    (base / "getent").write_text(f"#!/bin/sh\necho 'me:x:0:0::{base}:{require(shell)}'\n")
    (base / "getent").chmod(0o700)
    setup = LOADED.get(shell, LOADED_SH).format(loaded=base / "loaded")
    made: dict[str, Any] = {
        "workdir": str(base),
        "node_dir": str(base),
        "python": str(base / "python"),
        "env": {"A": "job"},
    }
    made |= {"setup": setup, "python_is_default": True, **values}
    text = slurm.plan(job_with(made, nodes="2")).text
    Path(slurm.job_folder(job_with(made))).mkdir(parents=True)
    return run_file(text, base, {"GONE": "1", "HOME": str(base)})


@pytest.fixture
def stubbed(tmp_path: Path) -> Path:
    base = tmp_path / "a; $folder"
    base.mkdir()
    write_stubs(base)
    return base


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh", "dash"])
def test_a_setup_runs_in_the_login_shell_of_the_node_and_its_interpreter_is_used(stubbed: Path, shell: str) -> None:
    argv, environ = set_up(stubbed, shell, {"script": ("train.py", *HOSTILE.values())})
    assert environ["LOADED"] == "a  b"
    assert environ["A"] == "job"  # --env overrides
    assert "GONE" not in environ
    assert "TORCHFAB_SETUP" not in environ
    assert environ["PATH"].startswith(f"{stubbed}/loaded:")
    assert environ["WHICH"] == f"{stubbed}/loaded/python"
    assert argv[argv.index("--no-python") + 1] == f"{stubbed}/loaded/python"
    script = argv[argv.index("train.py") + 1 :]
    assert [Template(word).safe_substitute(local_rank="0") for word in script] == list(HOSTILE.values())


def test_an_interpreter_that_was_named_stays_whatever_the_setup_loads(stubbed: Path) -> None:
    argv, environ = set_up(stubbed, "bash", {"python_is_default": False})
    assert environ["WHICH"] == f"{stubbed}/python"
    assert argv[argv.index("--no-python") + 1] == f"{stubbed}/python"


@pytest.mark.parametrize("values", [{"setup": "echo why; false"}, {"before": "echo why >&2; exit 3"}])
def test_a_setup_or_before_that_fails_starts_nothing(
    stubbed: Path, values: Mapping[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        set_up(stubbed, "bash", values)
    assert not (stubbed / "out").exists()
    assert "why" in capfd.readouterr().err


def test_the_commands_after_are_those_of_the_supervisor() -> None:
    spec = slurm.plan(job_with({"after": "rm -rf /scratch/me", "hook_timeout_s": 9.0})).details["spec"]
    assert (spec["after"], spec["after_timeout_s"]) == ("rm -rf /scratch/me", 9.0)


# ---- directives


@pytest.mark.parametrize("value", ["two words", 'say "x"', "it's", "a\\b", "# no comment", "a;b", "é 日本", "%j %x"])
def test_a_directive_is_one_word_for_sbatch(value: str) -> None:
    line = sbatch.directive("job-name", value)
    # sbatch takes backslashes and double quotes as shlex does (compared with a real sbatch in the integration tests)
    assert shlex.split(line.removeprefix("#SBATCH "), comments=True) == [f"--job-name={value}"]


@pytest.mark.parametrize("value", ["", "a\nb", "a\rb", "\x1b[m"])
def test_a_directive_accepts_one_line_of_text(value: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be .* in an sbatch file"):
        sbatch.directive("job-name", value)


def test_options_that_are_not_given_are_not_in_the_file() -> None:
    assert directives() == [
        "job-name=gpt2",
        "nodes=1",
        "ntasks-per-node=1",
        "signal=USR1@120",
        "requeue",
        "open-mode=append",
        f"output={FOLDER}/slurm.log",
        "chdir=/project",
        "export=ALL",
    ]


def test_a_percent_sign_in_the_folder_is_escaped() -> None:
    text = slurm.plan(job_with({"node_dir": "/scratch/100%j"})).text
    assert f"#SBATCH --output=/scratch/100%%j/jobs/{JOB_ID}/slurm.log" in text


def test_the_job_name_may_be_given_by_sbatch_arg() -> None:
    assert directives(sbatch_arg=("--job-name=my run", "--mem=64G", "--overcommit"))[0] == 'job-name="my run"'
    assert "overcommit" in directives(sbatch_arg=("--overcommit",))


@pytest.mark.parametrize(
    ("time", "grace", "said"),
    [
        ("", "", "120"),
        ("1:30:00", "", "120"),
        ("2", "", "60"),
        ("1", "", "30"),
        ("1-0", "600", "600"),
        ("UNLIMITED", "", "120"),
    ],
)
def test_the_signal_is_sent_between_start_and_time_limit(time: str, grace: str, said: str) -> None:
    assert f"signal=USR1@{said}" in directives(time=time, signal_grace=grace)


@pytest.mark.parametrize(
    ("gpus", "requested", "ranks", "threads"),
    [
        ("", "", 2, "SLURM_CPUS_ON_NODE / 2"),
        ("0", "4", 4, "SLURM_CPUS_ON_NODE / 4"),
        ("8", "", 8, "1"),
        ("h100:4", "2", 2, "1"),
    ],
)
def test_the_number_of_ranks_defaults_to_the_gpus(gpus: str, requested: str, ranks: int, threads: str) -> None:
    submission = slurm.plan(job_with(nodes="3", gpus_per_node=gpus, nproc_per_node=requested))
    assert submission.world_size == 3 * ranks
    assert f"--nproc-per-node {ranks} " in submission.text
    assert threads in submission.text
    assert ("#SBATCH --gpus-per-node" in submission.text) == (gpus not in ("", "0"))


def test_cores_are_requested_and_passed_to_srun() -> None:
    text = slurm.plan(job_with(cpus_per_task="12", port="5001", no_requeue=True, exclusive=True)).text
    assert "#SBATCH --cpus-per-task=12\n#SBATCH --exclusive\n" in text
    assert "srun --kill-on-bad-exit=1 --export=ALL --cpus-per-task 12 bash" in text
    assert "master_port=5001\n" in text
    assert "#SBATCH --no-requeue\n" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"nodes": "0"}, "--nodes must be a number from 1 to 100000, got '0'"),
        ({"nodes": "two"}, "--nodes must be a number from 1 to 100000, got 'two'"),
        ({"nproc_per_node": "0"}, "--nproc-per-node must be a number from 1 to 1024, got '0'"),
        ({"gpus_per_node": "a100"}, "--gpus-per-node must be N or TYPE:N, got 'a100'"),
        ({"cpus_per_task": "-1"}, "--cpus-per-task must be a number from 1 to 100000, got '-1'"),
        ({"time": "soon"}, "--time is a time limit as sbatch takes it, got 'soon'"),
        ({"time": "1:2:3:4"}, "--time is a time limit as sbatch takes it, got '1:2:3:4'"),
        ({"time": "1", "signal_grace": "60"}, "--signal-grace 60 s is not less than the time limit of 60 s"),
        ({"port": "70000"}, "--port must be a number from 1 to 65535, or 0 for one from Slurm's job id; got '70000'"),
        ({"sbatch_arg": ("mem=0",)}, "--sbatch-arg takes one option in its long form, got 'mem=0'"),
        ({"sbatch_arg": ("-N2",)}, "--sbatch-arg takes one option in its long form, got '-N2'"),
        ({"sbatch_arg": ("--nodes=3",)}, "--sbatch-arg cannot set --nodes"),
        ({"sbatch_arg": ("--array=1-3",)}, "--sbatch-arg cannot set --array"),
        ({"sbatch_arg": ("--output=x",)}, "--sbatch-arg cannot set --output"),
        ({"login": "a b"}, "--login: unknown key 'b' in 'b'"),
        ({"login": "n[1-2]"}, "--login names one host, got 'n[1-2]'"),
    ],
)
def test_an_invalid_flag_is_an_error_that_shows_its_value(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        slurm.options(parse(slurm.Flags, flags))
    assert caught.value.message == message


def test_a_folder_relative_to_the_home_folder_is_an_error() -> None:
    with pytest.raises(UsageError, match="sbatch takes absolute paths only"):
        slurm.plan(job_with({"node_dir": "~/.torchfab"}))

"""Environment variables: forwarded, secret, and those of torch.distributed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import HOSTILE, environments, texts
from tests.support import fuzzed
from torchfab.core import environment
from torchfab.core.errors import UsageError


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "my_secret", "AWS_SECRET_ACCESS_KEY", "Password", "DB_PASSWD", "X_CREDENTIALS"],
)
def test_secrets_are_recognized_by_name(name: str) -> None:
    assert environment.is_secret(name)


@pytest.mark.parametrize("name", ["NCCL_DEBUG", "HF_HOME", "PATH", "PASS", ""])
def test_other_names_are_not_secret(name: str) -> None:
    assert not environment.is_secret(name)


def test_an_environment_is_split_into_public_and_secret() -> None:
    env = {"HF_HOME": "/hf", "HF_TOKEN": "t", "A": ""}
    assert environment.split_secrets(env) == ({"HF_HOME": "/hf", "A": ""}, {"HF_TOKEN": "t"})
    assert env == {"HF_HOME": "/hf", "HF_TOKEN": "t", "A": ""}


@given(environments(), st.lists(st.sampled_from(["X_TOKEN", "MY_KEY"])))
def test_splitting_loses_nothing(env: dict[str, str], more: list[str]) -> None:
    whole = {**env, **dict.fromkeys(more, "s")}
    shown, secret = environment.split_secrets(whole)
    assert {**shown, **secret} == whole
    assert not set(shown) & set(secret)


def test_only_names_that_match_a_pattern_are_forwarded_sorted() -> None:
    environ = {"NCCL_Z": "1", "NCCL_A": "2", "nccl_b": "3", "HOME": "/h", "PATH": "/p", "https_proxy": "x", "NCCL": "4"}
    assert environment.select_forwarded(environ, ["NCCL_*", "*_proxy"]) == {
        "NCCL_A": "2",
        "NCCL_Z": "1",
        "https_proxy": "x",
    }


def test_exported_shell_functions_are_not_forwarded() -> None:
    assert environment.select_forwarded({"BASH_FUNC_x%%": "() { :; }", "1A": "", "A-B": "", "": ""}, ["*"]) == {}


@fuzzed(st.dictionaries(texts(), texts(), max_size=5), st.lists(texts(), max_size=3))
def test_forwarding_does_not_change_values(environ: dict[str, str], patterns: list[str]) -> None:
    assert environment.select_forwarded(environ, patterns).items() <= environ.items()


@pytest.mark.parametrize("value", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_an_env_value_is_all_after_the_first_equals_sign(value: str) -> None:
    assert environment.parse_env_flags([f"A={value}", "B=2"]) == {"A": value, "B": "2"}


def test_the_last_env_flag_of_a_name_counts() -> None:
    assert environment.parse_env_flags(["A=1", "B=2", "A=3"]) == {"A": "3", "B": "2"}


def test_a_value_that_seems_to_hold_a_second_variable_is_noted_without_its_value() -> None:
    plain = [
        "KMP_AFFINITY=granularity=fine,compact",
        "R=service.name=x,team=y",
        "NCCL_IB_HCA==mlx5_0,mlx5_1",
        "A=,",
        "B",
    ]
    assert environment.joined_pairs(plain) == []
    assert environment.joined_pairs(["TOKEN=s3,LOG_LEVEL=2", "C=1"]) == [
        (
            "--env TOKEN: its value has a comma and LOG_LEVEL= in it; to set two variables: "
            "--env TOKEN=VALUE --env LOG_LEVEL=VALUE"
        )
    ]


def test_an_env_flag_without_equals_sign_is_rejected() -> None:
    with pytest.raises(UsageError) as caught:
        environment.parse_env_flags(["A=1", "NCCL_DEBUG"])
    assert str(caught.value) == "--env expects NAME=VALUE, got 'NCCL_DEBUG'\n  fix: --env NCCL_DEBUG=VALUE"


@pytest.mark.parametrize("pair", ["=x", "1A=x", "A-B=x", "A B=x", "é=x", "A;id=x", "BASH_FUNC_x%%=x", "A=\0"])
def test_an_invalid_variable_name_is_rejected(pair: str) -> None:
    with pytest.raises(UsageError, match=r"^--env: .* cannot name an environment variable"):
        environment.parse_env_flags([pair])


@pytest.mark.parametrize(
    ("processes", "gpus", "cpus", "expected"),
    [(8, 8, 96, "1"), (2, 0, 16, "8"), (3, 0, 16, "5"), (2, 0, 1, "1"), (2, 0, 0, "1"), (1, 0, 7, "7"), (0, 0, 4, "4")],
)
def test_omp_threads_are_one_with_gpus_else_a_share_of_cores(
    processes: int, gpus: int, cpus: int, expected: str
) -> None:
    assert environment.omp_threads(processes, gpus, cpus) == {"OMP_NUM_THREADS": expected}


def test_rank_variables_equal_those_of_torchrun() -> None:
    assert environment.rank_variables(5, 1, 8, 4, "node1", 29400) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29400",
    }


def test_visible_devices_are_set_only_where_named() -> None:
    assert environment.visible_devices(("2", "GPU-1")) == {"CUDA_VISIBLE_DEVICES": "2,GPU-1"}
    assert environment.visible_devices(()) == {}


def test_marks_name_the_job_and_the_node() -> None:
    assert environment.job_markers("gpt2-01", 3) == {"TORCHFAB_JOB_ID": "gpt2-01", "TORCHFAB_NODE_RANK": "3"}


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("RANK", "leave it out"),
        ("LOCAL_RANK", "leave it out"),
        ("WORLD_SIZE", "--nproc-per-node"),
        ("LOCAL_WORLD_SIZE", "--nproc-per-node"),
        ("MASTER_ADDR", "--master-addr"),
        ("MASTER_PORT", "--port"),
        ("PET_STANDALONE", "the launcher's own flag"),
        ("TORCHELASTIC_RESTART_COUNT", "leave it out"),
        ("TORCHFAB_JOB_ID", "leave it out"),
    ],
)  # fmt: skip
def test_a_variable_that_the_launcher_sets_is_refused(name: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        environment.parse_env_flags([f"{name}=3"])
    assert caught.value.message.startswith(f"--env {name}: ")
    assert fix in caught.value.fix
    assert environment.select_forwarded({name: "3"}, ["*"]) == {}


def test_a_name_without_a_value_has_the_value_of_this_terminal() -> None:
    assert environment.parse_env_flags(["A", "B=2"], {"A": "1"}) == {"A": "1", "B": "2"}


def test_variables_that_matter_and_are_not_forwarded_are_named() -> None:
    environ = {"LD_LIBRARY_PATH": "/x", "HOME": "/root", "TRITON_CACHE_DIR": "/y", "CUDA_HOME": "/z", "PET_X": "1"}
    assert environment.not_forwarded(environ, {"TRITON_CACHE_DIR"}) == ["CUDA_HOME", "LD_LIBRARY_PATH"]


# ---- setup commands


@pytest.mark.parametrize(
    "text",
    [
        "export HF_TOKEN=hf_123",
        "module load cuda && export WANDB_API_KEY='x y'",
        "setenv MY_SECRET x",
        "set -gx DB_PASSWORD x",
        "A=1 B_TOKEN=2abc true",
        "module load x\nMY_KEY=abc",
    ],
)
def test_a_secret_in_a_setup_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--setup contains the value of \w+, which records and dry runs would show"):
        environment.check_setup(text, "--setup")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "module load cuda; source ~/venv/bin/activate",
        "export HF_TOKEN=$(cat ~/.hf)",
        "export HF_TOKEN=`cat ~/.hf` A=1",
        "setenv MY_KEY $OTHER",
        "set -gx MY_KEY (cat ~/.key)",
        "export TOKENIZERS_PARALLELISM=false; MY_KEYS=; export API_KEY_FILE='/etc/key'",
        "ssh-add ~/.ssh/MY_KEY=",
    ],
)
def test_a_setup_that_reads_secrets_is_fine(text: str) -> None:
    assert environment.check_setup(text, "--setup") == text

"""What the words after `--` run: scripts, modules, code, shell scripts, programs, other launchers."""

from __future__ import annotations

import pytest

from tests.hostile import texts
from tests.support import fuzzed
from torchfab.core import command
from torchfab.core.command import Command, Look
from torchfab.core.errors import UsageError

FILES = {
    "train.py": Look(),
    "run.sh": Look(("/bin/bash",)),
    "plain.sh": Look(),
    "job": Look(("/bin/bash", "-e"), True),
    "tool": Look(("/usr/bin/env", "python3"), True),
    "data": Look(),
    "./job": Look(("/bin/bash", "-e"), True),
}


def test_a_file_that_is_no_script_is_refused() -> None:
    with pytest.raises(UsageError, match=r"notes\.md is not a Python script .*\n  fix: chmod \+x notes\.md if"):
        command.parse(("notes.md", "a"), {"notes.md": Look()}.get)
    assert command.parse(("notes.md",), {"notes.md": Look((), True)}.get) == Command(("./notes.md",), True)


def parse(line: str) -> Command:
    return command.parse(line.split(), FILES.get)


@pytest.mark.parametrize(
    ("line", "script"),
    [
        ("train.py --lr 3", "train.py --lr 3"),
        ("-m pkg.train a", "-m pkg.train a"),
        ("python train.py a", "train.py a"),
        ("python3 -u train.py", "train.py"),
        ("python -m pkg.train", "-m pkg.train"),
        ("tool a", "tool a"),
        ("data", "data"),
        ("src/train.py", "src/train.py"),
    ],
)  # fmt: skip
def test_the_training_interpreter_runs_it(line: str, script: str) -> None:
    assert parse(line) == Command(tuple(script.split()))


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("-c print(1) a", "python -u -c print(1) a"),
        ("python -O train.py", "python -u -O train.py"),
        ("python -X dev -m pkg", "python -u -X dev -m pkg"),
        ("run.sh a", "/bin/bash run.sh a"),
        ("plain.sh", "bash plain.sh"),
        ("elsewhere.sh", "bash elsewhere.sh"),
        ("job a", "./job a"),
        ("./job a", "./job a"),
        ("bash run.sh a", "bash run.sh a"),
        ("nvidia-smi -L", "nvidia-smi -L"),
        ("lightning fit", "lightning fit"),
        ("accelerate launch train.py a", "accelerate launch --num_processes 1 --num_machines 1 train.py a"),
        (
            "python -m accelerate.commands.launch --mixed_precision bf16 -m pkg --num_processes 4",
            "accelerate launch --num_processes 1 --num_machines 1 --mixed_precision bf16 -m pkg --num_processes 4",
        ),
        (
            "-m accelerate.commands.accelerate_cli launch train.py",
            "accelerate launch --num_processes 1 --num_machines 1 train.py",
        ),
        ("accelerate-launch --cpu train.py", "accelerate-launch --num_processes 1 --num_machines 1 --cpu train.py"),
        ("/v/bin/accelerate launch train.py", "/v/bin/accelerate launch --num_processes 1 --num_machines 1 train.py"),
    ],
)  # fmt: skip
def test_it_runs_as_it_stands(line: str, whole: str) -> None:
    assert parse(line) == Command(tuple(whole.split()), True)


def test_an_interpreter_with_a_path_is_that_of_the_job() -> None:
    assert parse("/venv/bin/python3 train.py") == Command(("train.py",), python="/venv/bin/python3")
    assert parse("python3.10 -m pkg") == Command(("-m", "pkg"), python="python3.10")


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("torchrun --nproc_per_node 2 --standalone train.py a", "fab launch-per-node --nproc-per-node 2 -- train.py a"),
        ("torchrun --nproc-per-node=gpu --nnodes 2 train.py", "fab launch-per-node -- train.py"),
        ("torchrun --nnodes=2 -m pkg", "fab launch-per-node -- -m pkg"),
        ("python -m torch.distributed.run --nproc-per-node=2 a.py", "fab launch-per-node --nproc-per-node 2 -- a.py"),
        ("deepspeed --num_gpus 2 train.py", "fab launch-deepspeed --nproc-per-node 2 -- train.py"),
        ("colossalai run --nproc_per_node 8 --master_port 29 t.py", "fab launch-colossalai --nproc-per-node 8 -- t.py"),
        ("mpirun -n 4 python train.py", "fab launch-mpi -- train.py"),
        ("srun -N 2 python train.py", "fab launch-slurm -- train.py"),
        ("accelerate launch --multi_gpu train.py", "-- accelerate launch train.py"),
        ("accelerate launch --cpu --num_processes 8 --machine-rank=1 a.py 8", " 8 -- accelerate launch --cpu a.py 8"),
        ("accelerate launch --num_processes=8 --num_machines 2 a.py", "fab launch-per-node --nproc-per-node 4 -- acc"),
        ("accelerate launch --num_processes 7 --num_machines 2 a.py", "omit it: -- accelerate launch a.py"),
        ("accelerate launch --num_processes 0 a.py", "omit it: -- accelerate launch a.py"),
        ("accelerate launch --num_processes $N a.py", "omit it: -- accelerate launch a.py"),
        ("accelerate launch --use_fsdp train.py", "run the script itself"),
        ("accelerate launch --config_file fsdp.yaml train.py", "run the script itself"),
        ("fabric run --devices 2 train.py --lr 3", "fab launch-per-node --nproc-per-node 2 -- train.py --lr 3"),
        ("lightning run model --num-nodes=2 train.py", "fab launch-per-node -- train.py"),
    ],
)  # fmt: skip
def test_what_would_launch_twice_is_refused_with_the_right_line(line: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line)
    assert fix in caught.value.fix


@pytest.mark.parametrize("line", ["python", "python -u", "--lr 3"])
def test_a_command_without_a_script_is_refused(line: str) -> None:
    with pytest.raises(UsageError):
        parse(line)


@pytest.mark.parametrize(
    ("line", "script"),
    [
        ("train.py a", "train.py a"),
        ("python -u train.py a", "train.py a"),
        ("python3 -m pkg.train", "-m pkg.train"),
        ("bash run.sh a", "run.sh a"),
        ("bash -c x", "bash -c x"),
        ("accelerate launch --mixed_precision bf16 train.py a", "train.py a"),
        ("/v/bin/accelerate-launch train.py", "train.py"),
        ("python -m accelerate.commands.launch train.py", "train.py"),
        ("nvidia-smi -L", "nvidia-smi -L"),
        ("python", "python"),
    ],
)  # fmt: skip
def test_a_job_is_named_by_its_script(line: str, script: str) -> None:
    assert command.script_words(line.split()) == tuple(script.split())


def test_the_file_that_nodes_need_is_known() -> None:
    assert command.checked_file(("bash", "run.sh")) == "run.sh"
    assert command.checked_file(("./job", "a")) == "./job"
    assert command.checked_file(("bash", "-c", "x.sh")) == ""
    assert command.checked_file(("nvidia-smi",)) == ""


@fuzzed(texts())
def test_any_word_is_parsed_or_refused(word: str) -> None:
    try:
        assert command.parse((word, "a"), FILES.get).script
        assert command.script_words((word, "a"))
    except UsageError:
        pass


# ---- words for a shell, and launchers behind other programs


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (["A=1", "B=x y", "python", "train.py"], "A=1 is a shell's way", "--env A=1 --env 'B=x y' -- python train.py"),
        (["A=1"], "A=1 is a shell's way to set a variable", "--env A=1 -- train.py"),
        (
            ["python train.py --lr 3"],
            "'python train.py --lr 3' is one word",
            "write its words: -- python train.py --lr 3",
        ),
        (["cd x && python a.py"], "is one word, and no shell", "name the shell: -- bash -c 'cd x && python a.py'"),
        (["python 'train.py"], "is one word", "write its words without quotes around them all"),
        (["nohup", "python", "train.py", "&"], "& behind the command", "jobs run in the background anyway"),
        (["HF_TOKEN=hf_1", "python", "a.py"], "HF_TOKEN is a shell's way", "--env HF_TOKEN -- python a.py"),
        (["-m"], "-m needs a module behind it", "-- -m package.train"),
        (["-c"], "-c needs code behind it", "for example"),
        (["python", "-m"], "-m needs a module behind it", "for example"),
        (["nb.ipynb"], "nb.ipynb is a notebook", "jupyter nbconvert --to script nb.ipynb"),
    ],
)
def test_words_that_only_a_shell_would_read_are_refused_with_the_line_to_write(
    words: list[str], problem: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        command.parse(words, FILES.get)
    assert problem in caught.value.message
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    "line",
    [
        "env A=1 torchrun --nproc-per-node 8 t.py",
        "env -u B A=1 torchrun t.py",
        "nohup torchrun t.py",
        "time torchrun t.py",
        "timeout -k 5 3600 torchrun t.py",
        "taskset 0xff torchrun t.py",
        "numactl -N 0 -m 0 torchrun t.py",
        "xvfb-run -a torchrun t.py",
        "sudo -E torchrun t.py",
        "uv run torchrun t.py",
        "uv run --with x torchrun t.py",
        "poetry run python -m torch.distributed.run t.py",
        "conda run -n x torchrun t.py",
        "uv run env A=1 nohup torchrun t.py",
    ],
)
def test_a_launcher_behind_other_programs_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match=r"would start ranks inside every rank\n  fix: omit it: .*-- t\.py"):
        parse(line)


@pytest.mark.parametrize(
    "text", ["torchrun t.py", "cd x && exec torchrun t.py", "A=1 torchrun t.py", "x; torchrun t.py"]
)
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_launcher_in_the_code_of_a_shell_is_refused(shell: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"^torchrun would start ranks"):
        command.parse((shell, "-c", text), FILES.get)


@pytest.mark.parametrize(
    "line",
    ["env A=1 python train.py", "uv run train.py", "numactl -N 0 python train.py", "conda run -n x python train.py"],
)
def test_other_programs_run_as_they_stand(line: str) -> None:
    assert parse(line) == Command(tuple(line.split()), True)


def test_a_file_may_have_blanks_or_an_equals_sign_in_its_name() -> None:
    assert command.parse(("my train.py",), {"my train.py": Look()}.get) == Command(("my train.py",))
    assert command.parse(("train.py", "&", "|", "a=b"), FILES.get) == Command(("train.py", "&", "|", "a=b"))
    assert command.parse(("a=b.py", "&c"), {"a=b.py": Look()}.get) == Command(("a=b.py", "&c"))

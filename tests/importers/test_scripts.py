"""Batch and shell scripts: which command line they become, and what of them is not carried over."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.hostile import HOSTILE
from tests.importers.factories import command, notes, read
from tests.support import fuzzed, refusal
from torchfab import importers
from torchfab.core.errors import UsageError
from torchfab.importers.draft import render

SLURM = r"""
#!/bin/bash
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1          # one task per node
#SBATCH --cpus-per-task=96
#SBATCH --gres=gpu:8
#SBATCH --time=0:10:00
#SBATCH --exclusive
#SBATCH -p big
#SBATCH --mem=0
#SBATCH --output=%x-%j.out
##SBATCH --account=none

set -eo pipefail
source /data/venvs/llm/bin/activate
LOG=main.txt
GPUS_PER_NODE=8
NNODES=$SLURM_NNODES
MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)
LAUNCHER="python -u -m torch.distributed.run \
    --nproc_per_node $GPUS_PER_NODE \
    --nnodes $NNODES \
    --rdzv_endpoint $MASTER_ADDR:6000 \
    --rdzv_backend c10d \
    --max_restarts 0 \
    --role `hostname -s`: \
    --tee 3 \
    "
PROGRAM="train.py --lr 3e-4 --name 'a b' "
export CMD="$LAUNCHER $PROGRAM"
export NCCL_DEBUG=INFO
export WANDB_API_KEY=0123456789
export LD_LIBRARY_PATH=/opt/efa/lib:$LD_LIBRARY_PATH
SRUN_ARGS=" \
    --wait=60 \
    --kill-on-bad-exit=1 \
    "
srun $SRUN_ARGS --jobid $SLURM_JOB_ID bash -c "$CMD" 2>&1 | tee -a $LOG
"""


def test_a_script_of_torchrun_below_srun_becomes_launch_slurm() -> None:
    draft = read(SLURM.lstrip())
    assert draft.title == "a batch script of Slurm"
    assert command(draft) == [
        *("launch-slurm", "--nodes=2", "--gpus-per-node=8", "--job-name=pretrain", "--cpus-per-task=96"),
        *("--time=0:10:00", "--exclusive", "--partition=big", "--sbatch-arg=--mem=0"),
        *("--python=/data/venvs/llm/bin/python", "--env=NCCL_DEBUG=INFO"),
        *("--", "train.py", "--lr", "3e-4", "--name", "a b"),
    ]
    found = notes(draft)
    assert found["11: #SBATCH --output %x-%j.out"].startswith("fab keeps the logs")
    assert found["33: LD_LIBRARY_PATH=/opt/efa/lib:$LD_LIBRARY_PATH"].startswith("it extends the node's own value")
    assert found["38: --tee 3"].startswith("fab keeps the logs")
    assert found["38: srun --wait 60"] == "fab starts the ranks without srun's options"
    assert found["16: LOG=main.txt"] == "not exported, and not part of the command"
    assert "38: tee -a $LOG" in found


def test_the_value_of_a_secret_is_shown_nowhere() -> None:
    text = "#!/bin/sh\nHF_TOKEN=0123456789\nA_KEY=0123456789 torchrun x.py\nlogin --token $HF_TOKEN\n"
    for script in (SLURM, text):
        assert "0123456789" not in render(importers.read(script, "x"), "x")


def test_every_line_is_carried_over_or_listed() -> None:
    lines = (
        "set -x",
        "module load cuda",
        "conda activate llm",
        "./prepare.sh",
        "torchrun a.py",
        "torchrun b.py",
        "rm x",
    )
    text = "\n".join(("#!/bin/sh", *lines))
    found = notes(read(text))
    assert sorted(int(key.partition(":")[0]) for key in found) == [2, 3, 4, 5, 7, 8]
    assert found["4: conda activate llm"].endswith("--python /path/to/env/bin/python")
    assert found["7: torchrun b.py"] == "a second launch command: only the first one is converted"


LAUNCHES: dict[str, tuple[str, list[str]]] = {
    "torchrun": (
        "torchrun --nnodes=2 --nproc-per-node=4 a.py --x 1",
        ["launch-per-node", "--nodes=2", "--nproc-per-node=4", "--", "a.py", "--x", "1"],
    ),
    "an elastic torchrun": (
        "torchrun --nnodes=1:4 --max-restarts=3 --nproc-per-node=auto a.py",
        ["launch-per-node", "--max-restarts=3", "--nnodes=1:4", "--", "a.py"],
    ),
    "a module": ("torchrun --standalone -m pkg.train --x", ["launch-per-node", "--", "-m", "pkg.train", "--x"]),
    "an interpreter": (
        "/opt/py/bin/python3.11 -u train.py",
        ["launch-per-node", "--python=/opt/py/bin/python3.11", "--", "train.py"],
    ),
    "variables before it": ("A=1 B='2 3' torchrun a.py", ["launch-per-node", "--env=A=1", "--env=B=2 3", "--", "a.py"]),
    "a directory": ("cd /work/x && torchrun a.py", ["launch-per-node", "--workdir=/work/x", "--", "a.py"]),
    "accelerate": (
        "accelerate launch --num_machines 2 --num_processes 16 --mixed_precision bf16 a.py",
        ["launch-per-node", "--nodes=2", "--nproc-per-node=8", "--env=ACCELERATE_MIXED_PRECISION=bf16", "--", "a.py"],
    ),
    "deepspeed": (
        "deepspeed --hostfile=h --num_nodes 2 --num_gpus 8 --master_port 6000 a.py --deepspeed",
        [
            *("launch-deepspeed", "--nodes=2", "--nproc-per-node=8", "--hostfile=h", "--port=6000", "--local-rank"),
            *("--", "a.py", "--deepspeed"),
        ],
    ),
    "mpirun": (
        "mpirun -np 8 -H a:4,b:4 -mca btl ^openib -x NCCL_DEBUG=INFO python a.py",
        ["-H", "a,b", "launch-mpi", "--nproc-per-node=4", "--env=NCCL_DEBUG=INFO", "--", "a.py"],
    ),
    "a program of mpirun": (
        "mpirun -ppn 4 -hosts a,b ./waves --n 3 'x y'",
        ["-H", "a,b", "launch-mpi", "--nproc-per-node=4", "--", "./waves", "--n", "3", "x y"],
    ),
    "ssh in a loop": (
        'for h in a b; do\n  ssh -p 22 $h "cd /w; torchrun --nnodes 2 a.py" &\ndone\n',
        ["launch-per-node", "--nodes=2", "--workdir=/w", "--", "a.py"],
    ),
    "a wrapper": ("numactl --interleave=all torchrun a.py", ["launch-per-node", "--", "a.py"]),
    "runners": (
        "conda run -n deepspeed --no-capture-output torchrun --nproc_per_node 2 a.py",
        ["launch-per-node", "--nproc-per-node=2", "--", "a.py"],
    ),
    "a script of uv": ("uv run --extra gpu train.py --x", ["launch-per-node", "--", "train.py", "--x"]),
    "a container": (
        "docker run --rm -e A=1 -v $PWD:/w image:1 torchrun a.py",
        ["launch-per-node", "--env=A=1", "--", "a.py"],
    ),
    "a wrapper with values": (
        "nohup timeout -s INT 60 env -u X A=1 torchrun a.py &",
        ["launch-per-node", "--env=A=1", "--", "a.py"],
    ),
    "pdsh": (
        'pdsh -w n[1-2] "cd /w; torchrun --nnodes 2 a.py"',
        ["launch-per-node", "--nodes=2", "--workdir=/w", "--", "a.py"],
    ),
    "an array": (
        'ARGS=(\n  --lr 3e-4   # the rate (isn\'t it)\n  --name "a b"\n)\nARGS+=(--n 3)\ntorchrun a.py "${ARGS[@]}"',
        ["launch-per-node", "--", "a.py", "--lr", "3e-4", "--name", "a b", "--n", "3"],
    ),
    "an array without quotes": (
        "A=(--nproc_per_node 8 --nnodes 2)\nB=(--x 1)\ntorchrun ${A[@]} a.py ${B[*]} ${B[1]} $B",
        ["launch-per-node", "--nodes=2", "--nproc-per-node=8", "--", "a.py", "--x", "1", "1", "--x"],
    ),
    "an array in a text": (
        'A=(a.py --x)\nCMD="torchrun ${A[@]} 1"\n$CMD',
        ["launch-per-node", "--", "a.py", "--x", "1"],
    ),
    "escapes": ('torchrun a.py $\'a\\tb\\\'c\' $"d" "^e$"', ["launch-per-node", "--", "a.py", "a\tb'c", "d", "^e$"]),
    "a preparation before it": (
        "cd /a\npython prepare.py $D\ncd /b\nsource /v/bin/activate\ntorchrun a.py",
        ["launch-per-node", "--workdir=/b", "--python=/v/bin/python", "--", "a.py"],
    ),
    "an end after it": ("cd /a\npython a.py\ncd /b", ["launch-per-node", "--workdir=/a", "--", "a.py"]),
    "a here-document for a shell": (
        "cat <<EOF >x\ntorchrun no.py\nEOF\nssh n2 bash -s <<-'EOF'\n\tcd /w\n\ttorchrun a.py\n\tEOF\n",
        ["launch-per-node", "--workdir=/w", "--", "a.py"],
    ),
    "a here-document for sbatch": (
        "N=2\nsbatch <<EOF\n#!/bin/sh\n#SBATCH -N $N\nsrun torchrun --nnodes \\$SLURM_NNODES a.py $N\nEOF\n",
        ["launch-slurm", "--nodes=2", "--", "a.py", "2"],
    ),
    "blanks after a backslash": (
        "torchrun \\  \n  --nproc_per_node 2 a.py",
        ["launch-per-node", "--nproc-per-node=2", "--", "a.py"],
    ),
    "quoted arguments": (
        "torchrun a.py --split 'type:transformer|embedding'",
        ["launch-per-node", "--", "a.py", "--split", "type:transformer|embedding"],
    ),
}


@pytest.mark.parametrize(("line", "expected"), LAUNCHES.values(), ids=LAUNCHES)
def test_the_command_that_launches_is_understood(line: str, expected: list[str]) -> None:
    assert command(read(f"#!/bin/bash\n{line}\n")) == expected


SBATCH: dict[str, tuple[str, list[str]]] = {
    "tasks and GPUs per task": ("--ntasks=4\n#SBATCH --gpus-per-task=8", ["--nodes=4", "--gpus-per-node=8"]),
    "tasks per node": ("-n 16 --ntasks-per-node=8 --gpus-per-node=8", ["--nodes=2", "--gpus-per-node=8"]),
    "GPUs of a type": ("-N2 --gres=gpu:a100:4", ["--nodes=2", "--gpus-per-node=a100:4"]),
    "GPUs in all": ("-N 2 -G 16", ["--nodes=2", "--gpus-per-node=8"]),
    "other resources": ("-N1 --gres=craynetwork:0", ["--nodes=1"]),
    "a signal": ("--signal=USR1@90", ["--signal-grace=90"]),
    "other options": ("-w n[1-2] --reservation r", ["--sbatch-arg=--nodelist=n[1-2]", "--sbatch-arg=--reservation=r"]),
    "a directory": ("-D /work/x --no-requeue", ["--workdir=/work/x", "--no-requeue"]),
}


@pytest.mark.parametrize(("options", "flags"), SBATCH.values(), ids=SBATCH)
def test_options_of_sbatch_become_flags(options: str, flags: list[str]) -> None:
    words = command(read(f"#!/bin/sh\n#SBATCH {options}\nsrun torchrun a.py\n"))
    assert words[1 : words.index("--")] == flags


def test_directives_after_the_first_command_have_no_effect() -> None:
    draft = read("#!/bin/sh\n#SBATCH --nodes=2\n\n# a comment\necho\n#SBATCH --nodes=4\nsrun torchrun a.py\n")
    assert command(draft) == ["launch-slurm", "--nodes=2", "--", "a.py"]
    assert notes(draft)["6: #SBATCH --nodes 4"] == "sbatch reads no directive after the first command"


def test_directives_without_a_value_are_noted() -> None:
    text = "#!/bin/sh\n#SBATCH --nodes=\n#SBATCH --time =\n#SBATCH --partition==\n#SBATCH --mem=\ntorchrun a.py\n"
    draft = read(text)
    assert command(draft) == ["launch-slurm", "--", "a.py"]
    assert set(notes(draft).values()) == {"it has no value: write one, or leave it out"}
    assert len(notes(draft)) == 4


def test_options_of_sbatch_in_a_shorter_form_and_of_other_parts() -> None:
    options = "--out=x --err y --part=p -N 1-2 --tasks-per-node=1"
    draft = read(f"#!/bin/sh\n#SBATCH {options}\n#SBATCH hetjob\n#SBATCH -N 4\ntorchrun a.py\n")
    assert command(draft) == ["launch-slurm", "--nodes=1", "--partition=p", "--", "a.py"]
    found = notes(draft)
    assert found["2: #SBATCH --nodes 1-2"] == "fab submits with one number of nodes: the smallest one"
    assert found["4: #SBATCH --nodes 4"] == "another part of the job: fab submits the first one"
    assert found["2: #SBATCH --error y"].startswith("fab keeps the logs")


def test_what_is_left_out_around_the_command_is_noted() -> None:
    assert notes(read("#!/bin/sh\nsrun apptainer exec --nv x.sif torchrun a.py\n")) == {
        "2: apptainer exec --nv x.sif": "ranks run on the nodes themselves, not in a container"
    }
    assert "2: pdsh -w n[1-2]" in notes(read('#!/bin/sh\npdsh -w n[1-2] "torchrun a.py"\n'))
    assert notes(read("#!/bin/sh\ntorchrun \\ \n a.py\n")) == {
        "2: blanks after the backslash": "read as a line that goes on; a shell would end it here"
    }


def test_arguments_of_the_script_and_unknown_arrays_stay_open() -> None:
    text = render(read('#!/bin/sh\ntorchrun a.py $1 "${X[@]}"\n'), "x")
    assert "# to fill in: $1: an argument of the script; write its value\n" in text
    assert "# to fill in: ${X[@]}: the file does not set it; write its values\n" in text


def test_control_characters_are_escaped_in_the_command() -> None:
    assert render(read("#!/bin/sh\ntorchrun 'a\x1b[2J.py'\n"), "x").endswith(r"-- $'a\x1b[2J.py'")
    assert render(read("#!/bin/sh\ntorchrun $'\\ud800.py'\n"), "x").endswith(r"-- $'\xed\xa0\x80.py'")


@pytest.mark.parametrize("piece", ['"$(', '"${x:-'])
def test_a_quote_that_is_nested_deeply_and_not_closed_is_an_error_in_a_moment(piece: str) -> None:
    with pytest.raises(UsageError, match=r"^x:3: the quote of .* is not closed"):
        importers.read(f"#!/bin/sh\ntorchrun a.py\necho {piece * 5000}a\n", "x")


@pytest.mark.parametrize("piece", ["${a:-", '$("', "(", "`$("])
def test_a_script_that_is_nested_deeply_is_read_in_a_moment(piece: str) -> None:
    assert importers.read(f"#!/bin/sh\ntorchrun a.py\nX={piece * 5000}a\n", "x").script[0] == "a.py"


def test_variables_that_double_stay_short() -> None:
    text = "#!/bin/sh\nB=(x y)\nA=xxxx\n" + 'B+=("${B[@]}" "$A$A")\nA="$A$A"\n' * 60 + 'torchrun a.py "${B[@]}"\n'
    assert sum(map(len, read(text).script)) < 200_000


@pytest.mark.parametrize(
    ("directives", "options"),
    [("-N 2", "--ntasks-per-node=4"), ("-N 2 --ntasks-per-node=4", ""), ("-N2 -n8", "--label")],
)
def test_ranks_that_srun_starts_are_ranks_of_a_node(directives: str, options: str) -> None:
    draft = read(f"#!/bin/sh\n#SBATCH {directives}\nsrun {options} python a.py\n")
    assert command(draft) == ["launch-slurm", "--nodes=2", "--nproc-per-node=4", "--", "a.py"]
    assert notes(draft)["0: srun"].startswith("torchrun starts the ranks")


def test_names_that_the_file_never_defines_stay_open() -> None:
    draft = read('#!/bin/sh\n#SBATCH -N 1\nSCRIPT=a.py\nCMD="torchrun $PYTHON_FILE $(date)"\nsrun $CMD\n')
    text = render(draft, "x")
    assert "# to fill in: $PYTHON_FILE: the file does not set it; set it before you run this\n" in text
    assert "# to fill in: $(date): a shell expression, which is not evaluated; replace it by its result\n" in text
    assert text.endswith("""  -- "${PYTHON_FILE}" '<$(date)>'""")


@pytest.mark.parametrize(
    ("text", "scheduler", "ranks"),
    [
        ("#BSUB -gpu num=4\nblaunch -z $h torchrun --nnodes 2 a.py\n", "lsf", ["4"]),
        ("#PBS -l select=2:ngpus=4\n#PBS -N x\npython -m torch.distributed.run a.py\n", "pbs", ["4"]),
    ],
)
def test_scripts_of_lsf_and_pbs_run_inside_of_their_job(text: str, scheduler: str, ranks: list[str]) -> None:
    draft = read(f"#!/bin/sh\n{text}")
    assert (draft.flags["hostfile-format"], draft.flags["nproc-per-node"]) == ([scheduler], ranks)
    assert "${LSB_DJOB_HOSTFILE}" in render(draft, "x") or "${PBS_NODEFILE}" in render(draft, "x")


@pytest.mark.parametrize("program", ["hostname", "/bin/bash -c hostname", "/usr/bin/env hostname", "/usr/bin/nsys x"])
def test_mpirun_of_another_program_is_no_launch(program: str) -> None:
    with pytest.raises(UsageError, match="no command in it starts a Python script"):
        importers.read(f"#!/bin/sh\nmpirun -np 2 {program}\n", "x")


def test_a_script_that_launches_nothing_is_an_error_with_the_kinds_that_are_read() -> None:
    with pytest.raises(UsageError, match="x: no command in it starts a Python script with torchrun") as caught:
        importers.read("#!/bin/sh\necho hello\nmpirun -np 2 waves\nRscript a.R $TOKEN\n", "x")
    assert caught.value.message.endswith("; its commands: mpirun -np 2 waves; Rscript a.R $TOKEN")


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_quote_that_is_not_closed_is_an_error_with_its_line(quote: str) -> None:
    with pytest.raises(UsageError) as caught:
        importers.read(f"#!/bin/sh\n# don't\ntorchrun a.py --name {quote}my run\necho done\n", "x")
    assert caught.value.message == f"x:3: the quote of {quote}my run is not closed"


@pytest.mark.parametrize(
    "part", ["$(cat <<E\ndon't\nE\n)", '"$(cat <<E\ndon\'t\nE\n)"', "${A:-b"], ids=["here", "quoted", "brace"]
)
def test_what_may_end_in_a_real_shell_is_a_note(part: str) -> None:
    draft = importers.read(f"#!/bin/sh\ntorchrun a.py\necho {part}\necho done\n", "x")
    assert draft.script == ("a.py",)
    assert [each.number for each in draft.skipped if "its end was not found" in each.reason] == [3]


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    touch = f"touch {target}"
    text = f"#!/bin/sh\nA=$({touch})\n`{touch}`\nexport B=`{touch}`\n{touch}\ntorchrun a.py $A $({touch})\n"
    render(importers.read(text, "x"), "x")
    assert not target.exists()


PIECES = st.sampled_from(
    [
        *("torchrun ", "python ", "srun ", "-m ", "a.py ", "accelerate launch ", "deepspeed ", "mpirun ", "bash -c "),
        *("#SBATCH ", "#BSUB ", "#PBS ", "--nodes", "=2", " 2 ", "-n ", "--gres=gpu:", "export ", "A=", "$A ", "\n"),
        *("$(", ")", "`", "${A:-", "}", "eval ", "\\\n", "-x ", "-H a:1,b ", "--", "env ", "cd /", '"', "'", "ssh "),
    ]
)


@fuzzed(
    st.one_of(
        st.text(max_size=200), st.lists(PIECES, max_size=30).map("".join), st.sampled_from(list(HOSTILE.values()))
    )
)
def test_any_script_is_turned_into_a_command_or_rejected(text: str) -> None:
    drafts: list[str] = []
    error = refusal(UsageError, lambda: drafts.append(render(importers.read(f"#!/bin/sh\n{text}", "x"), "x")))
    assert error is None or error.message.startswith("x")
    for line in "".join(drafts).splitlines():
        assert line.isprintable() or "\\" in repr(line)

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
    "ssh in a loop": (
        'for h in a b; do\n  ssh -p 22 $h "cd /w; torchrun --nnodes 2 a.py" &\ndone\n',
        ["launch-per-node", "--nodes=2", "--workdir=/w", "--", "a.py"],
    ),
    "a wrapper": ("numactl --interleave=all torchrun a.py", ["launch-per-node", "--", "a.py"]),
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


def test_a_script_that_launches_nothing_is_an_error_with_the_kinds_that_are_read() -> None:
    with pytest.raises(UsageError, match="x: no command in it starts torchrun, accelerate, deepspeed"):
        importers.read("#!/bin/sh\necho hello\n", "x")


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

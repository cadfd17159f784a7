"""A launcher in a shell script that every rank runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import texts
from tests.support import fuzzed
from torchfab.launching import shell_script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!/bin/bash\nset -e\ntorchrun --nproc_per_node 8 train.py\n", (3, "torchrun")),
        ("NCCL_DEBUG=INFO exec deepspeed --num_gpus 2 x.py", (1, "deepspeed")),
        ("cd x && accelerate  launch x.py", (1, "accelerate launch")),
        ("python3 -u -m torch.distributed.run x.py", (1, "python3 -u -m torch.distributed.run")),
        ("(mpirun -n 4 ./a)", (1, "mpirun")),
        ("python train.py --launcher torchrun-like", None),
        ("# torchrun train.py", None),
        ("pip install deepspeed", None),
        ("echo torchrun was here", None),
        ("./torchrun.sh", None),
        ("", None),
    ],
)
def test_the_first_launcher_is_found(text: str, expected: tuple[int, str] | None) -> None:
    assert shell_script.find_launcher(text) == expected


def test_the_note_names_line_and_launcher(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\ntorchrun train.py\n")
    for command in (("bash", "run.sh", "a"), ("./run.sh",), ("/bin/sh", "run.sh")):
        note = shell_script.describe_launcher(command, str(tmp_path))
        assert "run.sh:2 starts torchrun" in note
        assert "fab import" in note
    (tmp_path / "data.txt").write_text("torchrun train.py\n")
    for other in (("./data.txt",), ("./gone.sh",), ("nvidia-smi",), ("bash",), ("bash", "-c", "torchrun x.py")):
        assert shell_script.describe_launcher(other, str(tmp_path)) == ""


@fuzzed(texts())
def test_any_text_is_read(text: str) -> None:
    assert shell_script.find_launcher(text) is None or text

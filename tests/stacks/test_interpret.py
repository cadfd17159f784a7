"""What a stack means: the activity, and whether it waits."""

from __future__ import annotations

import pytest

from tests.stacks.factories import ALL_GATHER, ALL_REDUCE, C10D, MAIN, library, own
from torchfab.stacks import interpret
from torchfab.stacks.model import Frame


@pytest.mark.parametrize(
    ("frames", "activity", "waits"),
    [
        (ALL_REDUCE, "in all_reduce", True),
        (ALL_GATHER, "in all_gather", True),
        ((Frame("_all_gather_base", C10D, 9), own("f", 1)), "in all_gather_base", True),
        ((Frame("broadcast_object_list", C10D, 9), own("f", 1)), "in broadcast_object_list", True),
        ((Frame("recv", C10D, 1), Frame("broadcast", C10D, 9), own("f", 1)), "in broadcast", True),
        ((Frame("barrier", C10D, 9), own("f", 1)), "in barrier", True),
        ((library("torch/distributed/rendezvous.py", "_create_c10d_store"), Frame("init_process_group", C10D, 1), MAIN),
         "in init_process_group", True),
        ((Frame("Connection.poll", "/usr/lib/python3.11/multiprocessing/connection.py", 3),
          library("torch/utils/data/dataloader.py", "_BaseDataLoaderIter.__next__"), own("train", 3)),
         "at the DataLoader, for a batch", True),
        ((library("torch/serialization.py", "_save"), library("torch/serialization.py", "save"), own("save", 3)),
         "in torch.save (a checkpoint?)", True),
        ((library("torch/optim/adamw.py", "_multi_tensor_adamw"), library("torch/optim/optimizer.py", "wrapper")),
         "in the optimizer's step", False),
        ((library("torch/_tensor.py", "Tensor.backward"), own("step", 3)), "in backward", True),
        ((library("torch/cuda/__init__.py", "synchronize"), own("step", 3)), "in cuda.synchronize, for the GPU", True),
        ((Frame("<module>", "<frozen importlib._bootstrap>", 241), MAIN), "in an import", False),
        ((own("doze", 3, "time.sleep(60)"), MAIN), "in time.sleep", True),
        ((own("loss_of", 3, "return loss.item()"), MAIN), "in .item(), which waits for the device", True),
        ((own("compute", 3, "x = x + 1"), MAIN), "", False),
        ((), "", False),
    ],
)  # fmt: skip
def test_activity_of_a_stack_is_recognised(frames: tuple[Frame, ...], activity: str, waits: bool) -> None:
    found = interpret.find_meaning(frames)
    assert (found.activity, found.waits) == (activity, waits)


def test_own_frame_is_the_innermost_frame_of_user_code() -> None:
    assert interpret.find_meaning(ALL_REDUCE).own == own("reduce_loss", 8)
    assert interpret.find_meaning((Frame("run", "/usr/lib/python3.11/threading.py", 3),)).own is None

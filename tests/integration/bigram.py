"""train_llm.py with another model: a table of bigrams, for tests that are not about the model.

All else is train_llm.py's own: data, steps, checkpoints, signals, logs. A rank starts in a third of the time, as it
needs no transformers; `PAUSE_S` (environment) seconds after each step leave the machine to the tests beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import train_llm

# Torch's optimizers load its compiler only to exclude themselves from it: half of the start time.
NO_COMPILER = SimpleNamespace(
    disable=lambda function, *_, **__: function,
    graph_break=lambda: None,
    trace_rules=SimpleNamespace(clear_lru_cache=lambda: None),
    utils=SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization"),
)


class Bigram(nn.Module):
    """Predict each token from the previous one."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": vocabulary}
        self.config = SimpleNamespace(model_type="bigram", max_position_embeddings=128, **shape)
        self.guess = nn.Sequential(nn.Embedding(vocabulary, 16), nn.Linear(16, vocabulary))

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        """Return the logits (batch, length, vocabulary) of int64 `input_ids` (batch, length)."""
        return SimpleNamespace(logits=self.guess(input_ids))


def build_model(args: argparse.Namespace, vocabulary: int) -> nn.Module:
    """Return the model; the seed determines its weights."""
    torch.manual_seed(args.seed)
    return Bigram(vocabulary)


class Trainer(train_llm.Trainer):
    """The training loop, with a pause after each step."""

    def advance(self, batches: Iterator[tuple[int, Tensor]]) -> None:
        """Run a step, then pause."""
        super().advance(batches)
        time.sleep(float(os.environ.get("PAUSE_S", "0")))


if __name__ == "__main__":
    sys.modules["torch._dynamo"] = NO_COMPILER  # type: ignore[assignment]
    train_llm.build_model = build_model
    train_llm.Trainer = Trainer  # type: ignore[misc]
    train_llm.export = lambda *_: None  # transformers would not know it
    train_llm.main()

"""`fab forward`: the words of its command line, and what it says where there is no tensorboard, or several."""

from __future__ import annotations

import pytest

from tests.factories import make_nodes
from tests.hostile import texts
from tests.support import fuzzed, refusal
from torchfab.commands import forward
from torchfab.commands.forward import Hosts, Spec
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import UsageError
from torchfab.transport.messages.forward import Listener

NODES = make_nodes("node1", "node2")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("6006", ("", Spec(0, 6006))),
        ("gpt2 16006:6006", ("gpt2", Spec(16006, 6006))),
        ("tensorboard", ("", Spec(0, 0))),
        ("16006:tensorboard", ("", Spec(16006, 0))),
    ],
)
def test_a_word_names_a_port(line: str, expected: tuple[str, Spec]) -> None:
    assert forward.split_words(line.split()) == expected


@pytest.mark.parametrize("line", ["", "gpt2", "0", "65536", "1:0", "6006:", "a b c", "tensorboard:6006", "6006 gpt2"])
def test_other_words_are_refused_with_the_form(line: str) -> None:
    with pytest.raises(UsageError, match="tensorboard, PORT or LOCAL:PORT"):
        forward.split_words(line.split())


@fuzzed(texts())
def test_any_word_is_a_port_or_a_usage_error(word: str) -> None:
    error = refusal(UsageError, lambda: forward.split_words([word]))
    assert error is not None or word.isascii()


def test_without_a_tensorboard_the_line_that_starts_one_is_printed() -> None:
    error = forward.none_found(Hosts(NODES, ConnectionSettings(), "/my work"))
    assert "on node[1-2]" in error.message
    assert error.fix == (
        "start one: fab -H node1 run --workdir '/my work' -- bash -c "
        "'nohup tensorboard --logdir runs --port 6006 >/dev/null 2>&1 &'"
    )


def test_of_several_all_are_named() -> None:
    listeners = [Listener(port=6006 + rank, address="localhost", pid=7, command="tensorboard a") for rank in range(2)]
    error = forward.several_found(list(zip(NODES, listeners, strict=True)))
    assert (
        error.message
        == "TensorBoard listens on several ports: node1 port 6006: tensorboard a; node2 port 6007: tensorboard a"
    )
    assert error.fix == "fab forward 6006 --host node1"

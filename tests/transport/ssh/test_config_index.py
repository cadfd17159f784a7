"""The options of ssh's configuration, indexed by host: the same is found as by looking at all of them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from torchfab.transport.ssh import config
from torchfab.transport.ssh.config_index import Indexed

HOSTS = ["a", "b", "ab", "a.b", "A"]
HEADS = ["Host a", "Host b", "Host a b", "Host *", "Host a*", "Host ?", "Host !a *", "Host b !b", "Host a.b"]
HEADS += ["Match all", "Match host a", "Match originalhost b", "Match final"]
SETTINGS = ["Port 1", "Port 2", "User x", "HostName %h.example", "IdentityFile /k1", "IdentityFile /k2"]
OPTIONS = st.lists(st.sampled_from(SETTINGS), min_size=1, max_size=3)
CLIENT = config.ClientIdentity("me", "here")


@given(OPTIONS, st.lists(st.tuples(st.sampled_from(HEADS), OPTIONS), max_size=8), st.sampled_from(HOSTS))
def test_the_same_holds_for_a_host_with_the_index_and_without(
    first: list[str], blocks: list[tuple[str, list[str]]], host: str
) -> None:
    path = Path("/nowhere")
    text = "\n".join([*first, *("\n  ".join([head, *options]) for head, options in blocks)])
    read = options_in(text, path)
    assert isinstance(read, Indexed)
    indexed = config.options_for(read, host, CLIENT)
    assert indexed == config.options_for(tuple(read), host, CLIENT)


def options_in(text: str, path: Path) -> Indexed:
    """Return the options of a text."""
    with_block: list[config.Option] = []
    block: tuple[config.Block, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        parsed = config.parse_line(line, f"{path}:{number}")
        assert parsed
        name, words = parsed
        if name in ("host", "match"):
            block = (config.Block(name, words, f"{path}:{number}"),)
        else:
            with_block.append(config.Option(name, words, f"{path}:{number}", block))
    return Indexed(with_block)


def test_options_of_other_hosts_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("".join(f"Host n{index}\n  Port {index + 1}\n" for index in range(100)) + "Host *\n  User x\n")
    assert [option.values for option in config.read(str(path)).candidates("n7")] == [("8",), ("x",)]

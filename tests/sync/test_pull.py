"""Which files are copied from which host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_nodes
from torchfab.core.errors import HostError
from torchfab.sync import pull
from torchfab.sync.pull import Match, Transfer

NODES = make_nodes("node1", "node2", "node3")


def match(node: int, name: str, **files: int) -> Match:
    """Return a match of a folder, with files in it, of which `_` in the name stands for a dot."""
    return Match(NODES[node], "/work", name, {f"{name}/{key.replace('_', '.')}": size for key, size in files.items()})


def plan(*matches: Match, equal: bool = True) -> list[Transfer]:
    """Return the transfers where files of equal size are equal, or all differ."""
    places = [place for found in pull.shared_files(matches).values() for place in found]
    digests = {place: "same" if equal else f"host {place[0]}" for place in places}
    return pull.transfers(matches, pull.differing_names(matches, digests))


def test_what_only_one_host_has_is_copied_from_it() -> None:
    (transfer,) = plan(match(1, "ckpt", a_pt=3))
    assert transfer == Transfer(NODES[1], "/work", "", {"ckpt/a.pt": 3}, {})


def test_parts_of_a_checkpoint_become_one_folder() -> None:
    first, second = plan(match(0, "ckpt", a_pt=3, meta=1), match(1, "ckpt", b_pt=3, meta=1))
    assert (first.node, first.folder, dict(first.files)) == (NODES[0], "", {"ckpt/a.pt": 3, "ckpt/meta": 1})
    assert (second.node, second.folder, dict(second.files)) == (NODES[1], "", {"ckpt/b.pt": 3})


def test_equal_files_are_copied_once() -> None:
    assert [each.node for each in plan(match(0, "logs", a=3), match(1, "logs", a=3), match(2, "logs", a=3))] == [
        NODES[0]
    ]


@pytest.mark.parametrize(("size", "equal"), [(4, True), (3, False)])
def test_files_that_differ_go_into_a_folder_per_host(size: int, equal: bool) -> None:
    found = plan(match(0, "logs", a=3, b=1), match(1, "logs", a=size), match(0, "ckpt", x=1), equal=equal)
    assert {(each.node.host, each.folder, *each.files) for each in found} == {
        ("node1", "node1", "logs/a", "logs/b"),
        ("node2", "node2", "logs/a"),
        ("node1", "", "ckpt/x"),
    }


def test_a_file_on_one_host_that_is_a_folder_on_another_keeps_them_apart() -> None:
    file = Match(NODES[0], "/work", "out", {"out": 1})
    assert {each.folder for each in plan(file, match(1, "out", a=1))} == {"node1", "node2"}


def test_links_that_differ_keep_hosts_apart() -> None:
    one, two = (Match(NODES[rank], "/w", "c", {}, {"c/latest": f"step-{rank}"}) for rank in range(2))
    assert {(each.folder, *each.links.values()) for each in plan(one, two)} == {
        ("node1", "step-0"),
        ("node2", "step-1"),
    }


NAMES = st.sampled_from(["a", "b", "a/x", "b/y"])
MATCHES = st.lists(
    st.builds(
        lambda rank, name, files: Match(
            NODES[rank], "/w", name, {f"{name}/{file}": size for file, size in files.items()}
        ),
        st.integers(0, 2),
        NAMES,
        st.dictionaries(NAMES, st.integers(0, 2), max_size=3),
    ),
    max_size=6,
)


@given(MATCHES, st.booleans())
def test_every_file_is_copied_and_none_replaces_another(matches: list[Match], equal: bool) -> None:
    transfers = plan(*matches, equal=equal)
    copied = [(each.folder, name) for each in transfers for name in each.files]
    assert len(copied) == len(set(copied))
    assert {name for each in matches for name in each.files} == {name for _, name in copied}
    assert all(each.files or each.links for each in transfers)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_a_name_that_leaves_the_folder_is_an_error(name: str) -> None:
    with pytest.raises(HostError, match="would leave the folder"):
        pull.check_name(name)


def test_ordinary_names_are_no_error() -> None:
    for name in ("a", "a/b..c", "..a", "it's $x/\n"):
        pull.check_name(name)

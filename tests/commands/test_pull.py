"""`fab pull`: the words of its command line, and what it prints."""

from __future__ import annotations

import pytest

from tests.factories import make_nodes
from torchfab.commands import pull
from torchfab.core.errors import UsageError
from torchfab.sync.pull import Match, Transfer
from torchfab.sync.rsync import parse_progress, pull_argv

NODES = make_nodes("node1", "node2", "node3")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("gpt2", "a", "b"), ("gpt2", ("a", "b"))),
        (("a", "gpt2"), ("", ("a", "gpt2"))),
        (("./gpt2",), ("", ("./gpt2",))),
    ],
)
def test_the_first_of_several_words_may_be_a_job(words: tuple[str, ...], expected: tuple[str, tuple[str, ...]]) -> None:
    assert pull.split_words(words, lambda name: name == "gpt2") == expected


@pytest.mark.parametrize(("words", "expected"), [((), "needs a path"), (("gpt2",), "gpt2 is a job")])
def test_without_a_path_there_is_nothing_to_pull(words: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        pull.split_words(words, lambda name: name == "gpt2")


def test_the_summary_names_hosts_files_and_folders() -> None:
    matches = [Match(node, "/w", "x", {"x": 2048}) for node in NODES]
    transfers = [Transfer(NODES[0], "/w", "node1", {"x": 2048}, {}), Transfer(NODES[1], "/w", "node2", {"x": 2048}, {})]
    assert list(pull.summary(transfers, matches, "/far/away", 1.0)) == [
        "node1: 1 file, 2 KiB, into /far/away/node1",
        "node2: 1 file, 2 KiB, into /far/away/node2",
        "files of the same name differ between hosts: each host has its own folder",
        "node3: the same files; nothing to copy",
        "2 files, 4 KiB, in /far/away (1.0 s)",
    ]


def test_names_go_to_rsync_by_stdin_and_no_shell_reads_a_path() -> None:
    argv = pull_argv("/it's $HOME", "/here", "node1", ("ssh", "-p", "2"), 30.0)
    assert argv[-2:] == ("node1:/it's $HOME/", "/here/")
    assert {"--files-from=-", "--from0", "--protect-args", "--partial-dir=.torchfab-partial"} <= set(argv)
    assert "--protect-args" not in pull_argv("/w", "/here", "", ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\r      1,234,567  45%   10.00MB/s    0:00:10", 1234567),
        ("\r 10 1%\r 2000  99%  1.00kB/s 0:00:00 (xfr#1)", 2000),
        ("no number", 0),
        ("9" * 500 + "%", 0),
    ],
)
def test_progress_is_the_last_number_that_rsync_printed(text: str, expected: int) -> None:
    assert parse_progress(text) == expected

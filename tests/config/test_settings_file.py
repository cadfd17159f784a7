"""torchfab.yaml: settings without a section; every mistake is one error with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.hostile import texts
from tests.support import fuzzed, refusal
from torchfab.config import defaults, settings_file
from torchfab.core.errors import UsageError

FABRIC = ("connect_kwargs", "run", "tasks")


def parse(text: str) -> settings_file.SettingsFile:
    return settings_file.parse(text, "torchfab.yaml", FABRIC)


def test_settings_stand_without_a_section_and_know_their_lines() -> None:
    found = parse("# mine\nhostfile: nodes\n\nscript: [train.py]\nconnect_kwargs: {key_filename: a}\n")
    assert found.sections == {
        "torchfab": {"hostfile": "nodes", "script": ["train.py"]},
        "connect_kwargs": {"key_filename": "a"},
    }
    assert found.lines == {("torchfab", "hostfile"): 2, ("torchfab", "script"): 4, ("connect_kwargs",): 5}


def test_the_section_of_fabric_yaml_is_read_too() -> None:
    found = parse("torchfab:\n  stall_s: 5\nfanout: 3\n")
    assert found.sections == {"torchfab": {"stall_s": 5, "fanout": 3}}
    assert found.lines == {("torchfab", "stall_s"): 2, ("torchfab", "fanout"): 3}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "torchfab:\n"])
def test_a_file_without_settings_is_valid(text: str) -> None:
    assert parse(text).sections == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fanout: 3\nhostfil: x", "torchfab.yaml:2: hostfil names no setting; did you mean hostfile?"),
        ("torchfab:\n  fanuot: 3", "torchfab.yaml:2: fanuot names no setting; did you mean fanout?"),
        ("connect_kwarg: {}", "torchfab.yaml:1: connect_kwarg names no setting; did you mean connect_kwargs?"),
        ("zzzz: 1", "torchfab.yaml:1: zzzz names no setting"),
        ("\nfanout: 0", "torchfab.yaml:2: fanout must be a number of at least 1, got 0"),
        ("hostfile:", "torchfab.yaml:1: hostfile must be a text, got None"),
        ("script: train.py", "torchfab.yaml:1: script must be a list of texts, got 'train.py'"),
        ("fanout: 3\nfanout: 4", "torchfab.yaml:2: fanout is given twice, first in line 1"),
        ("fanout: 3\ntorchfab: {fanout: 4}", "torchfab.yaml:2: fanout is given twice, first in line 1"),
        ("5", "torchfab.yaml: it holds no settings, got 5"),
        ("[a]", "torchfab.yaml: it holds no settings, got ['a']"),
        ("torchfab: 5", "torchfab.yaml:1: torchfab is a section, got 5"),
        ("5: 5", "torchfab.yaml: the name of a setting is a text, got 5"),
        ("fanout: 3\na: [", "torchfab.yaml:2 is not YAML: "),
        ("fanout: 3\n\ta: 1", "torchfab.yaml:2 is not YAML: "),
        ("a: &b [*b]\nfanout: *c", "torchfab.yaml:2 is not YAML: found undefined alias"),
        ("hostfile: 2024-13-99", "torchfab.yaml"),
        ("{[a]: 1}", "torchfab.yaml"),
    ],
)
def test_a_mistake_is_one_error_with_its_line(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.message.startswith(expected)
    assert "\n" not in caught.value.message


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "torchfab.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match="cannot be read"):
        settings_file.read(path, FABRIC)
    path.write_bytes(b"\xef\xbb\xbffanout: 3\n")
    assert settings_file.read(path, FABRIC).sections == {"torchfab": {"fanout": 3}}


LINES = st.lists(st.builds("{}: {}".format, st.sampled_from([*defaults.SETTINGS, "torchfab", "run"]), texts(9)))


@fuzzed(st.one_of(texts(60), LINES.map("\n".join)))
def test_any_text_is_read_or_is_a_usage_error(text: str) -> None:
    settings_file.key_lines(text)
    error = refusal(UsageError, lambda: parse(text))
    if error is None:
        assert set(parse(text).sections) <= {"torchfab", *FABRIC}
    else:
        assert error.message.startswith("torchfab.yaml")

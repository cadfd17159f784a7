"""Groups of ClusterShell: a groups file as the hosts file, and `@group` in a line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.core.hostfiles.factories import error, hosts, read

YAML = "roles:\n  adm: 'x0'\n  compute: '@racks:r1,@racks:r2!n3'\nracks:\n  r1: 'n[1-2]'\n  r2: ['n3', 'n4']\n"


def test_groups_may_name_groups_of_other_sources() -> None:
    assert hosts(read(YAML, groups=("compute",))) == ["n1", "n2", "n4"]
    assert hosts(read(YAML, groups=("racks:r1", "adm"))) == ["n1", "n2", "x0"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: n[1-2]\nb: n[1-99999]\n", "hosts:2: the group 'b' has more than 10000 hosts"),
        ("a: n[1-2]\nb: n[2-1]\n", "hosts:2: the group 'b': "),
        ("a: @b,x\nb: @a,y\n", "hosts:1: the group 'a' contains itself"),
        ("a: n[1-2]\nb: -x,y\n", "hosts:2: the group 'b' contains '-x', which is not a host name"),
        ("a: n[1-2]\nb: @c:d\n", "hosts:2: the group 'b': c"),
    ],
)
def test_an_error_names_the_line_of_the_group(text: str, problem: str) -> None:
    assert error(text).startswith(problem)


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "groups.conf").write_text("[Main]\ndefault: ours\nautodir: $CFGDIR/groups.d\n")
    (tmp_path / "groups.d").mkdir()
    (tmp_path / "groups.d" / "ours.yaml").write_text("ours:\n  gpu: 'node[1-3]'\n  bad: '-x'\n")
    monkeypatch.setattr("ClusterShell.Defaults.config_paths", lambda name: [str(tmp_path / name)])
    return tmp_path


@pytest.mark.usefixtures("configured")
def test_a_line_may_name_a_group() -> None:
    expected = [{"host": f"node{number}", "slots": 2} for number in (1, 2, 3)]
    assert hosts(read("@gpu slots=2\nx\n")) == [*expected, "x"]
    assert hosts(read("@gpu!node2,y\n")) == ["node1", "node3", "y"]


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("@nope", "hosts:1: @nope: ClusterShell has no host in this group"),
        ("@other:gpu", "hosts:1: @other:gpu: ClusterShell cannot resolve this group: other"),
        ("@bad", "hosts:1: @bad contains '-x', which is not a host name"),
        ("x\n@", "hosts:2: @: ClusterShell has no host in this group"),
    ],
)
def test_a_group_that_cannot_be_resolved_is_an_error(text: str, problem: str) -> None:
    assert error(text).startswith(problem)


def test_the_example_that_pip_installs_defines_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = f"{sys.prefix}/etc/clustershell"
    assert Path(packaged, "groups.conf").exists()
    monkeypatch.setattr("ClusterShell.Defaults.config_paths", lambda name: [f"{packaged}/{name}"])
    assert error("@gpu") == (
        "hosts:1: @gpu is a group of ClusterShell, which has no groups on this machine\n"
        "  fix: define it in ~/.config/clustershell (groups.conf and groups.d), or write the hosts here"
    )

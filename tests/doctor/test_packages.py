"""Environments that `env push` made are compared with each other and with the project here."""

from __future__ import annotations

from torchfab.doctor import packages
from torchfab.transport.messages.launch import PackagesMark

A, B = PackagesMark(digest="a" * 64, source="uv.lock"), PackagesMark(digest="b" * 64, source="uv.lock")


def found(here: dict[str, str], **marks: PackagesMark | None) -> list[tuple[str, tuple[str, ...]]]:
    return [(each.kind, each.hosts) for each in packages.findings(marks, here)]


def test_environments_of_another_make_are_not_compared() -> None:
    assert found({"uv.lock": "c"}, a=None, b=None) == []


def test_equal_environments_of_the_project_are_fine() -> None:
    assert found({"uv.lock": A.digest}, a=A, b=A) == []
    assert found({}, a=A, b=A) == []
    assert found({"requirements.txt": "c"}, a=A, b=A) == []


def test_an_environment_of_an_earlier_list_is_named() -> None:
    assert found({"uv.lock": A.digest}, a=A, b=B) == [("packages-old", ("b",))]


def test_environments_that_differ_are_named_where_the_list_is_not_here() -> None:
    assert found({}, a=A, b=B, c=A) == [("packages-differ", ("b",))]


def test_a_host_without_one_is_named_where_others_have_one() -> None:
    assert found({}, a=A, b=None, c=A) == [("packages-unknown", ("b",))]

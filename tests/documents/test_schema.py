"""The JSON Schemas: their files are those of the types, every `--json` has one, and they refuse what is not in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests import json_documents
from torchfab import documents, fabfile
from torchfab.cli.flags import FlagTask
from torchfab.documents import schema

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
EVENT = {"time": 1.5, "event": "started", "attempt": 1}
LEMON = {"host": "node1", "reason": "GPU 3 is sick", "time": 1.5, "job": "gpt2"}


@pytest.mark.parametrize("name", schema.DOCUMENTS)
def test_the_file_of_each_schema_is_up_to_date_and_valid(name: str) -> None:
    text = (REFERENCE / "schemas" / f"{name}.schema.json").read_text()
    assert text == schema.text(name), "run inv schemas"
    Draft202012Validator.check_schema(json.loads(text))


def test_the_page_is_up_to_date() -> None:
    page = (REFERENCE / "json.md").read_text()
    assert page == schema.page(schema.head_of(page)) + "\n", "run inv schemas"
    assert {path.name for path in (REFERENCE / "schemas").iterdir()} == {
        f"{name}.schema.json" for name in schema.DOCUMENTS
    }


def test_every_task_with_the_flag_json_has_a_schema() -> None:
    tasks = [each for each in vars(fabfile).values() if isinstance(each, FlagTask)]
    names = {each.name for each in tasks if any(argument.name == "json" for argument in each.get_arguments())}
    assert names == json_documents.TASKS
    assert names | {"events"} == schema.DOCUMENTS.keys()


def test_a_document_and_each_element_of_a_list_has_the_version() -> None:
    found = json_documents.checked("events", [EVENT, EVENT])
    assert [each["version"] for each in found] == [1, 1]
    assert json_documents.checked("lemons", {"lemons": [LEMON]})["version"] == documents.VERSION == 1
    assert "\n" not in documents.encode({"lemons": [LEMON]}, indent=None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"time": "now"}, "$.lemons[0].time: 'now' is not of type 'number'"),
        ({"more": 1}, "$.lemons[0]: Additional properties are not allowed ('more' was unexpected)"),
    ],
)
def test_a_document_that_differs_from_its_schema_is_found(change: dict[str, Any], problem: str) -> None:
    document = {"version": 1, "lemons": [{**LEMON, **change}]}
    assert json_documents.problems("lemons", document) == [f"lemons {problem}"]


def test_a_reader_with_the_published_schema_accepts_new_fields() -> None:
    document = {"version": 1, "lemons": [{**LEMON, "more": 1}], "new": True}
    assert not list(Draft202012Validator(schema.schema("lemons")).iter_errors(document))
    assert list(Draft202012Validator(schema.schema("lemons")).iter_errors({"version": 1}))


def test_what_is_not_json_is_an_error_or_converted() -> None:
    with pytest.raises(TypeError):
        documents.encode({"path": Path("/x")})
    assert json.loads(documents.encode({"path": Path("/x")}, default=str))["path"] == "/x"

"""Records of jobs on the launch machine."""

from __future__ import annotations

import json
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import folder, make_job, make_nodes
from tests.hostile import HOSTILE, environments, texts
from tests.records.factories import NODES, SETTINGS, plan_named, write
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import JobNameError, TorchfabError, UsageError
from torchfab.core.specs import Node, NodePlan, Plan, Process
from torchfab.records import Record, Records
from torchfab.records.record import as_json, plan_as_json


def test_launching_names_the_process_until_the_launch_is_done(records: Records) -> None:
    assert records.launch_holder("gpt2") is None
    records.claim("gpt2")
    assert records.launch_holder("gpt2") == (os.getpid(), socket.gethostname())
    records.end_launch("gpt2")
    assert records.launch_holder("gpt2") is None


def test_claim_removes_leftovers_of_a_killed_launch(
    records: Records,
) -> None:
    write(records, plan_named("kept"))
    for name in ("dead", "young", "alive"):
        records.claim(name)
    for name in ("dead", "kept", "alive"):
        os.utime(records.root / name / "launching", (1.0, 1.0))
    for name in ("dead", "young", "kept"):
        records.end_launch(name)
    records.claim("new")
    assert sorted(path.name for path in records.root.iterdir()) == ["alive", "kept", "new", "young"]


def files_of(path: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in path.iterdir() if each.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- names


def test_claim_makes_a_private_folder(records: Records) -> None:
    path = records.claim("gpt2")
    assert path == records.root / "gpt2"
    assert (mode(records.root), mode(path)) == (0o700, 0o700)


def test_only_one_of_many_concurrent_claims_succeeds(records: Records) -> None:
    def claim(_: int) -> bool:
        try:
            records.claim("gpt2")
        except JobNameError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(claim, range(16))) == [False] * 15 + [True]


def test_a_second_claim_is_an_error_with_a_fix(records: Records) -> None:
    records.claim("gpt2")
    with pytest.raises(JobNameError) as caught:
        records.claim("gpt2")
    assert str(caught.value) == (
        "there is a job gpt2 already (being launched)\n"
        "  fix: choose another --name, or, if it has ended, remove its record: fab jobs --remove gpt2"
    )


def test_a_second_claim_names_the_last_state_of_the_job(records: Records) -> None:
    write(records, plan_named()).remember("failed", 7, ended=True)
    with pytest.raises(JobNameError, match=r"there is a job gpt2 already \(launched 19.*, last seen failed\)"):
        records.claim("gpt2")


def test_a_released_name_can_be_claimed_again(records: Records) -> None:
    write(records, plan_named())
    records.release("gpt2")
    assert not records.claim("gpt2").joinpath("record.json").exists()


@pytest.mark.parametrize("name", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_a_hostile_name_is_neither_claimed_nor_found(records: Records, name: str) -> None:
    with pytest.raises(JobNameError):
        records.claim(name)
    with pytest.raises(JobNameError):
        records.get(name)
    assert not records.root.exists()


@pytest.mark.parametrize("name", ["..", "../jobs", "a/b", ".", "gpt2/../gpt2"])
def test_a_name_cannot_be_a_path(records: Records, name: str) -> None:
    write(records, plan_named())
    with pytest.raises(JobNameError) as caught:
        records.get(name)
    assert str(caught.value) == f"no job {name!r} was launched from here\n  fix: jobs known here: gpt2"


def test_a_records_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(
        TorchfabError, match=r"cannot write .*/jobs/gpt2: .*\n  fix: free disk space, or check permissions"
    ):
        Records(tmp_path / "jobs").claim("gpt2")


# ---- records are read back


def test_a_record_is_read_back_as_it_was_written(records: Records) -> None:
    written = write(records, plan_named(script=("train.py", "it's", "two\nlines"), grace_s=120.0))
    assert records.get("gpt2") == written
    assert written == Record(
        folder=records.root / "gpt2",
        name="gpt2",
        job_id="gpt2-0a1b2c3d",
        launcher="per-node",
        runtime="tmux",
        created=1000.0,
        script=("train.py", "it's", "two\nlines"),
        nodes=NODES,
        node_dir="/scratch/torchfab",
        world_size=5,
        min_nodes=2,
        settings=SETTINGS,
        defaults=plan_named().defaults,
        grace_s=120.0,
    )


def test_a_record_of_the_version_before_is_read(records: Records) -> None:
    earlier = Path(__file__).with_name("earlier_version") / "record.json"
    (records.claim("gpt2") / "record.json").write_text(earlier.read_text())
    record = records.get("gpt2")
    assert record == Record(
        folder=records.root / "gpt2",
        name="gpt2",
        job_id="gpt2-0a1b2c3d",
        launcher="per-node",
        runtime="tmux",
        created=1000.0,
        script=("train.py", "--lr", "3e-4"),
        nodes=make_nodes({"host": "node1", "user": "ann", "gpus": ("0", "1")}, "node2"),
        node_dir="/scratch/torchfab",
        world_size=4,
        min_nodes=1,
        settings=ConnectionSettings(identities=("/a",)),
        defaults={
            "job": "gpt2",
            "nodes": "2 (node[1-2])",
            "ranks": "4 (2 per node)",
            "master": "node1:29400 (a free port of node1)",
            "workdir": "/project",
            "python": "/venv/bin/python",
        },
        grace_s=120.0,
    )
    expected = json.loads(earlier.read_text())
    expected["settings"]["tmux_conf"] = ""  # a setting that is newer than that version
    assert json.loads(json.dumps(as_json(record))) == expected


HOSTS = st.builds(
    Node,
    rank=st.just(0),
    host=texts(),
    user=texts(),
    port=st.none() | st.integers(1, 65535),
    address=texts(),
    slots=st.none() | st.integers(1, 9),
    gpus=st.lists(texts(), max_size=3).map(tuple),
    origin=texts(),
)


@settings(max_examples=40)
@given(
    node=HOSTS,
    script=st.lists(texts(), min_size=1, max_size=4),
    env=environments(),
    workdir=texts(),
    created=st.floats(0, 1e10),
    identities=st.lists(texts(), max_size=2),
)
def test_any_record_is_read_back_as_it_was_written(
    node: Node, script: list[str], env: dict[str, str], workdir: str, created: float, identities: list[str]
) -> None:
    job = make_job(script=tuple(script), env=env, workdir=f"/{workdir}")
    plan = Plan(job, (NodePlan(node, folder(0), (Process("agent", tuple(script), env),)),), 1, {"workdir": workdir}, 1)
    with TemporaryDirectory() as root:
        records = Records(Path(root))
        records.claim("gpt2")
        written = records.write(plan, "tmux", created, replace(SETTINGS, identities=tuple(identities)))
        assert records.get("gpt2") == written
        process = json.loads((written.folder / "plan.json").read_text())[0]["processes"][0]
        assert (process["argv"], process["env"]) == (script, env)


def test_the_plan_of_every_node_is_written(records: Records) -> None:
    plan = plan_named(env={"A": "é\n"}, secrets={"HF_TOKEN": "hunter2"})
    record = write(records, plan)
    written = json.loads((record.folder / "plan.json").read_text())
    assert written == json.loads(json.dumps(plan_as_json(plan)))
    assert [each["host"] for each in written] == ["node1:2222", "node2"]
    assert written[1]["secrets"] == ["HF_TOKEN"]
    assert written[1]["processes"] == [
        {
            "name": "agent",
            "argv": list(plan.nodes[1].processes[0].argv),
            "env": dict(plan.nodes[1].processes[0].env),
            "rank": None,
        }
    ]


def test_files_are_private_and_hold_no_secret_values(records: Records) -> None:
    record = write(records, plan_named(secrets={"HF_TOKEN": "hunter2", "WANDB_API_KEY": "hunter2 too"}))
    record.note("started", hosts=["node1"])
    record.remember("running", None, ended=False)
    written = files_of(record.folder)
    assert set(written) == {"launching", "record.json", "plan.json", "state.json", "events.jsonl"}
    assert not [name for name, text in written.items() if "hunter2" in text]
    assert {mode(record.folder / name) for name in written} == {0o600}


def test_files_are_private_with_any_umask(records: Records) -> None:
    before = os.umask(0)
    try:
        record = write(records, plan_named())
        record.remember("running", None, ended=False)
    finally:
        os.umask(before)
    assert {mode(record.folder / name) for name in files_of(record.folder)} == {0o600}
    assert (mode(records.root), mode(record.folder)) == (0o700, 0o700)


# ---- many


def test_latest_is_the_job_that_was_launched_last(records: Records) -> None:
    for name, created in (("b", 20.0), ("c", 30.0), ("a", 10.0)):
        write(records, plan_named(name), created)
    assert [record.name for record in records.all()] == ["c", "b", "a"]
    assert records.latest().name == "c"


def test_latest_without_any_job_is_an_error(records: Records) -> None:
    assert records.all() == []
    with pytest.raises(JobNameError) as caught:
        records.latest()
    assert str(caught.value) == "no job was launched from here yet\n  fix: fab launch-per-node --follow"


def test_folders_without_a_record_are_left_out(records: Records) -> None:
    write(records, plan_named("good"))
    records.claim("claimed")
    (records.root / "a file").write_text("")
    (records.root / "folder").mkdir()
    (records.root / "folder" / "record.json").mkdir()
    assert [record.name for record in records.all()] == ["good"]


BROKEN = [
    "",
    "{",
    "[]",
    "5",
    "null",
    '"x"',
    "{}",
    '{"format": 1, "nodes": [5]}',
    '{"format": 1, "nodes": null}',
    "\x00",
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_record_is_left_out_by_all_and_an_error_in_get(records: Records, text: str) -> None:
    write(records, plan_named("good"))
    (records.claim("bad") / "record.json").write_text(text)
    assert [record.name for record in records.all()] == ["good"]
    with pytest.raises(TorchfabError, match=r"/bad/record.json: not a record of torchfab \(.*\)\n  fix: move it away"):
        records.get("bad")


def test_a_record_of_a_newer_format_is_an_error_that_says_so(records: Records) -> None:
    record = write(records, plan_named("newer"))
    path = record.folder / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9, "and": "more"}))
    assert records.all() == []
    with pytest.raises(TorchfabError, match=r"has format 9, .* reads 1\n  fix: use the torchfab that launched the job"):
        records.get("newer")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=50)
@given(data=st.data(), value=JSON)
def test_a_record_with_any_field_replaced_is_read_or_left_out(data: st.DataObject, value: Any) -> None:
    with TemporaryDirectory() as root:
        records = Records(Path(root))
        path = write(records, plan_named("good")).folder / "record.json"
        write(records, plan_named("other"))
        values = json.loads(path.read_text())
        inside = data.draw(st.sampled_from([values, values["nodes"][0], values["settings"]]))
        inside[data.draw(st.sampled_from(sorted(inside)))] = value
        path.write_text(json.dumps(values))
        assert "other" in [record.name for record in records.all()]


def test_an_unknown_job_is_an_error_that_names_the_known_jobs(records: Records) -> None:
    for number in range(10):
        write(records, plan_named(f"job{number}"), number)
    with pytest.raises(JobNameError) as caught:
        records.get("other")
    known = ", ".join(f"job{number}" for number in range(9, 1, -1))
    assert str(caught.value) == f"no job 'other' was launched from here\n  fix: jobs known here: {known}"


# ---- attempts


def test_a_new_attempt_archives_the_record_of_the_previous_one(records: Records) -> None:
    first = write(records, plan_named())
    first.remember("failed", 7, ended=True)
    second = records.write(plan_named(job_id="gpt2-second"), "tmux", 2000.0, SETTINGS, attempt=2)
    assert records.get("gpt2") == second
    assert (second.attempt, second.last_seen()["state"]) == (2, "starting")
    kept = records.attempt(second, "1")
    assert (kept.job_id, kept.created, kept.last_seen()["code"]) == (first.job_id, 1000.0, 7)
    assert records.earlier(second) == [kept]
    path = kept.folder / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))  # as another torchfab writes it
    assert records.earlier(second) == []
    assert [record.job_id for record in records.all()] == ["gpt2-second"]
    assert {mode(path) for path in kept.folder.iterdir()} == {0o600}


@pytest.mark.parametrize("text", ["3", "0", "-1", "../..", "x", "1/"])
def test_an_unknown_attempt_is_an_error_that_names_the_known_ones(records: Records, text: str) -> None:
    write(records, plan_named())
    record = records.write(plan_named(job_id="gpt2-second"), "tmux", 2000.0, SETTINGS, attempt=2)
    with pytest.raises(UsageError) as caught:
        records.attempt(record, text)
    assert str(caught.value) == f"job gpt2 has no attempt {text!r}\n  fix: its attempts: 1-2"

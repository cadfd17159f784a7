"""The archive of a stopped job, as an earlier version wrote it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tests.runtimes.slurm.test_state import RECORD
from torchfab.core.specs import Node
from torchfab.core.status import LastLine
from torchfab.runtimes.kubernetes import archive
from torchfab.runtimes.kubernetes.status import job_status

_RUNNING = {"state": {"running": {"startedAt": "2026-11-20T20:00:05Z"}}}
POD = {
    "metadata": {
        "name": "gpt2-0-x7k2p",
        "creationTimestamp": "2026-11-20T20:00:00Z",
        "annotations": {"batch.kubernetes.io/job-completion-index": "0"},
    },
    "spec": {"nodeName": "worker-1", "containers": [{"name": "train", "image": "registry.example/train:1"}]},
    "status": {
        "phase": "Running",
        "containerStatuses": [_RUNNING],
    },
}
ARCHIVED = {
    "job": {"metadata": {"name": "gpt2"}, "spec": {}, "status": {}},
    "pods": [POD],
    "warnings": {},
    "last_lines": {"gpt2-0-x7k2p": {"time": 1795291300.0, "text": "step 7", "label": 0}},
    "now": 1795291310.0,
    "stopped": 1795291310.0,
}


def test_an_archive_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "kubernetes.json").write_text(json.dumps(ARCHIVED))
    loaded = archive.load(dataclasses.replace(RECORD, folder=tmp_path))
    assert loaded is not None
    snapshot, stopped = loaded
    details = {"ranks_per_node": 2, "max_restarts": 0, "queue": ""}
    (found,) = job_status((Node(0, "gpt2-0"),), snapshot, details, stopped).nodes
    assert (found.state, [rank.rank for rank in found.ranks]) == ("stopped", [0, 1])
    assert found.last_line == LastLine(time=1795291300.0, text="step 7", label=0)


def test_what_is_archived_has_the_fields_of_an_earlier_version(tmp_path: Path) -> None:
    record = dataclasses.replace(RECORD, folder=tmp_path)
    (tmp_path / "kubernetes.json").write_text(json.dumps(ARCHIVED))
    loaded = archive.load(record)
    assert loaded is not None
    (tmp_path / "kubernetes.json").unlink()
    archive.save(record, loaded[0])
    assert json.loads((tmp_path / "kubernetes.json").read_text()) == ARCHIVED

"""From a snapshot of hosts to metrics: names and units as Prometheus recommends them, no sample for what is unknown."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.metrics.factories import RECORD, found, values
from tests.monitoring.test_host_load import GPU, job, loaded, snapshot
from torchfab.core.status import State
from torchfab.metrics import prometheus
from torchfab.metrics.families import families


def test_hosts_have_their_load_in_base_units() -> None:
    measured = values(found(loaded(cpu=0.25, memory=2 << 30, sent=2048), "no answer", None))
    assert measured["torchfab_up"] == {"node1": 1, "node2": 0, "node3": 0}
    assert measured["torchfab_host_cpu_utilization_ratio"] == {"node1": 0.25}
    assert measured["torchfab_host_memory_used_bytes"] == {"node1": 2 << 30}
    assert measured["torchfab_host_network_transmit_bytes_per_second"] == {"node1": 2048}
    assert not [name for name in measured if name.startswith(("torchfab_gpu", "torchfab_job"))]


def test_gpus_have_their_load_in_base_units() -> None:
    measured = values(found(loaded(gpus=[GPU, {**GPU, "index": 1, "power": None, "sick": "ERR!"}])), "gpu")
    assert measured["torchfab_gpu_power_watts"] == {"0": 640}
    assert measured["torchfab_gpu_utilization_ratio"] == {"0": 1.0, "1": 1.0}
    assert measured["torchfab_gpu_memory_used_bytes"] == {"0": 70 << 30, "1": 70 << 30}
    assert measured["torchfab_gpu_temperature_celsius"] == {"0": 63, "1": 63}
    assert measured["torchfab_gpu_sick"] == {"0": 0, "1": 1}


def test_a_job_has_its_state_progress_and_silence() -> None:
    measured = values(found(loaded(job=job(step=7, age_s=30)), record=RECORD, stall_s=20), "job")
    assert measured["torchfab_job_step"] == {"gpt2": 7}
    assert measured["torchfab_job_last_step"] == {"gpt2": 100}
    assert measured["torchfab_job_steps_per_second"] == {"gpt2": 2}
    assert measured["torchfab_job_silent_seconds"] == {"gpt2": 30}
    assert measured["torchfab_job_stalled"] == {"gpt2": 1}
    assert measured["torchfab_job_created_timestamp_seconds"] == {"gpt2": RECORD.created}


def test_one_state_of_a_job_is_1_and_the_others_are_0() -> None:
    (states,) = [each for each in found(loaded(job=job()), record=RECORD) if each.name == "job_state"]
    assert {labels["state"]: value for labels, value in states.samples} == {
        **dict.fromkeys(map(str, State), 0.0),
        "running": 1.0,
    }


def test_a_job_whose_status_is_not_known_has_no_state() -> None:
    names = {each.name for each in families(snapshot(loaded()), RECORD)}
    assert {"job_info", "job_ranks"} <= names
    assert not names & {"job_state", "job_step", "job_stalled"}


ALL: list[dict[str, Any]] = [loaded(gpus=[GPU], job=job())]


@pytest.mark.parametrize("family", found(*ALL, record=RECORD), ids=lambda each: each.name)
def test_names_and_help_follow_the_conventions(family: Any) -> None:
    name = prometheus.name_of(family)
    assert re.fullmatch(r"torchfab_[a-z][a-z0-9_]*", name)
    assert not name.endswith(("_total", "_count", "_sum", "_bucket"))  # of counters and histograms
    assert family.help.endswith(".")
    for labels, _ in family.samples:
        assert all(re.fullmatch(r"[a-z_]+", key) for key in labels)

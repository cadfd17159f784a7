"""The probe of the ranks in a plan."""

from __future__ import annotations

from dataclasses import replace

from torchfab.core.specs import Job, Node, NodePlan, Plan, Process
from torchfab.launchers.probe import with_probe
from torchfab.launchers.shims import source_of

JOB = Job("job", "job-1", "per-gpu", ("train.py",), "/w", "python3", probe=True)
PROCESSES = (Process("head", ("head",), secrets=False), Process("rank-0", ("python3",), {"A": "b"}, files={"f": "x"}))
PLAN = Plan(JOB, (NodePlan(Node(0, "a"), "/jobs/node-0", PROCESSES),), 1)


def test_processes_of_the_job_find_the_probe_first_and_its_head_does_not() -> None:
    head, rank = with_probe(PLAN).nodes[0].processes
    assert head == PROCESSES[0]
    assert rank.python_path == ("/jobs/node-0/rank-0/probe",)
    probe = {"probe/sitecustomize.py": source_of("probe"), "probe/rank_profile.py": source_of("rank_profile")}
    assert rank.files == {"f": "x", **probe}
    assert rank.env == {"A": "b"}


def test_without_probes_the_plan_is_the_same() -> None:
    plan = replace(PLAN, job=replace(JOB, probe=False))
    assert with_probe(plan) is plan

"""Diagnoses from evidence: the first failure, its consequences, on one clock."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.json_documents import checked
from tests.why.evidence_factory import LAUNCHED, diagnose_nodes, log, make_evidence, node, process, rank, unreachable
from tests.why.test_tracebacks import PLAIN
from torchfab.core.status import State, Verdict
from torchfab.remote.job.start_barrier import NEVER_RELEASED
from torchfab.why import report
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import diagnose
from torchfab.why.evidence import KernelLine, SchedulerReason

LOST = "RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:24750"
SYMPTOM = PLAIN.replace("ValueError: bad batch 17", LOST)


def test_first_failure_is_found_despite_clock_skew() -> None:
    late = node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, PLAIN)])
    early = node(1, [process("failed", rank(1, 7, 1158.0))], skew_s=100.0)
    found = diagnose_nodes(late, early)
    assert found.first
    assert (found.first.host, found.first.rank, found.first.time) == ("node2", 1, 1058.0)
    assert [moment.where for moment in found.timeline] == ["", "node2 rank 1", "node1 rank 0"]


def test_symptom_shortly_before_the_root_failure_is_a_consequence() -> None:
    saw = [node(at, [process("failed", rank(at, 1, 1059.5))], [log(at, SYMPTOM)]) for at in range(3)]
    found = diagnose_nodes(*saw, node(3, [process("failed", rank(3, 1, 1060.0))], [log(3, PLAIN)]))
    assert (found.first and found.first.rank, found.cause.name) == (3, "exception")
    assert found.consequences == ("node[1-3] ranks 0-2: its connection to another rank was lost",)


def test_timeout_long_before_an_exception_is_the_cause() -> None:
    timeout = PLAIN.replace(
        "ValueError: bad batch 17", "RuntimeError: Timed out waiting 5ms for recv operation to complete"
    )
    first = node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, timeout)])
    found = diagnose_nodes(first, node(1, [process("failed", rank(1, 1, 1100.0))], [log(1, PLAIN, 1100.0)]))
    assert (found.first and found.first.rank, found.cause.name) == (0, "gloo-timeout")


def test_consequences_of_512_ranks_fold_into_one_line() -> None:
    bad = node(
        0, [process("failed", rank(0, 1, 1060.0), *(rank(at, -15, 1061.0) for at in range(1, 8)))], [log(0, PLAIN)]
    )
    others = [
        node(at, [process("failed", *(rank(8 * at + local, -15, 1061.0) for local in range(8)))]) for at in range(1, 64)
    ]
    found = diagnose_nodes(bad, *others)
    assert found.consequences == ("node[1-64] ranks 1-511: ended by SIGTERM after it",)
    assert len(report.render(found).splitlines()) < 30


@pytest.mark.parametrize(("signal", "words"), [("SIGHUP", "tmux window was closed"), ("SIGTERM", "not by fab stop")])
def test_signal_to_a_supervisor_is_explained(signal: str, words: str) -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, -15))], ends={"agent": {"asked": signal}}))
    assert (found.cause.kind, found.cause.name) == (Kind.KILLED, "asked")
    assert words in found.cause.words


def test_oom_kill_is_found_by_kernel_log_and_by_cgroup_count() -> None:
    line = "Memory cgroup out of memory: Killed process 101 (python3) total-vm:1kB, anon-rss:1kB"
    by_pid = diagnose_nodes(node(1, [process("failed", rank(1, -9))], kernel={"lines": [[1059.9, line]], "unread": ""}))
    assert by_pid.cause.name == "host-memory"
    assert line in by_pid.cause.words
    by_count = diagnose_nodes(node(1, [process("failed", rank(1, -9))], ends={"agent": {"oom_kills": 1}}))
    assert "the OOM killer struck once in its control group" in by_count.cause.words


def test_oom_kill_of_another_process_is_a_note_only() -> None:
    line = "Out of memory: Killed process 1010 (other)"
    noted = diagnose_nodes(node(1, [process("failed", rank(1, -9))], kernel={"lines": [[1059.9, line]], "unread": ""}))
    assert noted.cause.name == "killed"
    assert noted.notes == (f"kernel log of node2: {line}",)
    unread = diagnose_nodes(
        node(1, [process("failed", rank(1, -9))], kernel={"lines": [], "unread": "/dev/kmsg: denied"})
    )
    assert "it may have been the OOM killer: the kernel's log cannot be read (/dev/kmsg: denied)" in unread.cause.words
    plain = diagnose_nodes(
        node(1, [process("failed", rank(1, 7))], kernel={"lines": [], "unread": "/dev/kmsg: denied"})
    )
    assert "kmsg" not in report.render(plain)


def test_kernel_lines_are_converted_to_the_local_clock() -> None:
    kernel = {"lines": [[1159.0, "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"]], "unread": ""}
    evidence = make_evidence(node(0, [process("failed", rank(0, 1, 1160.0))], skew_s=100.0, kernel=kernel))
    assert evidence.nodes[0].kernel[0].time == 1059.0
    assert isinstance(evidence.nodes[0].kernel[0], KernelLine)
    assert "Xid" in report.render(diagnose(evidence))


def test_short_lived_rank_is_found_in_the_torchrun_report() -> None:
    reported = [{"rank": 3, "code": 1}]
    found = diagnose_nodes(node(1, [process("failed", reported=reported)], [log("local 1", PLAIN)]))
    assert found.first
    assert (found.first.rank, found.cause.name) == (3, "exception")


def test_traceback_comes_from_the_error_file_if_the_log_has_none() -> None:
    error_file = {"label": 0, "attempt": 0, "message": "ValueError: bad batch 17", "traceback": PLAIN}
    found = diagnose_nodes(node(0, [process("failed", rank(0, 1))], [log(0, "")], reports=[error_file]))
    assert found.traceback
    assert found.traceback.exception == "ValueError: bad batch 17"


def test_error_file_of_an_earlier_attempt_is_ignored() -> None:
    error_file = {"label": 0, "attempt": 0, "message": "out of memory", "traceback": f"{PLAIN}\n"}
    ranks = [rank(0, 1, 1010.0), rank(0, 3, 1060.0, attempt=1)]
    found = diagnose_nodes(node(0, [process("failed", *ranks)], [log(0, "bye")], reports=[error_file]))
    assert (found.cause.name, found.traceback) == ("exit-code", None)


def test_failures_of_earlier_attempts_are_only_counted() -> None:
    ranks = [rank(0, 7, 1010.0), rank(0, 8, 1020.0, attempt=1), rank(0, 9, 1060.0, attempt=2)]
    found = diagnose_nodes(node(0, [process("failed", *ranks)]))
    assert (found.first and found.first.code, found.notes) == (9, ("torchrun had restarted its ranks 2 times before",))


def test_restarted_job_that_runs_is_reported_as_running() -> None:
    found = diagnose_nodes(node(0, [process("running", rank(0, 7, 1010.0), rank(0, attempt=1))]))
    assert (found.cause.kind, found.first) == (Kind.RUNNING, None)
    assert found.notes == ("torchrun had restarted its ranks once before",)


def test_launcher_failure_without_ranks_has_an_unknown_cause() -> None:
    logs = [log("agent", "torchrun: error: unrecognized arguments: --x", path="output.log")]
    found = diagnose_nodes(node(0, [process("failed", code=2)], logs))
    assert (found.cause.kind, found.cause.name) == (Kind.UNKNOWN, "launcher")
    assert "the agent ended with exit code 2" in report.render(found)
    assert "unrecognized arguments" in report.render(found)


def test_killed_launcher_is_the_first_failure_and_its_ranks_follow() -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, -15, 1061.5), code=-9)]))
    assert found.first
    assert (found.first.label, found.cause.name) == ("the agent on node1", "killed")
    assert found.consequences == ("node1 rank 0: ended by SIGTERM after it",)


def test_unreachable_node_is_the_cause_only_if_others_waited() -> None:
    waited = diagnose_nodes(node(0, [process("failed", rank(0, 1))], [log(0, SYMPTOM)]), unreachable(1))
    assert (waited.cause.name, waited.bad_nodes) == ("node-unreachable", ("node2",))
    own = diagnose_nodes(node(0, [process("failed", rank(0, 1))], [log(0, PLAIN)]), unreachable(1))
    assert (own.cause.name, own.bad_nodes, own.unreachable) == ("exception", (), {"node2": "no answer"})


def test_stop_names_its_origin_and_keeps_earlier_failures() -> None:
    events = ({"time": 1070.0, "event": "stop"},)
    stopped = diagnose_nodes(node(0, [process("stopped", rank(0, -15, 1071.0))], stop_asked=1070.0), events=events)
    assert (stopped.cause.kind, stopped.cause.words) == (Kind.STOPPED, "it was stopped with fab stop, from here")
    elsewhere = diagnose_nodes(node(0, [process("stopped", rank(0, -15, 1071.0))], stop_asked=1070.0))
    assert "not from here" in elsewhere.cause.words
    failed = node(0, [process("failed", rank(0, 7, 1060.0))], stop_asked=1070.0)
    rest = node(1, [process("stopped", rank(1, -15, 1071.0))], stop_asked=1070.0)
    found = diagnose_nodes(failed, rest, events=({"time": 1070.0, "event": "stopped after a failure"},))
    assert found.cause.name == "exit-code"
    assert found.consequences == ("node2 rank 1: ended by fab, which stopped the rest",)


def test_scheduler_reason_for_the_job_takes_precedence() -> None:
    said = (SchedulerReason("OUT_OF_MEMORY", "it used more memory than it had asked for"),)
    verdict = Verdict(State.FAILED, ended=True, reason="it used more memory than it had asked for")
    found = diagnose_nodes(node(0, [process("failed", rank(0, -9))]), said=said, verdict=verdict)
    assert (found.cause.kind, found.first and found.first.rank) == (Kind.MEMORY, 0)
    cancelled = diagnose_nodes(
        node(0, [process("failed", rank(0, -15))]), said=(SchedulerReason("CANCELLED", "with scancel"),)
    )
    assert (cancelled.cause.kind, cancelled.cause.words, cancelled.first) == (Kind.STOPPED, "with scancel", None)


def test_import_error_on_one_node_only_blames_that_node() -> None:
    lacks = PLAIN.replace("ValueError: bad batch 17", "ModuleNotFoundError: No module named 'x'")
    both = [node(at, [process("failed", rank(at, 1, 1005.0))], [log(at, lacks)]) for at in (0, 1)]
    assert diagnose_nodes(*both).cause.kind is Kind.SCRIPT
    one = diagnose_nodes(both[0], node(1, [process("failed", rank(1, -15, 1006.0))]))
    assert one.cause.kind is Kind.SCRIPT  # the other rank was ended before it could get further
    further = diagnose_nodes(both[0], node(1, [process("failed", rank(1, 1, 1030.0))], [log(1, SYMPTOM)]))
    assert (further.cause.kind, further.bad_nodes) == (Kind.NODE, ("node1",))
    assert further.cause.words.endswith("No module named 'x', on node1 only: node2 got further")


def test_full_disk_is_noted_with_its_free_space() -> None:
    full = {"path": "/scratch", "free": 0, "size": 10**9}
    error = PLAIN.replace("ValueError: bad batch 17", "OSError: [Errno 28] No space left on device")
    found = diagnose_nodes(node(0, [process("failed", rank(0, 1))], [log(0, error)], disks=[full]))
    assert found.notes == ("node1: /scratch has 0.0 of 1000 MB free",)


def test_fingerprints_are_equal_only_for_equal_failures() -> None:
    def fingerprint(text: str, code: int = 1) -> str:
        return diagnose_nodes(node(0, [process("failed", rank(0, code))], [log(0, text)])).fingerprint

    assert fingerprint(PLAIN) == fingerprint(PLAIN.replace("17", "18"))
    assert fingerprint(PLAIN) != fingerprint(PLAIN.replace("bad", "good"))
    assert fingerprint("", 7) == fingerprint("some line", 7) != fingerprint("", 8)
    assert diagnose_nodes(node(0, [process("succeeded", rank(0, 0))])).fingerprint == ""


def test_output_has_no_escape_sequences_and_json_is_valid() -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, 7))], [log(0, "\x1b[2J\x1b]0;x\x07red\nnext\r")]))
    assert "\x1b" not in report.render(found)
    assert "\n  red\n" in report.render(found)
    assert checked("why", report.as_json(found))["first"]["code"] == 7


def test_the_json_has_state_and_events_as_plain_values() -> None:
    lost = node(1, [process("running", rank(1))], halted=["rank 1"])
    found = diagnose_nodes(node(0, [process("failed", rank(0, 7))], [log(0, PLAIN)]), lost, unreachable(2))
    document = checked("why", report.as_json(found))
    assert (document["state"], document["first"]["host"], document["first"]["rank"]) == ("failed", "node1", 0)
    assert document["failed"] == {"node3": {"error": "no answer", "fix": ""}}
    assert "State." not in json.dumps(document)
    assert all(isinstance(event["time"], float) for event in document["timeline"])


def test_process_without_exit_code_has_an_unknown_cause() -> None:
    found = diagnose_nodes(node(0, [process("failed", code=None, ended=LAUNCHED + 5)]))
    assert found.cause.kind is Kind.UNKNOWN


def test_process_that_could_not_start_reports_the_reason() -> None:
    reason = "cannot start /venv/bin/python: No such file or directory"
    found = diagnose_nodes(node(0, [process("failed", code=None, started=None, reason=reason)]))
    assert (found.cause.kind, found.cause.words) == (Kind.NODE, reason)


def test_process_never_released_from_the_barrier_is_not_a_node_fault() -> None:
    found = diagnose_nodes(node(0, [process("failed", code=None, started=None, reason=NEVER_RELEASED)]))
    assert (found.cause.kind, found.cause.name, found.cause.words) == (Kind.KILLED, "launch-cut-off", NEVER_RELEASED)


def test_exception_followed_by_an_abort_is_an_exception() -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, -6))], [log(0, PLAIN)]))
    assert (found.cause.name, found.cause.words) == ("exception", "the script raised ValueError: bad batch 17")
    assert diagnose_nodes(node(0, [process("failed", rank(0, -6))], [log(0, "")])).cause.name == "crash"


def test_every_rank_has_a_place_in_the_story() -> None:
    ranks = [rank(0, 1, 1060.0), rank(1, 0, 1061.0), rank(2), rank(3, None, 1061.0), rank(4, -15, 1061.0)]
    found = diagnose_nodes(node(0, [process("failed", *ranks)], [log(0, PLAIN)]))
    assert found.others == (
        "node1 rank 1: ended with exit code 0",
        "node1 rank 2: is still running, as far as is known",
    )
    story = "\n".join(found.consequences)
    assert "rank 3" in story
    assert "rank 4" in story
    assert "the other ranks:" in report.render(found)


def test_ranks_that_no_node_reported_have_a_place_in_the_story() -> None:
    failed = node(0, [process("failed", rank(1, 7))])
    found = diagnose(replace(make_evidence(failed, unreachable(1)), world_size=4))
    assert found.others == ("ranks 0,2-3: unknown, no answer from node2",)
    found = diagnose(replace(make_evidence(failed), world_size=2))
    assert found.others == ("rank 0: it was not seen to run",)


@pytest.mark.parametrize(("world_size", "certainty"), [(1, "probable"), (2, "possible")])
def test_symptom_is_only_possible_while_ranks_are_unseen(world_size: int, certainty: str) -> None:
    failed = node(0, [process("failed", rank(0, 1))], [log(0, SYMPTOM)])
    found = diagnose(replace(make_evidence(failed), world_size=world_size))
    assert (found.cause.name, found.certainty) == ("connection-lost", certainty)


def test_certainty_and_evidence_are_reported() -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, 1))], [log(0, f"step 1\n{PLAIN}")]))
    assert found.certainty == "certain"
    (line,) = found.evidence
    assert (line.host, line.path, line.text) == ("node1", "/jobs/0/stderr.log", "ValueError: bad batch 17")
    page = report.render(found)
    assert "\nsure   certain\n" in page
    assert "evidence:" in page
    assert report.as_json(found)["evidence"][0]["text"] == "ValueError: bad batch 17"


def test_two_candidates_are_both_shown() -> None:
    other = PLAIN.replace("ValueError: bad batch 17", "KeyError: 'x'")
    nodes = [
        node(at, [process("failed", rank(at, 1, 1060.0 + at / 2))], [log(at, text)])
        for at, text in enumerate((PLAIN, other))
    ]
    found = diagnose_nodes(*nodes)
    assert (found.certainty, [each.rank for each in found.rivals]) == ("probable", [1])
    assert "or     rank 1 on node2: the script raised KeyError: 'x'" in report.render(found)


def test_unknown_end_shows_the_last_lines_and_says_so() -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, 9))], [log(0, "loading\nalmost there\n")]))
    assert (found.cause.name, found.certainty) == ("exit-code", "probable")
    assert "almost there" in report.render(found)


def test_time_of_the_traceback_counts_not_that_of_the_end() -> None:
    parts = [{"text": "step 1\n", "time": 1010.0, "line": 1}, {"text": PLAIN, "time": 1040.0, "line": 2}]
    late = {**log(0, ""), "parts": [*parts, {"text": "closing\n", "time": 1070.0, "line": 8}], "written": 1070.0}
    first = node(0, [process("failed", rank(0, 1, 1075.0))], [late])
    other = PLAIN.replace("ValueError: bad batch 17", "KeyError: 'x'")
    found = diagnose_nodes(first, node(1, [process("failed", rank(1, 1, 1050.0))], [log(1, other, 1050.0)]))
    assert found.first
    assert (found.first.rank, found.first.time, found.evidence[0].line) == (0, 1040.0, 7)


def test_duplicate_gpu_names_hosts_that_are_one_machine() -> None:
    text = PLAIN.replace(
        "ValueError: bad batch 17", "RuntimeError: Duplicate GPU detected : rank 0 and rank 1 both on 3b000"
    )
    nodes = [node(at, [process("failed", rank(at, 1))], [log(at, text)], boot_id="1f2e") for at in (0, 1)]
    assert "node1 and node2 are one machine (the same boot id): list it once" in diagnose_nodes(*nodes).notes


def test_rank_that_ends_without_a_word_is_said_to_say_nothing() -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, 3))], [log(0, "step 1\nstep 2\n", path="stdout.log")]))
    page = report.render(found)
    assert found.certainty == "possible"
    assert "its log does not show why" in found.cause.fix
    assert "  step 2" in page
    assert page.endswith("/jobs/0/stdout.log: step 2")


def test_cause_without_a_line_rests_on_the_exit_record() -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, -9))]))
    assert [line.text for line in found.evidence] == ["rank 0 ended with SIGKILL"]
    assert "there is no log" in report.render(found)
    empty = diagnose_nodes(node(0, [process("failed", rank(0, 1))], [log(0, "")]))
    assert "its log is empty (/jobs/0/stderr.log)" in report.render(empty)


def test_ranks_that_fail_alike_are_said_to_fail_the_same() -> None:
    nodes = [node(at, [process("failed", rank(at, 1, 1060.0 + at))], [log(at, PLAIN)]) for at in range(3)]
    assert diagnose_nodes(*nodes).consequences == ("node[2-3] ranks 1-2: the same",)


def test_rank_that_left_early_is_shown_with_its_last_lines() -> None:
    early = node(1, [process("succeeded", rank(1, 0, 1055.0))], [log(1, "epoch 3 done\n", 1055.0)])
    lost = node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, SYMPTOM)])
    found = diagnose_nodes(lost, early)
    assert found.cause.name == "left-early"
    assert "  epoch 3 done" in report.render(found)
    assert [event.what for event in found.timeline if "node2" in event.where] == [found.cause.words]

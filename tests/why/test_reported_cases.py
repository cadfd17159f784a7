"""Each public report that the diagnosis was tried on has a job in the corpus, and its advice fits."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.recorded.corpus import BATCHES, Case, cases
from torchfab.why import report

JOBS = {case.name: case for batch in BATCHES for case in cases(batch)}
TESTS = Path(__file__).parents[1]

# Report -> jobs of the corpus, which `tests/recorded/test_corpus.py` checks for kind, first rank and cause.
REPORTS: dict[str, tuple[str, ...]] = {
    "1": ("raiser-lingers",),
    "2": ("raiser-hangs-others-time-out",),
    "3": ("raiser-kills-peers",),
    "4": ("left-early", "exit-0-early-no-barrier"),
    "5": ("swallowed",),
    "6": ("broken-pipe-first-to-end",),
    "7": ("pin-memory-after", "eof-of-pin-memory-on-another-rank"),
    "8": ("ignored-after",),
    "9": (
        *("deepspeed-del-after-oom", "wandb-thread-after", "atexit-after"),
        *("row-9-cpuadam-del", "row-9-process-3"),
    ),
    "10": ("loader-process-at-the-end",),
    "15": ("vllm-root-cause-above",),
    "16": ("accelerate-below-torchrun", "inner-torchrun"),
    "17": ("ray-task", "raytrain-taskerror"),
    "18": ("prefix-default-rank",),
    "19": ("prefix-pdsh", "prefix-deepspeed-worker"),
    "20": ("prefix-openmpi-tag", "prefix-openmpi5"),
    "21": ("vllm-root-cause-above", "vllm-tp-worker"),
    "22": ("prefix-ray-actor", "row-22-ray-colours"),
    "23": (
        *("prefix-stderr-word", "prefix-srun-label", "prefix-docker-compose", "prefix-python-logging"),
        *("row-23-compose", "row-23-timestamps", "prefix-journald"),
    ),
    "24": ("loguru", "loguru-serialised"),
    "25": ("rich", "rich-child-failed"),
    "26": ("json-line", "json-exc-info"),
    "27": ("olmo-429",),
    "28": ("row-28-429-everywhere",),
    "29": ("hub-401", "hub-offline"),
    "30": ("requests-reset", "requests-reset-after-index-error"),
    "31": ("s3", "wandb-comm", "postgres"),
    "34": ("inotify",),
    "35": ("read-only-of-the-script", "socket-not-connected"),
    "36": ("quota", "lustre-quota"),
    "37": ("no-locks",),
    "38": ("device-ordinal-1", "device-ordinal-2", "device-ordinal-3"),
    "39": ("duplicate-gpu",),
    "40": ("cuda-init",),
    "41": ("nccl-mismatch",),
    "42": (
        *("no-gpu-no-driver", "no-gpu-nccl-no-gpus", "no-gpu-not-compiled", "no-gpu-unknown-error"),
        *("no-gpu-no-cuda-gpus", "no-gpu-cuda-setdevice", "no-gpu-no-kernel", "cublas-not-initialized"),
    ),
    "43": ("hccl-notify", "npu-oom", "xpu-oom"),
    "44": ("loader-killed",),
    "45": ("shell-killed", "code-139", "row-45-134", "row-45-135", "row-45-137-unknown"),
    "46": ("pool-broken", "map-died"),
    "48": ("libcudart",),
    "49": ("glibc", "undefined-symbol"),
    "50": ("long-cpp-frames",),
    "56": ("communicator-aborted", "row-56-aborted-alone"),
    "57": ("row-57-original-reason",),
    "58": ("ibv-modify",),
    "59": ("docker0",),
    "60": ("row-60-unique-id",),
    "61": ("row-61-interleaved",),
    "62": ("spawn", "lightning-spawn-exit"),
    "63": ("row-63-dcp-space", "dcp-rank-in-head"),
    "64": ("row-64-tqdm",),
    "65": (
        *("python-3.13-colours", "row-65-logging-exception", "row-65-joblib", "row-65-safetensors-space"),
        *("row-65-arrow-space", "row-65-bad-alloc", "row-65-802", "row-65-state-dict", "row-65-leaked"),
    ),
    "66": ("ninja", "row-66-torchrun"),
    "81": ("srun-oom", "slurm-oom-step", "slurm-script-killed"),
    "S2": ("S2-cpu-torch",),
    "S5": ("S5-loader-frames",),
    "S6": ("S6-thread-after-main",),
    "S7": ("S7-pin-memory-eof",),
    "S10": ("S10-at-once",),
}
# Report -> tests elsewhere: logging in, hosts files, commands after `--`, the launchers' own stories.
TESTED_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "66": (
        (
            "integration/test_environment.py::"
            "test_a_ranks_path_begins_with_the_interpreters_folder_and_variables_of_launchers_are_dropped"
        ),
    ),
    "67": (
        "integration/test_commands.py::test_every_rank_runs_the_command",
        "integration/test_commands.py::test_a_command_that_cannot_work_starts_nothing",
    ),
    "68": ("integration/test_login_errors.py::test_right_key_is_offered_first_of_the_many_in_an_agent",),
    "74": (
        "integration/test_login_errors.py::test_unusual_servers_and_keys_let_in",
        "integration/test_login_errors.py::test_bad_key_beside_a_good_one_does_not_matter",
    ),
    "69": ("integration/test_login_errors.py::test_second_factor_is_named",),
    "70": ("integration/test_login_errors.py::test_server_that_takes_no_keys_is_named",),
    "71": ("integration/test_login_errors.py::test_old_key_exchange_is_named",),
    "72": ("integration/test_login_errors.py::test_file_that_is_no_private_key_is_named",),
    "73": ("integration/test_login_errors.py::test_refused_key_is_copied_with_ssh_copy_id",),
    "75": ("sync/test_rsync.py::test_cause_of_a_failed_ssh_is_kept_and_has_its_fix",),
    "76": ("transport/ssh/test_config.py::test_config_is_parsed_as_openssh_parses_it",),
    "78": ("core/hostfiles/test_hostfiles.py::test_each_dialect_is_recognised_and_read",),
    "S8": ("integration/test_deepspeed.py::test_all_commands_name_the_same_first_rank",),
    "S9": ("integration/test_mpi.py::test_all_commands_name_the_same_first_rank",),
    "S11": ("integration/test_deepspeed.py::test_all_commands_name_the_same_first_rank",),
    "79": ("integration/test_bad_input.py::test_one_machine_under_two_names_is_refused_with_both_lines",),
}
# Report -> what the fix must say, and what it must not say.
ADVICE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "4": (("Join",), ("NCCL",)),
    "15": (("smaller batch",), ("see the traceback",)),
    "27": (("HF_TOKEN", "HF_HUB_OFFLINE"), ()),
    "28": (("HF_TOKEN", "on one rank", "HF_HUB_OFFLINE"), ()),
    "29": (("HF_",), ()),
    "30": ((), ("fab network",)),
    "31": (("service",), ("fab network",)),
    "34": (("max_user_watches",), ("launch without",)),
    "35": ((), ("launch without that node; fab doctor",)),
    "36": (("quota",), ("launch without",)),
    "37": (("HF_HOME",), ()),
    "38": (("nproc-per-node", "LOCAL_RANK"), ()),
    "39": (("set_device",), ("NCCL_SOCKET_IFNAME",)),
    "40": (("spawn",), ("NCCL_SOCKET_IFNAME",)),
    "41": (("nvidia-nccl",), ("NCCL_SOCKET_IFNAME",)),
    "44": (("memory",), ()),
    "46": (("memory",), ()),
    "48": (("LD_LIBRARY_PATH",), ()),
    "49": (("build or install it again",), ()),
    "58": (("NCCL_IB",), ("NCCL_SOCKET_IFNAME",)),
    "59": (("^docker0",), ()),
    "66": (("PATH",), ()),
    "S2": (("torch with CUDA",), ()),
}
ALL = [(number, JOBS[name]) for number, names in REPORTS.items() for name in names]
WITH_ADVICE = [(number, JOBS[name]) for number in ADVICE for name in REPORTS[number]]


@pytest.mark.parametrize(("number", "case"), ALL, ids=[f"{number}-{case.name}" for number, case in ALL])
def test_report_has_its_cause_on_one_page(number: str, case: Case) -> None:
    found = case.diagnose()
    page = report.render(found)
    assert case.is_right(found), found.cause
    answer, advice = page.splitlines()[:2]
    assert answer.startswith("job ")
    assert " ".join(found.cause.words.split()) in " ".join(answer.split())
    assert advice == f"fix    {found.cause.fix}"
    assert "sure   " in page
    if found.traceback:
        assert found.traceback.last_line[:60] in page


@pytest.mark.parametrize(("number", "case"), WITH_ADVICE, ids=[f"{number}-{case.name}" for number, case in WITH_ADVICE])
def test_fix_of_a_report_fits_its_cause(number: str, case: Case) -> None:
    fix = case.diagnose().cause.fix
    wanted, unwanted = ADVICE[number]
    assert all(words in fix for words in wanted), fix
    assert not any(words in fix for words in unwanted), fix


def test_loader_exception_shows_the_frames_of_both_processes() -> None:
    page = report.render(JOBS["S5-loader-frames"].diagnose())
    inner, outer = page.index('"/srv/exp/data.py", line 12'), page.index('"/srv/exp/run.py", line 88')
    assert inner < outer


@pytest.mark.parametrize("where", [each for group in TESTED_ELSEWHERE.values() for each in group])
def test_reports_tested_elsewhere_still_have_their_tests(where: str) -> None:
    path, _, name = where.partition("::")
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert name in names

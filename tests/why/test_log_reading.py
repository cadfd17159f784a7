"""Which exception ended a process: behind those that only wrap it, and among those that Python marks as secondary."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from tests.why.evidence_factory import diagnose_nodes, log, node, process, rank
from tests.why.test_tracebacks import MARKS
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis


def traceback(raised: str, path: str = "/srv/run/train.py") -> str:
    return f'Traceback (most recent call last):\n  File "{path}", line 31, in step\n    work(batch)\n{raised}\n'


def of_one(text: str, code: int = 1) -> Diagnosis:
    return diagnose_nodes(node(0, [process("failed", rank(0, code))], [log(0, text)]))


def behind(prefix: str, text: str) -> str:
    return "".join(f"{prefix}{line}\n" for line in text.splitlines())


# What failed -> its kind.
CAUSES = {
    "KeyError: 'img'": Kind.SCRIPT,
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": Kind.MEMORY,
    "OSError: [Errno 98] Address already in use": Kind.NETWORK,
    "my.data.BadShard: shard 7": Kind.SCRIPT,
}
WRAPPERS = (
    "subprocess.CalledProcessError: Command '['python', 'inner.py']' returned non-zero exit status 1.",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
    "torch.multiprocessing.spawn.ProcessExitedException: process 1 terminated with exit code 1",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace",
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore had an issue. See stack trace (above) for the cause.",
    "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
    "ray.train.base_trainer.TrainingFailedError: The run failed with the error above",
    "datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset",
    "RuntimeError: One or more background workers are no longer alive. Please check the print statements above",
    "RuntimeError: DataLoader worker (pid(s) 2213) exited unexpectedly",
    "RuntimeError: Pin memory thread exited unexpectedly",
    "RuntimeError: worker process 3 died unexpectedly, look at its traceback",
    "RuntimeError: Error building extension 'fused_adam'",
    "tenacity.RetryError: RetryError[<Future at 0x7f state=finished raised KeyError>]",
    "SystemExit: 1",
)
HOW = {
    "before": "{cause}\nshutting down\n{wrapper}",
    "child": "Process Worker-2:\n{cause}\n{wrapper}",
    "thread": "Exception in thread loop:\n{cause}\n{wrapper}",
    "worker": "{prefixed}\n{wrapper}",
    "direct": "{cause}\nThe above exception was the direct cause of the following exception:\n\n{wrapper}",
    "handling": "{cause}\nDuring handling of the above exception, another exception occurred:\n\n{wrapper}",
    "twice": "{cause}\n{wrapper}\nleaving\n{wrapper}",
}


@pytest.mark.parametrize(("wrapper", "how"), [*itertools.product(WRAPPERS, HOW)])
@pytest.mark.parametrize("cause", CAUSES)
def test_wrapper_leads_on_to_what_failed(wrapper: str, how: str, cause: str) -> None:
    inner, outer = traceback(cause, "/srv/run/data.py"), traceback(wrapper)
    text = HOW[how].format(cause=inner, wrapper=outer, prefixed=behind("(Worker_TP1 pid=7) ", inner))
    found = of_one(f"step 1\n{text}")
    assert found.traceback
    assert found.traceback.exception == cause
    assert (found.cause.kind, found.bad_nodes) == (CAUSES[cause], ())
    assert cause.partition(":")[2][:20] in found.cause.words


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_alone_is_named_with_the_line_before_it(wrapper: str) -> None:
    found = of_one(f"step 1\nfatal: the shard index is damaged\n{traceback(wrapper)}")
    assert "fatal: the shard index is damaged" in found.cause.words
    assert wrapper.partition(":")[0] in found.cause.words


NO_WRAPPERS = (
    "ValueError: the batch size must divide 8, see the table below",
    "ValueError: lr 3 is too high; check the value in config.yaml and the shapes above",
    "RuntimeError: shape '[2, -1]' is invalid, refer to the documentation",
    "KeyError: 'worker'",
    "RuntimeError: process group is not initialised",
    "my.data.BadShard: worker 3 read a shard that ended early",
)


@pytest.mark.parametrize("raised", NO_WRAPPERS)
def test_exception_that_only_resembles_a_wrapper_is_the_cause(raised: str) -> None:
    noise = traceback("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    found = of_one(f"{noise}retrying\n{traceback(raised)}")
    assert found.traceback
    assert (found.traceback.exception, found.cause.kind, found.certainty) == (raised, Kind.SCRIPT, "certain")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_killed_child_explains_a_wrapper(wrapper: str) -> None:
    kernel = {"lines": [[1058.0, "Out of memory: Killed process 4411 (python3) total-vm:9kB"]], "unread": ""}
    one = node(0, [process("failed", rank(0, 1))], [log(0, traceback(wrapper))], kernel=kernel)
    found = diagnose_nodes(one)
    assert (found.cause.kind, found.certainty) == (Kind.MEMORY, "probable")
    assert "4411" in found.cause.words


# ---- secondary tracebacks

LATER = (
    *("ConnectionResetError: [Errno 104] Connection reset by peer", "AttributeError: 'Engine' has no attribute 'x'"),
    *("EOFError", "BrokenPipeError: [Errno 32] Broken pipe", "RuntimeError: can't start new thread"),
    *("OSError: [Errno 28] No space left on device", "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"),
)
SECONDARY = st.tuples(st.sampled_from(sorted(MARKS)), st.sampled_from(LATER))
PREFIXES = st.sampled_from(("", "[rank0]: ", "12: ", "10.0.0.7: ", "(Worker pid=3) ", "[1,0]<stderr>:"))


@fuzzed(
    st.sampled_from(sorted(CAUSES)),
    st.lists(SECONDARY, max_size=3),
    st.lists(SECONDARY, max_size=3),
    PREFIXES,
    st.sampled_from((1, -6)),
)
def test_secondary_tracebacks_around_the_true_one_are_no_cause(
    cause: str, before: list[tuple[str, str]], after: list[tuple[str, str]], prefix: str, code: int
) -> None:
    parts = [f"{mark}\n{traceback(raised, '/usr/lib/python3.11/threading.py')}" for mark, raised in before]
    parts.append(f"step 9\n{traceback(cause)}")
    parts += [f"{mark}\n{traceback(raised, '/usr/lib/python3.11/threading.py')}" for mark, raised in after]
    found = of_one(behind(prefix, "".join(parts)), code)
    assert found.traceback
    assert found.traceback.exception == cause
    assert found.cause.kind is CAUSES[cause]


@pytest.mark.parametrize("mark", [mark for mark in MARKS if "thread" in mark.lower() or mark.startswith("Process")])
@pytest.mark.parametrize("cause", CAUSES)
def test_secondary_traceback_is_the_cause_if_nothing_else_is_known(mark: str, cause: str) -> None:
    found = of_one(f"step 9\n{mark}\n{traceback(cause)}")
    assert found.traceback
    assert (found.traceback.exception, found.certainty) == (cause, "probable")


REASONS = (
    "  what():  invalid device pointer: 0x7ff443ffdc00",
    "thread 'main' panicked at src/lib.rs:7:5: no such shard",
    "*** Error in `python3': double free or corruption (!prev): 0x00007f ***",
    "LLVM ERROR: Cannot select: t12",
    "FATAL: cannot open the index",
)
FRAMES = "".join(f"frame #{number}: <unknown function> + 0x1 (0x7f in /x/libtorch.so)\n" for number in range(40))
SIGNAL = """[n0:19546] *** Process received signal ***
[n0:19546] Signal: Aborted (6)
[n0:19546] [ 0] /lib64/libpthread.so.0(+0x12b30)[0x7fb81983db30]
[n0:19546] *** End of error message ***
"""
MAPS = "".join(f"00{number}00000-007a9000 r-xp 00000000 08:01 1054811 /usr/bin/python3\n" for number in range(10, 60))
MEMORY_MAP = f"""======= Backtrace: =========
/lib/libc.so.6(+0x777e5)[0x7f80a2e637e5]
======= Memory map: ========
{MAPS}"""
RUST = """note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
fatal runtime error: failed to initiate panic, error 5
"""


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("dump", [FRAMES, SIGNAL, MEMORY_MAP, RUST])
@pytest.mark.parametrize("before", ["", "terminate called after throwing an instance of 'c10::Error'\n"])
def test_reason_of_a_crash_is_found_before_its_dump(reason: str, dump: str, before: str) -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, -6))], [log(0, f"step 1\n{before}{reason}\n{dump}")]))
    assert " ".join(reason.split())[:60] in " ".join(found.cause.words.split())


# ---- what a library, a compiler or a launcher printed, where the exception only says that something failed

KILLED_COMPILERS = (
    "g++: fatal error: Killed signal terminated program cc1plus",
    "c++: internal compiler error: Killed (program cc1plus)",
    "nvcc error   : 'cicc' died due to signal 9 (Kill signal)",
    "clang: error: unable to execute command: Killed",
)


@pytest.mark.parametrize("printed", KILLED_COMPILERS)
@pytest.mark.parametrize("raised", ["RuntimeError: Error building extension 'cpu_adam'", WRAPPERS[0]])
def test_killed_compiler_is_a_lack_of_memory(printed: str, raised: str) -> None:
    found = of_one(f"{printed}\nninja: build stopped: subcommand failed.\n{traceback(raised)}")
    assert found.cause.kind is Kind.MEMORY
    assert " ".join(printed.split()) in found.cause.words


COMPILER_ERRORS = (
    "/tmp/x/header.h:4:10: fatal error: Python.h: No such file or directory",
    "main.cu(12): error: identifier 'foo' is undefined",
    "/usr/bin/ld: cannot find -lcuda: No such file or directory",
    "ptxas fatal   : Value 'sm_90a' is not defined for option 'gpu-name'",
)


@pytest.mark.parametrize("error", COMPILER_ERRORS)
@pytest.mark.parametrize("prefix", ["", "[rank0]: ", "(Worker pid=7) "])
def test_error_of_a_compiler_below_its_exception_is_named(error: str, prefix: str) -> None:
    raised = "torch._inductor.exc.InductorError: CppCompileError: C++ compile error"
    below = f"\nCommand:\ng++ main.cpp -o main.so\n\nOutput:\nIn file included from main.cpp:2:\n{error}\n"
    found = of_one(behind(prefix, f"{traceback(raised)}{below}"))
    assert found.cause.kind is Kind.SCRIPT
    assert " ".join(error.split()) in " ".join(found.cause.words.split())


WARNED = "/x/torch/cuda/__init__.py:129: UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). "


ABOUT_GPUS = (
    *(
        "AssertionError: this script needs a GPU",
        "SystemError: no CUDA here",
        "RuntimeError: Found no GPU: cannot train",
    ),
    *("ValueError: No accelerator found", "RuntimeError: device cuda:0 is not available", "my.Error: GPU is required"),
)
NOT_ABOUT_GPUS = (
    *("ValueError: x", "RuntimeError: Expected all tensors to be on the same device, but found at least two devices"),
    *("KeyError: 'device'", "ValueError: unknown device 'cudaa'", "TypeError: f() got an argument 'gpu_memory'"),
)


@pytest.mark.parametrize("raised", [*ABOUT_GPUS, *NOT_ABOUT_GPUS])
def test_warning_that_cuda_cannot_start_explains_only_exceptions_about_gpus(raised: str) -> None:
    text = f"{WARNED}Error 802: system not yet initialized\n  return x\n{traceback(raised)}"
    found = of_one(text)
    is_about_gpus = raised in ABOUT_GPUS
    assert (found.cause.kind is Kind.NODE) is is_about_gpus
    assert ("system not yet initialized" in found.cause.words) is is_about_gpus
    assert raised in found.cause.words


@pytest.mark.parametrize("code", [(1, 1), (1, 0)])
def test_cuda_that_does_not_start_blames_a_node_only_if_no_rank_of_it_got_further(code: tuple[int, int]) -> None:
    bad = traceback("RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment")
    texts = [bad if each else "step 1\n" for each in code]
    first = node(
        0,
        [process("failed", *(rank(number, each) for number, each in enumerate(code)))],
        [log(number, text) for number, text in enumerate(texts)],
    )
    other = node(1, [process("failed", rank(2, -15))], [log(2, "step 1\n")])
    assert (diagnose_nodes(first, other).bad_nodes == ("node1",)) is (code == (1, 1))


RUST_CLIENTS = ("tcp connect error: Connection refused (os error 111)", "error sending request for url (http://x:1/y)")


@pytest.mark.parametrize("words", RUST_CLIENTS)
def test_client_written_in_rust_reports_another_service(words: str) -> None:
    found = of_one(traceback(f"RuntimeError: {words}", "/opt/venv/lib/python3.11/site-packages/torchft/manager.py"))
    assert found.cause.kind is Kind.NETWORK
    assert found.cause.name == "service-lost"


def test_rank_without_a_log_has_the_last_words_of_its_launchers_log() -> None:
    text = "Exception\n: Current loss scale already at minimum - cannot decrease scale anymore.\n[INFO] end\n"
    text += "[ERROR] [launch.py:434:sigkill_handler] ['python', 'x.py'] exits with return code = 1\n"
    found = diagnose_nodes(node(0, [process("failed", rank(0, 1))], [log("agent", text, path="output.log")]))
    assert "cannot decrease scale" in found.cause.words


def test_lines_of_torchs_profiler_are_no_reason() -> None:
    profiled = "ERROR: External init callback must run in same thread as registerClient (3 != 4)\n"
    profiled += "USDT:2026-11-30 00:03:13 41:45 SyncActivityProfilerHandler.cpp:52] profiler_start\n"
    assert "External init" not in of_one(f"{profiled}step 2\n").cause.words
    assert "cannot read the shard" in of_one(f"cannot read the shard\n{profiled}").cause.words


REPORTS = (
    "[E] api.py:874] failed (exitcode: 1) local_rank: 0 (pid: 101) of binary: python\nRoot Cause (first failure):\n",
    f"{'-' * 74}\nprterun detected that one or more processes exited with non-zero status\n",
    "[ERROR] [launch.py:434:sigkill_handler] ['python', 'x.py'] exits with return code = 1\n",
)


@pytest.mark.parametrize("launcher_report", REPORTS)
def test_report_of_a_launcher_holds_no_words_of_a_rank(launcher_report: str) -> None:
    logs = [log("agent", launcher_report, path="output.log")]
    found = diagnose_nodes(node(0, [process("failed", rank(0, 1))], logs))
    assert found.cause.words == "the script ended itself with exit code 1"


def test_exception_of_all_ranks_is_that_of_the_rank_that_it_names() -> None:
    ours = (
        "CheckpointException: CheckpointException ranks:dict_keys([1])\nTraceback (most recent call last): (RANK 1)\n"
    )
    nodes = [
        node(
            number,
            [process("failed", rank(number, 1, 1060.0 + number))],
            [log(number, traceback(ours + f"  File \"/x/{number}.py\", line 2, in f\n    y()\nKeyError: 'optim'"))],
        )
        for number in (0, 1)
    ]
    found = diagnose_nodes(*nodes)
    assert found.first is not None
    assert found.first.rank == 1

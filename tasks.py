"""Tasks for this repository (`./run inv --list`). The commands for a cluster are in fabfile.py."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from invoke import Collection, Context, Exit, task

ROOT = Path(__file__).parent
REHEARSAL = ROOT / ".rehearsal"
PYTHON = sys.executable
SHELL_SCRIPTS = ("run", ".ci/run")
# Most tests wait for other processes: four at a time on two cores. The tests of one file share their clusters.
PARALLEL = ("-n", str(max(4, os.cpu_count() or 1)), "--dist", "loadfile", "--no-loadscope-reorder")
KILLED_TRAINING = "tests/integration/test_training.py::TestResume::test_a_training_killed_at_any_moment_resumes_exactly"
TWO_AT_ONCE = ("-n", "2", "--dist", "worksteal")  # jobs that mostly sleep
PAGE = "docs/reliability.md"
SOME_FAILED = 1  # pytest's exit code; the others (a broken test file, Ctrl-C) would be the same in a second run
OPTIONS_HELP = 'further arguments of the program, in one string: --options "-x -vv"'


FAST_HELP = "leave out tests/integration (sshd, tmux on several hosts, Slurm, MPI, DeepSpeed, training) and slow tests"
FAST = ("--ignore", "tests/integration", "-m", "not slow")
FAST_EXAMPLES = "25"  # of each property-based test of a parser; 100 otherwise


@task(
    help={
        "fast": FAST_HELP,
        "match": "only the tests whose names match this pytest -k expression",
        "rerun": "run the tests that failed once more, and list those that pass then as flaky",
        "options": OPTIONS_HELP,
    }
)
def test(context: Context, fast: bool = False, match: str = "", rerun: bool = False, options: str = "") -> None:
    """Run the tests."""
    if fast:
        os.environ.setdefault("TORCHFAB_FUZZ_EXAMPLES", FAST_EXAMPLES)
    words = (*_pytest(match), *PARALLEL, "--durations", "15", *(FAST if fast else ()), *shlex.split(options))
    if rerun:
        _succeed_with_rerun(*words)
    else:
        _succeed(*words)


@task(
    help={
        "match": "only the tests whose names match this pytest -k expression",
        "examples": "how many for each test (default 10000)",
        "workers": "how many tests at once (default: as many as there are cores)",
    }
)
def fuzz(context: Context, match: str = "", examples: str = "10000", workers: str = "") -> None:
    """Run the property-based tests of all parsers with 10,000 examples each, and print how many each had (an hour)."""
    os.environ["TORCHFAB_FUZZ_EXAMPLES"] = str(_number("examples", examples))
    parallel = ("-n", str(_number("workers", workers or str(os.cpu_count() or 1))), "--dist", "worksteal")
    shown = ("--hypothesis-show-statistics", "--durations", "10")
    marked = ("--ignore", "tests/integration", "-m", "fuzzed", "--timeout", "7200")
    _succeed(*_pytest(match), *parallel, *shown, *marked)


@task(help={"match": "only the records of tests whose names match this pytest -k expression"})
def golden(context: Context, match: str = "") -> None:
    """Rewrite the golden records under tests/golden (read the diff before you commit it)."""
    _succeed(*_pytest(match), "--golden")


@task
def lint(context: Context) -> None:
    """Check style, format, types and imports, and report all errors."""
    checks = [
        (PYTHON, "-m", "ruff", "check", "."),
        (PYTHON, "-m", "ruff", "format", "--check", "."),
        (PYTHON, "-m", "mypy"),
        (str(Path(PYTHON).parent / "lint-imports"), "--no-logo", "--no-cache"),
        *([("shellcheck", *SHELL_SCRIPTS)] if shutil.which("shellcheck") else []),
    ]
    failed = [argv for argv in checks if _run(*argv)]
    if failed:
        raise Exit(f"lint: {len(failed)} of {len(checks)} checks failed", code=1)


@task(
    help={
        "nodes": "how many hosts (default 2)",
        "kind": "netns (as root: own addresses and host names) or loopback (any user); default: netns if root",
        "dir": "folder for ssh_config, hosts and gpus (default .rehearsal)",
        "user": "as root, with --kind loopback: run the hosts as this ordinary user, which need not exist",
        "down": "remove it, and clusters that killed test sessions left",
    }
)
def cluster(
    context: Context,
    nodes: str = "2",
    kind: str = "",
    dir: str = str(REHEARSAL),  # noqa: A002  # the name of the flag
    user: str = "",
    down: bool = False,
) -> None:
    """Start a rehearsal cluster: real SSH hosts on this machine, to try a launch on."""
    from torchfab.core.errors import TorchfabError

    try:
        if down:
            _cluster_down(Path(dir))
        else:
            _cluster_up(_number("nodes", nodes), kind, Path(dir), user)
    except TorchfabError as error:
        raise Exit(f"error: {error}", code=error.exit_code) from None


@task(help={"only": "make only one of the tables: faults or ends (default: both)"})
def reliability(context: Context, only: str = "") -> None:
    """Run every fault, and every end of a job on every launcher; write their tables into docs/reliability.md."""
    if only not in ("", "faults", "ends"):
        raise Exit(f"error: --only is faults or ends, got {only!r}", code=2)
    if only != "ends":
        _succeed(*_pytest(""), *PARALLEL, "tests", "--thorough", "--faults", PAGE)
    if only != "faults":
        _succeed(*_pytest(""), *TWO_AT_ONCE, "tests/integration/test_ends.py", "--ends", PAGE)


@task(help={"match": "only the plays and launchers whose names match this pytest -k expression"})
def plays(context: Context, match: str = "") -> None:
    """Give every play of `fab why` on every launcher, and write who failed first into docs/reliability.md."""
    test = "tests/integration/test_why_plays.py::test_all_commands_name_the_same_first_rank"
    _succeed(*_pytest(match), test, "--plays", PAGE)


@task
def schemas(context: Context) -> None:
    """Write the JSON Schemas of `--json` into docs/reference/schemas, and their tables into docs/reference/json.md."""
    from torchfab.documents import schema

    reference = ROOT / "docs" / "reference"
    for name in schema.DOCUMENTS:
        (reference / "schemas" / f"{name}.schema.json").write_text(schema.text(name))
    page = reference / "json.md"
    page.write_text(schema.page(schema.head_of(page.read_text())) + "\n")


@task
def diagnose(context: Context) -> None:
    """Print precision and recall of `fab why` for each kind of cause, over the recorded jobs."""
    _succeed(PYTHON, "-m", "tests.recorded.corpus")


@task(
    help={
        "rounds": "how many launches and stops in a row (default 100)",
        "kills": "how many commands (launch, stop, sync) to kill with SIGKILL (default 500)",
    }
)
def stress(context: Context, rounds: str = "100", kills: str = "500") -> None:
    """End commands and a training at random moments; write the counts into docs/reliability.md."""
    counts = ("--rounds", str(_number("rounds", rounds)), "--kills", str(_number("kills", kills)))
    _succeed(*_pytest(""), *TWO_AT_ONCE, "tests/integration/test_stress.py", *counts, "--stress", PAGE)
    _succeed(*_pytest(""), KILLED_TRAINING, "--thorough")


@task(name="bench-train", help={"options": OPTIONS_HELP})
def bench_train(context: Context, options: str = "") -> None:
    """Measure train_llm.py on this machine."""
    _succeed(PYTHON, "bench/train.py", *shlex.split(options))


@task(name="bench-gpu", help={"options": OPTIONS_HELP})
def bench_gpu(context: Context, options: str = "") -> None:
    """Measure training on a GPU, and what fab reports of GPU faults; --options --tiny rehearses it on the CPU."""
    _succeed(PYTHON, "bench/gpu.py", *shlex.split(options))


@task(name="bench-launch", help={"options": OPTIONS_HELP})
def bench_launch(context: Context, options: str = "") -> None:
    """Measure launching beside pdsh, clush and others, on many rehearsal hosts."""
    _succeed(PYTHON, "bench/launch.py", *shlex.split(options))


@task(name="bench-why", help={"options": OPTIONS_HELP})
def bench_why(context: Context, options: str = "") -> None:
    """Measure `fab why` on jobs with gigabytes of logs, on rehearsal hosts (12 GB of disk)."""
    _succeed(PYTHON, "bench/why.py", *shlex.split(options))


@task(name="bench-probe", help={"options": OPTIONS_HELP})
def bench_probe(context: Context, options: str = "") -> None:
    """Measure what the probe costs a rank, at its start and in each step."""
    _succeed(PYTHON, "bench/probe.py", *shlex.split(options))


namespace = Collection(
    *(
        test,
        fuzz,
        lint,
        golden,
        cluster,
        diagnose,
        plays,
        reliability,
        schemas,
        stress,
        bench_train,
        bench_gpu,
        bench_launch,
        bench_probe,
        bench_why,
    )
)


def _number(flag: str, text: str) -> int:
    # With an int parameter, Invoke would print a traceback for `x`.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise Exit(f"error: --{flag} is a whole number of at least 1, got {text!r}", code=2)
    return int(text)


def _pytest(match: str) -> list[str]:
    return [PYTHON, "-m", "pytest", *(["-k", match] if match else [])]


def _run(*argv: str) -> int:
    shown = ["python" if word == PYTHON else word for word in argv]
    print(f"$ {shlex.join(shown)}", file=sys.stderr, flush=True)
    # Without bytecode files, every worker compiles all tests and every `fab` the modules of its command.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(argv, cwd=ROOT, env=environment, check=False).returncode


def _succeed(*argv: str) -> None:
    if code := _run(*argv):
        raise Exit(code=code)


def _succeed_with_rerun(*words: str) -> None:
    """Run pytest, then the failed tests once more; print which of them passed the second time."""
    with tempfile.TemporaryDirectory() as cache:  # of its own: it holds no failure of an earlier run
        words = (*words, "-o", f"cache_dir={cache}")
        code = _run(*words)
        failed_first = _failed_tests(Path(cache))
        if code == SOME_FAILED and failed_first:
            code = _run(*words, "--last-failed", "--last-failed-no-failures", "none")
        failed_again = _failed_tests(Path(cache))
    flaky = sorted(failed_first - failed_again)
    for name in flaky:
        print(f"flaky: {name}")
    print(f"{len(flaky)} flaky test{'' if len(flaky) == 1 else 's'}", flush=True)
    if code or failed_again:  # pytest may succeed without having run a test again
        raise Exit(code=code or SOME_FAILED)


def _failed_tests(cache: Path) -> set[str]:
    """Return the names of the tests that failed when they last ran, from the cache of pytest."""
    try:
        return set(json.loads((cache / "v" / "cache" / "lastfailed").read_text()))
    except FileNotFoundError:  # none has failed yet
        return set()


def _cluster_up(nodes: int, kind: str, directory: Path, user: str) -> None:
    from testbed import Cluster, as_kind

    started = time.monotonic()
    best = "netns" if os.geteuid() == 0 and not user else "loopback"
    cluster = Cluster.up(nodes, as_kind(kind or best), directory, user or None, keep=True)
    program = "./run" if Path.cwd() == ROOT else _shown(ROOT / "run")
    config, hosts = _shown(cluster.ssh_config), _shown(cluster.hostfile)
    flag = "" if directory == REHEARSAL else f" --dir {_shown(directory)}"
    print(f"""\
up in {time.monotonic() - started:.1f} s: {cluster.summary}
  log in:     ssh -F {config} {cluster.hosts[0]}
  launch:     {program} fab -S {config} launch-per-node --hostfile {hosts} --follow
  take down:  {program} inv cluster --down{flag}""")


def _shown(path: Path) -> str:
    """Return the path as a shell word: relative if it is below the current folder."""
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _cluster_down(directory: Path) -> None:
    from testbed import Cluster

    found = Cluster.load(directory)
    if found:
        found.down()
        print(f"down: {found.summary}")
    left = Cluster.clean()
    for each in left:
        print(f"down: {each.summary} (left by a process that was killed)")
    if not found and not left:
        print(f"no cluster is up in {_shown(directory)}")

"""The value of a secret reaches only the ranks: no command line, file, log, record or dry run shows it."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.fab import Done, Fab, eventually

GIVEN, FORWARDED, OWN = "given-b7f1c6", "forwarded-9d02ae", "own-51e8bb"
SECRETS = (GIVEN, FORWARDED, OWN)
NAMES = {"MY_API_KEY": GIVEN, "HF_TOKEN": FORWARDED, "NODES_PASSWORD": OWN}
SCRIPT = """import os, sys, time
wanted = dict(pair.split("=") for pair in sys.argv[1:])
print("same:", *sorted(name for name, number in wanted.items() if str(sum(os.environ[name].encode())) == number))
sys.stdout.flush()
time.sleep(60)
"""


@contextmanager
def watched_command_lines() -> Iterator[set[bytes]]:
    """Read the command lines of all processes repeatedly; yield those that hold a secret."""
    found: set[bytes] = set()
    done = threading.Event()
    mine = os.getpid()

    def watch() -> None:
        while not done.is_set():
            for path in Path("/proc").iterdir():
                if path.name.isdigit() and int(path.name) != mine:
                    found.update(line for line in [_read(path / "cmdline")] if _holds_secret(line))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _holds_secret(data: bytes) -> bool:
    return any(secret.encode() in data for secret in SECRETS)


@pytest.fixture
def own_secret(fab: Fab) -> Iterator[None]:
    """A secret of the nodes' own, set by a start-up file there."""
    files = [fab.cluster.node(index).home / ".bashrc" for index in (0, 1)]
    for path in files:
        path.write_text(f"export NODES_PASSWORD={OWN}\n")
    yield
    for path in files:
        path.write_text("")


def test_secrets_are_visible_only_in_the_ranks(fab: Fab, own_secret: None) -> None:
    fab.write("secret.py", SCRIPT)
    numbers = [f"{name}={sum(value.encode())}" for name, value in NAMES.items()]
    # A value of --env is on the command line of fab itself and nowhere else, as its help says.
    words = fab.launch("--name", "x", "--env", f"MY_API_KEY={GIVEN}", "--", "secret.py", *numbers, gpus=True)
    with watched_command_lines() as seen:
        # With `under` it is started, not forked, so it has its own command line.
        launch = fab.start(*words, env={"HF_TOKEN": FORWARDED}, under=("env",))
        stdout, stderr = launch.communicate(timeout=60)
        done = Done(words, launch.returncode, stdout, stderr)
        assert done.rc == 0, done
        assert eventually(lambda: "same: HF_TOKEN MY_API_KEY NODES_PASSWORD" in fab("logs", "x").stdout, 60)
        results = [fab(*each) for each in (("status", "--json"), ("logs",), ("jobs", "--json"))]
    assert seen, "the command line of fab itself was not seen: nothing was watched"
    assert [line for line in seen if b"launch-per-gpu" not in line] == []
    assert not any(secret in f"{each.stdout}{each.stderr}" for each in [done, *results] for secret in SECRETS)
    assert_private_and_without_secrets([fab.records, fab.node_dir])
    assert "HF_TOKEN" in (fab.records / "x" / "plan.json").read_text()


TELLTALE = """import os, sys, time
names = ("MY_API_KEY", "HF_TOKEN", "NODES_PASSWORD")
print("told:", *(f"{name}={os.environ[name]}!" for name in names), flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
raise ValueError("cannot log in with " + os.environ["HF_TOKEN"])
"""


def test_printed_secrets_are_hidden_during_the_job_and_after_it(fab: Fab, own_secret: None) -> None:
    fab.write("telltale.py", TELLTALE)
    words = fab.launch("--name", "x", "--env", f"MY_API_KEY={GIVEN}", "--follow", "--", "telltale.py", gpus=True)
    follower = fab.start(*words, env={"HF_TOKEN": FORWARDED})
    assert eventually(lambda: fab("status", "x").stdout.count("told:") == 2, 60), fab("status", "x")
    running = [fab(*each) for each in (("status", "x"), ("status", "x", "--json"), ("logs", "x"))]
    fab.write("go", "")
    followed = "".join(follower.communicate(timeout=60))
    ended = [fab(*each) for each in (("status", "x"), ("logs", "x"), ("why", "x"), ("why", "x", "--json"))]
    outputs = [followed, *(f"{done.stdout}{done.stderr}" for done in [*running, *ended])]
    assert not [text for text in outputs if any(secret in text for secret in SECRETS)]
    assert "told: MY_API_KEY=<MY_API_KEY>! HF_TOKEN=<HF_TOKEN>! NODES_PASSWORD=<NODES_PASSWORD>!" in followed
    assert "told: MY_API_KEY=<MY_API_KEY>!" in ended[1].stdout
    assert "ValueError: cannot log in with <HF_TOKEN>" in ended[2].stdout
    assert_private_and_without_secrets([fab.records, fab.node_dir], but="output.log")


def test_dry_runs_name_secrets_but_do_not_show_them(fab: Fab) -> None:
    words = fab.launch("--dry-run", "--env", f"MY_API_KEY={GIVEN}", gpus=True)
    done = fab(*words, env={"HF_TOKEN": FORWARDED})
    assert done.rc == 0, done
    assert not any(secret in f"{done.stdout}{done.stderr}" for secret in SECRETS)
    assert "HF_TOKEN" in done.stdout
    assert "MY_API_KEY" in done.stdout
    fab.assert_nothing_left()


def test_a_failed_launch_shows_no_secret(fab: Fab) -> None:
    words = fab.launch("--env", f"MY_API_KEY={GIVEN}", "--workdir", "/nowhere", gpus=True)
    done = fab(*words, env={"HF_TOKEN": FORWARDED})
    assert done.rc == 1, done
    assert not any(secret in done.stderr for secret in SECRETS)
    fab.assert_nothing_left()


def assert_private_and_without_secrets(folders: list[Path], but: str = "") -> None:
    """Assert that only their owner can read the files below, and that only files named `but` hold a secret."""
    paths = [path for folder in folders for path in [folder, *folder.rglob("*")] if not path.is_symlink()]
    assert len(paths) > 20
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"
        assert path.is_dir() or path.name == but or not _holds_secret(path.read_bytes()), path

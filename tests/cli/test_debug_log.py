"""The debug log: one line per record with time and host, without secrets; not loaded by default."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from invoke.util import LOG_FORMAT

from tests.hostile import texts
from tests.support import fuzzed
from torchfab.cli import debug_log
from torchfab.core.log_context import log_host

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (.*)\n")
log = logging.getLogger("torchfab.transport.session")


@pytest.fixture
def loggers() -> Iterator[None]:
    """Restore the loggers that the test enables."""
    chosen = [logging.getLogger(name) for name in debug_log.LOGGERS]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in chosen]
    yield
    for logger, (level, propagate, handlers) in zip(chosen, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture
def enabled(loggers: None, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """The debug log, enabled; it prints on stderr."""
    debug_log.enable(["status"], ["status", "--env", "MY_KEY=s3cr3t-value"], {"HF_TOKEN": "t0ken-value"})
    assert "  cli: fab status, pid " in capsys.readouterr().err
    return capsys


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines without their times."""
    return LINE.findall(capsys.readouterr().err)


def test_a_line_has_the_host_of_its_record_or_thread(enabled: pytest.CaptureFixture[str]) -> None:
    log.debug("no host")
    with log_host("node2"):
        log.debug("answer: %d bytes", 9)
        log.debug("other host", extra={"host": "node1 via gate"})
    logging.getLogger("paramiko.transport").info("Connected")
    assert lines(enabled) == [
        "-       transport: no host",
        "node2   transport: answer: 9 bytes",
        "node1 via gate  transport: other host",
        "-               paramiko: Connected",
    ]


def test_a_record_is_one_line_without_control_characters(enabled: pytest.CaptureFixture[str]) -> None:
    log.debug("\x1b[2Jbanner\nof a %s", "server\r\x07")
    assert lines(enabled) == ["-       transport: banner of a server"]


def test_enabling_it_twice_prints_each_line_once(enabled: pytest.CaptureFixture[str]) -> None:
    debug_log.enable(["status"], [], {})
    log.debug("once")
    assert [line for line in lines(enabled) if "once" in line] == ["-       transport: once"]


def test_secret_values_become_their_names(enabled: pytest.CaptureFixture[str]) -> None:
    log.debug("ProxyCommand of t0ken-value with %s", "s3cr3t-value")
    assert lines(enabled) == ["-       transport: ProxyCommand of <HF_TOKEN> with <MY_KEY>"]


def test_a_closed_stderr_is_ignored(loggers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    debug_log.enable([], [], {})
    closed.close()
    log.debug("lost")


SECRET = st.text("abcXYZ019-_", min_size=4, max_size=12)


@fuzzed(st.lists(SECRET, min_size=1, max_size=3), st.lists(texts(), min_size=1, max_size=4))
def test_no_secret_of_the_environment_is_in_the_output(secrets: list[str], parts: list[str]) -> None:
    environ = {f"TOKEN_{number}": secret for number, secret in enumerate(secrets)}
    longest = max(secrets, key=len)
    redact = debug_log.redactor(debug_log.secret_values(environ, []))
    assert longest not in re.sub(r"<TOKEN_\d>", "", redact(longest.join(["", *parts, ""])))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to https://hooks.example.com/services/T0/B1?x=y now", "to https://hooks.example.com now"),
        ("http://me:pa@ss@proxy:3128", "http://proxy:3128"),
        ("'https://api:6443/k8s'", "'https://api:6443'"),
        ("ssh://me:pass@gate:22", "ssh://gate:22"),
        ("root@node1 port 22", "root@node1 port 22"),
    ],
)
def test_urls_lose_their_users_passwords_and_paths(text: str, shown: str) -> None:
    assert debug_log.redactor({})(text) == shown


def test_only_values_with_the_name_of_a_secret_are_secret() -> None:
    environ = {"API_KEY": "first-line\nsecond", "HOME": "/home/me", "DB_PASSWORD": "abc"}
    argv = ["launch-per-node", "--env", "MY_SECRET=given", "--env=MY_TOKEN=also", "--name", "gpt2"]
    assert debug_log.secret_values(environ, argv) == {
        "first-line": "API_KEY",
        "second": "API_KEY",
        "given": "MY_SECRET",
        "also": "MY_TOKEN",
    }


@pytest.mark.parametrize("kept", [False, True])
def test_only_the_log_of_invoke_is_silenced(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOKE_DEBUG", "1" if kept else "")
    root, ours, others = logging.getLogger(), logging.StreamHandler(), logging.StreamHandler()
    ours.setFormatter(logging.Formatter(LOG_FORMAT))
    level = root.level
    root.handlers += [ours, others]
    try:
        debug_log.remove_invoke_handler()
        assert (ours in root.handlers, others in root.handlers) == (kept, True)
    finally:
        root.handlers = [each for each in root.handlers if each not in (ours, others)]
        root.setLevel(level)


def fab(*args: str, **env: str) -> str:
    """Run `fab` in the project; return its stderr."""
    argv = [sys.executable, "-m", "fabric", "-r", str(ROOT), *args]
    clean = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "FABRIC_TORCHFAB_RECORDS": "/nonexistent", **env}
    return subprocess.run(argv, env=clean, capture_output=True, text=True, check=True, timeout=60).stderr


@pytest.mark.parametrize(
    ("args", "env", "logs"),
    [
        (["--debug", "jobs"], {}, True),
        (["jobs", "--debug"], {}, True),
        (["-d", "jobs"], {}, True),
        (["jobs"], {"TORCHFAB_DEBUG": "1"}, True),
        (["jobs"], {"TORCHFAB_DEBUG": "0"}, False),
        (["jobs"], {}, False),
    ],
    ids=lambda each: str(each),
)
def test_flag_and_variable_enable_it(args: list[str], env: dict[str, str], logs: bool) -> None:
    stderr = fab(*args, **env)
    assert ("  cli: fab jobs, pid " in stderr) is logs
    assert "invoke.config" not in stderr  # it would print the values of all settings


def test_without_the_flag_its_module_is_not_loaded() -> None:
    code = "import fabfile, sys; print([name for name in sys.modules if 'debug_log' in name])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

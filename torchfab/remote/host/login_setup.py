"""Run `--setup` once in the user's login shell, and read back the environment that it sets.

The shell is that of the passwd database, started as by a login on a terminal, so that its start-up files define conda,
`module` and aliases as they do there. Only exported variables are kept. A small program, which the shell runs last,
writes the exported environment, separated by NULs, to a file; other output of the shell is ignored.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO, Any

TIMEOUT_S = 60
_CSH, _FISH = ("csh", "tcsh"), ("fish",)
_BOURNE = ("sh", "bash", "zsh", "dash", "ash", "ksh", "ksh93", "mksh")
_DEFAULT_SHELL = "/bin/sh"
# Variables that a shell sets for itself, or that belong to one session.
SHELLS_OWN = frozenset(
    (
        *("_", "PWD", "OLDPWD", "SHLVL", "SHELL", "TERM", "LINES", "COLUMNS", "PS1", "PS2", "PS4", "PROMPT"),
        *("HOST", "HOSTTYPE", "MACHTYPE", "OSTYPE", "VENDOR", "GROUP", "REMOTEHOST", "RPS1", "PROMPT_COMMAND"),
        *("TMUX", "TMUX_PANE", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "TORCHFAB_SETUP"),
    )
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # not BASH_FUNC_module%%: functions are not taken
_OUTPUT_LINES = 12
# Warnings of an interactive shell in a session without a terminal.
_NO_TERMINAL = (
    *("cannot set terminal process group", "no job control in this shell", "job control turned off"),
    "no access to tty",
)
# Writes its initial environment, as the kernel keeps it, so that changes by the interpreter are not included.
_PROGRAM = """import os, sys
path = sys.argv[1]
with open(path + ".new", "wb") as file:
    file.write(sys.argv[2].encode() + b"\\0" + open("/proc/self/environ", "rb").read())
os.rename(path + ".new", path)
"""


class SetupError(Exception):
    """`--setup` failed.

    Parameters
    ----------
    what, fix : str
        The problem, with the output, and how to fix it.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def login_shell() -> str:
    """Return the path of this user's login shell; /bin/sh for a shell that is not supported."""
    try:
        shell = pwd.getpwuid(os.geteuid()).pw_shell or _DEFAULT_SHELL
    except KeyError:  # in a container, a user may have no entry
        shell = os.environ.get("SHELL") or _DEFAULT_SHELL
    known = os.path.basename(shell) in (*_BOURNE, *_CSH, *_FISH)
    return shell if known and os.access(shell, os.X_OK) else _DEFAULT_SHELL


def run(setup: str, workdir: str, timeout_s: float, before: Mapping[str, str], shell: str = "") -> dict[str, str]:
    """Run setup commands in the login shell.

    Parameters
    ----------
    setup : str
        The commands, as typed in a shell.
    workdir : str
        The directory to run them in, if it exists.
    timeout_s : float
        Time limit in seconds.
    before : mapping of str to str
        The environment that the shell starts with.
    shell : str
        Path of the shell. Default: the login shell.

    Returns
    -------
    dict of str to str
        `before`, with the changes by the shell and the commands.

    Raises
    ------
    SetupError
        The commands failed, or took too long.
    """
    shell = shell or login_shell()
    folder = tempfile.mkdtemp(prefix="torchfab-setup-")
    try:
        problem = _run_shell(shell, _write(folder, setup), folder, workdir, timeout_s, before)
        status, after = _read(os.path.join(folder, "ended"))
        if problem or status != "0":
            has_begun = os.path.exists(os.path.join(folder, "begun"))
            raise _failure(shell, problem, status, has_begun, _output(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return merge(before, after)


def command(shell: str, folder: str) -> str:
    """Return the command line for a shell: write the environment, run the file `setup`, write the environment.

    One line, whose last command replaces the shell, so that commands read nothing from stdin and csh does not log out.

    Parameters
    ----------
    shell : str
        Path of the shell.
    folder : str
        The folder of the files.

    Returns
    -------
    str
    """
    name = os.path.basename(shell)
    program = shlex.join([sys.executable, "-I", "-S", os.path.join(folder, "dump.py")])
    begun, setup, ended = (shlex.quote(os.path.join(folder, each)) for each in ("begun", "setup", "ended"))
    source, status = (".", "$?") if name in _BOURNE else ("source", "$status")
    return f"{program} {begun} 0; {source} {setup}; exec {program} {ended} {status}"


def merge(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with a shell's changes, except for variables that a shell sets for itself.

    Parameters
    ----------
    before, after : mapping of str to str
        The environments at the start and the end of the shell.

    Returns
    -------
    dict of str to str
    """
    kept = {name: value for name, value in before.items() if name in after or not _is_taken(name)}
    return {**kept, **{name: value for name, value in after.items() if _is_taken(name)}}


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the names of the variables that differ.

    Parameters
    ----------
    before, after : mapping of str to str
        The environments.

    Returns
    -------
    tuple of list of str
        Those that were set or changed, and those that were removed; sorted.
    """
    changed = sorted(name for name, value in after.items() if before.get(name) != value)
    return changed, sorted(name for name in before if name not in after)


def parse(data: bytes) -> dict[str, str]:
    """Parse an environment as the kernel shows it.

    Parameters
    ----------
    data : bytes
        `NAME=VALUE`, separated by NULs.

    Returns
    -------
    dict of str to str
        Entries without `=` are left out; of several entries with one name, the first counts, as in getenv(3).
    """
    found: dict[str, str] = {}
    for entry in data.split(b"\0"):
        name, equals, value = os.fsdecode(entry).partition("=")
        if equals:
            found.setdefault(name, value)
    return found


def find_python(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return the interpreter that the setup has put first on PATH.

    Parameters
    ----------
    before, after : mapping of str to str
        The environments at the start and the end of the shell.

    Returns
    -------
    str
        Its absolute path; empty if the setup did not change it.
    """
    for name in ("python", "python3"):
        found = shutil.which(name, path=after.get("PATH", os.defpath))
        if found and found != shutil.which(name, path=before.get("PATH", os.defpath)):
            return os.path.abspath(found)
    return ""


def describe(before: Mapping[str, str], after: Mapping[str, str], python: str) -> dict[str, Any]:
    """Return the report for the launch machine: names without values.

    Parameters
    ----------
    before, after : mapping of str to str
        The environments at the start and the end of the shell.
    python : str
        The interpreter that the job uses because of the setup; empty for none.

    Returns
    -------
    dict
        `shell`, `changed`, `removed`, `python`.
    """
    changed, removed = changes(before, after)
    return {"shell": login_shell(), "changed": changed, "removed": removed, "python": python}


def _is_taken(name: str) -> bool:
    return name not in SHELLS_OWN and _NAME.fullmatch(name) is not None


def _write(folder: str, setup: str) -> str:
    for name, text in (("setup", setup + "\n"), ("dump.py", _PROGRAM)):
        with open(os.path.join(folder, name), "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    return folder


def _run_shell(shell: str, folder: str, output: str, workdir: str, timeout_s: float, before: Mapping[str, str]) -> str:
    """Run the shell to its end; return the problem if it did not end normally."""
    name, line = f"-{os.path.basename(shell)}", command(shell, folder)  # the dash makes it a login shell
    # With -c, csh has no prompt, so that start-up files and activate.csh would treat it as non-interactive.
    argv, stdin = ([name, "-i"], line + "\n") if name[1:] in _CSH else ([name, "-ic", line], "")
    # A pipe would stay open in processes that the commands leave running.
    with open(os.path.join(output, "output"), "wb") as file, _input(stdin) as given:
        try:
            process = subprocess.Popen(
                argv,
                executable=shell,
                stdin=given,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=workdir if os.path.isdir(workdir) else None,
                env={**before, "SHELL": shell, "TERM": "dumb", "TORCHFAB_SETUP": "1"},
                start_new_session=True,
            )
        except OSError as error:
            return f"it does not run: {error.strerror or error}"
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"it did not end within {timeout_s:g} s"
    return ""


def _input(text: str) -> IO[bytes]:
    """Return a file without a name that holds a text."""
    file = tempfile.TemporaryFile()  # the caller closes it
    file.write(os.fsencode(text))
    file.seek(0)
    return file


def _read(path: str) -> tuple[str, dict[str, str]]:
    """Return the exit status of the commands, and the environment after them; empty if they have not ended."""
    try:
        with open(path, "rb") as file:
            status, _, data = file.read().partition(b"\0")
    except OSError:
        return "", {}
    return status.decode(), parse(data)


def _failure(shell: str, problem: str, status: str, has_begun: bool, output: str) -> SetupError:
    fix = f"log in there and run the same commands; on this host they run in {shell}"
    if "within" in problem:
        fix = "the commands must not wait for input; if they are slow, raise the setting setup_timeout_s"
    elif not problem and not has_begun:
        problem = "a start-up file of the shell ended or replaced it before the commands ran"
        fix = "let start-up files do so only on a terminal: test -t 0 && exec …; TORCHFAB_SETUP=1 is set here"
    elif not problem:
        problem = f"it ended with status {status}" if status else "the shell ended before its last command (exit, exec)"
    return SetupError(f"--setup failed in {shell}: {problem}{output}", fix)


def _output(folder: str) -> str:
    """Return the last lines that the shell printed, each on a line of its own."""
    try:
        with open(os.path.join(folder, "output"), "rb") as file:
            text = file.read()[-16384:].decode(errors="replace")
    except OSError:
        return ""
    text = text.replace(os.path.join(folder, ""), "")  # random: equal errors are printed once
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not _is_noise(line)]
    return "".join(f"\n    {line[:300]}" for line in lines[-_OUTPUT_LINES:])


def _is_noise(line: str) -> bool:
    return any(text in line for text in _NO_TERMINAL)

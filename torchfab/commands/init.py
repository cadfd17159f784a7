"""`torchfab init`: make a folder a project: write the files that torchfab reads there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torchfab
from torchfab.config import project
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.inventory import split_hosts_flag

EXAMPLE = "train_llm.py"
_HOSTS = """\
# One host a line: [user@]host[:port] [slots=8] [gpus=2,3] [address=A]; ranges as node[01-16].
"""
_GPUS = """\
# For launch-per-gpu: one line per process; the same host again for its next GPU. Ranks follow the lines.
"""
_FABFILE = '''\
"""`fab` in this folder: the tasks of torchfab, and your own below."""

from torchfab.fabfile import *  # noqa: F403
'''
_SETTINGS = """\
# Settings of torchfab for this folder and those below it. All of them, and where each value comes from:
#     torchfab config --show-origin
# Paths are relative to this file. For one command: FABRIC_TORCHFAB_STALL_S=60 torchfab …

{script}        # what a launch runs without `-- SCRIPT`
#hostfile: hosts
#gpufile: gpus
#records: .torchfab/records   # what was launched from here
#node_dir: .torchfab          # on each node, for logs: relative to the working directory, absolute, or ~/…
#agent_python: python3        # the interpreter on each node that runs torchfab's own code; 3.9 or newer
#stall_s: 300                 # seconds without a log line after which a job seems to hang
"""


def run(folder: str, hosts: str, with_example: bool) -> int:
    """Write the files of a project into a folder; existing files are not changed.

    Parameters
    ----------
    folder : str
        The folder.
    hosts : str
        The value of `-H`: the hosts to write; empty for localhost.
    with_example : bool
        Also write the example script, which a launch without `-- SCRIPT` runs.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    TorchfabError
        A file cannot be written.
    """
    above = project.find(Path(folder).absolute().parent)
    for name, text in files(hosts, with_example).items():
        path = Path(folder, name)
        if os.path.lexists(path):
            write_out(f"exists  {name}{_advice(path, with_example)}")
        else:
            _write(path, text())
            write_out(f"wrote   {name}")
    if above:
        write_err(f"note: {folder} is inside the project {above}; from now on it is its own project")
    script = "" if with_example else " -- train.py"
    first = "" if hosts else "write host names into hosts; "
    write_out(f"next: {first}torchfab doctor; torchfab launch-per-node --follow{script}")
    return 0


def files(hosts: str, with_example: bool) -> Mapping[str, Callable[[], str]]:
    """Return the files of a new project.

    Parameters
    ----------
    hosts : str
        The value of `-H`; empty for localhost.
    with_example : bool
        Whether the example is among them.

    Returns
    -------
    mapping of str to callable
        The text of each file, by name.
    """
    names = split_hosts_flag(hosts) if hosts else "localhost\n"
    script = f"script: [{EXAMPLE}]" if with_example else "#script: [train.py]"
    texts = {
        "hosts": lambda: _HOSTS + _lines(names),
        "gpus": lambda: _GPUS + (_lines(names) * 2),
        project.SETTINGS_FILE: lambda: _SETTINGS.format(script=script),
        "fabfile.py": lambda: _FABFILE,
    }
    return {**texts, EXAMPLE: example} if with_example else texts


def _lines(text: str) -> str:
    return text.rstrip("\n") + "\n"


def example() -> str:
    """Return the example script of the installed package or of the clone.

    Returns
    -------
    str
        Its source text.

    Raises
    ------
    UsageError
        The package contains no example script.
    """
    package = Path(torchfab.__file__).parent
    for path in (package / "example" / EXAMPLE, package.parent / EXAMPLE):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise UsageError(f"this installation of torchfab lacks {EXAMPLE}", "install torchfab from a wheel, or use a clone")


def _advice(path: Path, with_example: bool) -> str:
    """Return what to add to an existing file; empty if nothing is missing."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if path.name == "fabfile.py" and "torchfab.fabfile" not in text:
        return "; for torchfab's tasks in fab, add: from torchfab.fabfile import *"
    if path.name == project.SETTINGS_FILE and with_example and not re.search(r"^script:", text, re.MULTILINE):
        return f"; for a launch without -- SCRIPT, add: script: [{EXAMPLE}]"
    return ""


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise TorchfabError(
            f"{path} cannot be written: {error.strerror}", "free disk space, or check permissions"
        ) from None

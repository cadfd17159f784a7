"""The ssh of a launcher's head: `rsh.py [OPTIONS] HOST COMMAND...` brings the command to the gate of that node.

`nodes.json` beside it says for each host how it is reached; the launcher's own options are not needed. A node without a
gate is this one: its command runs here, below the head.

Stands alone (standard library, Python 3.9): a dry run that was pasted into bash has nothing else.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
WITH_VALUE = "BbcDEeFIiJLlmOopQRSWw"  # the options of ssh(1) that take one
FILES = ("-F", "-i")


def main(words: list[str]) -> int:
    """Run the command there and return its exit code."""
    host, command = split(words)
    with open(os.path.join(HERE, "nodes.json")) as file:
        known = json.load(file)
    node = known["nodes"].get(host)
    if node is None:
        print(f"torchfab: {host} is no node of this job", file=sys.stderr)
        return 255
    if command[0].startswith("pkill"):
        # deepspeed stops so, and would hit every deepspeed of this user. The gates end what is below them.
        return 0
    # A program named ssh that calls us must not find itself.
    os.environ["PATH"] = without(os.path.join(HERE, "bin"), os.environ.get("PATH", os.defpath))
    argv = argv_for(node, " ".join(command))
    open(visited(host), "w").close()
    if not known["fail_fast"]:
        os.execvp(argv[0], argv)
    code = subprocess.call(argv)
    if code:
        # The head would wait for the other nodes, and they for this one, for ever.
        os.kill(head(), signal.SIGTERM)
    return code


def head() -> int:
    """Return the pid of the head: the topmost process above us that carries the job's id."""
    pid, parent = os.getpid(), os.getppid()
    while parent > 1 and b"TORCHFAB_JOB_ID=" in contents(f"/proc/{parent}/environ"):
        pid, parent = parent, int(contents(f"/proc/{parent}/stat").rpartition(b") ")[2].split()[1])
    return pid


def contents(path: str) -> bytes:
    """Return what is in a file; nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def visited(host: str) -> str:
    """Return the path of the file that tells that the head has been at a host."""
    return os.path.join(HERE, f"visited-{host}")


def split(words: list[str]) -> tuple[str, list[str]]:
    """Return the host and the command of an ssh command line."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at][1:] and words[at][-1] in WITH_VALUE and len(words[at]) == 2 else 1
    return words[at], words[at + 1 :]


def argv_for(node: dict[str, list[str]], text: str) -> list[str]:
    """Return the command that runs `text` on a node."""
    inside = [*node["gate"], text] if node["gate"] else ["/bin/sh", "-c", text]
    if not node["ssh"]:
        return inside
    return [*existing(node["ssh"]), shlex.join(["exec", *inside])]


def existing(words: list[str]) -> list[str]:
    """Leave out files of the launch machine that this one does not have: its own configuration holds then."""
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] in FILES and not os.path.exists(word):
            print(f"torchfab: there is no {word} here; ssh goes without it", file=sys.stderr)
            kept.pop()
        else:
            kept.append(word)
    return kept


def without(folder: str, path: str) -> str:
    """Return PATH without a folder."""
    return os.pathsep.join(each for each in path.split(os.pathsep) if each != folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

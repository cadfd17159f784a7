"""The rsh agent of a job's head: `rsh.py [OPTIONS] HOST COMMAND...` delivers the command to the relay of that node.

`nodes.json` beside this file has the ssh command for each host; the launcher's own ssh options are ignored. A node
without a relay (key `gate`) is this one: its command runs here, as a child of the head.

Needs only the standard library of Python 3.9: the output of a dry run, pasted into bash, has no other modules.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
OPTIONS_WITH_VALUE = "BbcDEeFIiJLlmOopQRSWw"  # the options of ssh(1) that take a value
FILE_OPTIONS = ("-F", "-i")


def main(args: list[str]) -> int:
    """Run a command on a node.

    Parameters
    ----------
    args : list of str
        The command line of an ssh.

    Returns
    -------
    int
        The command's exit code; 255 if the host does not belong to the job.
    """
    host, command = split(args)
    with open(os.path.join(HERE, "nodes.json")) as file:
        config = json.load(file)
    node = config["nodes"].get(host)
    if node is None:
        print(f"torchfab: {host} is not a node of this job", file=sys.stderr)
        return 255
    if command[0].startswith("pkill"):
        # deepspeed stops its job by pkill, which would kill every deepspeed of this user. The relays end their own
        # child processes instead.
        return 0
    # bin/ssh, which calls this program, must not be found again.
    os.environ["PATH"] = path_without(os.path.join(HERE, "bin"), os.environ.get("PATH", os.defpath))
    argv = argv_for(node, " ".join(command))
    open(visited_marker(host), "w").close()
    if not config["fail_fast"]:
        os.execvp(argv[0], argv)
    code = subprocess.call(argv)
    if code:
        # Otherwise the head would wait for the other nodes forever, and they for this one.
        os.kill(head_pid(), signal.SIGTERM)
    return code


def head_pid() -> int:
    """Find the head: the topmost ancestor with the job's id in its environment.

    Returns
    -------
    int
        Its pid.
    """
    pid, parent = os.getpid(), os.getppid()
    while parent > 1 and b"TORCHFAB_JOB_ID=" in read_bytes(f"/proc/{parent}/environ"):
        pid, parent = parent, int(read_bytes(f"/proc/{parent}/stat").rpartition(b") ")[2].split()[1])
    return pid


def read_bytes(path: str) -> bytes:
    """Read a file.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    bytes
        Its content; empty if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def visited_marker(host: str) -> str:
    """Return the path of the marker file for a host that the head has connected to.

    Parameters
    ----------
    host : str
        Its name in nodes.json.

    Returns
    -------
    str
    """
    return os.path.join(HERE, f"visited-{host}")


def split(args: list[str]) -> tuple[str, list[str]]:
    """Split an ssh command line, dropping its options.

    Parameters
    ----------
    args : list of str
        The command line, without the name of the program.

    Returns
    -------
    str
        The host.
    list of str
        The command.
    """
    at = 0
    while at < len(args) and args[at].startswith("-"):
        at += 2 if args[at][1:] and args[at][-1] in OPTIONS_WITH_VALUE and len(args[at]) == 2 else 1
    return args[at], args[at + 1 :]


def argv_for(node: dict[str, list[str]], text: str) -> list[str]:
    """Return the command that runs `text` on a node.

    Parameters
    ----------
    node : dict
        Its entry in nodes.json: `ssh` (empty: this node) and `gate` (the relay's command; empty: none).
    text : str
        The command to run, as shell.

    Returns
    -------
    list of str
        An argv.
    """
    remote = [*node["gate"], text] if node["gate"] else ["/bin/sh", "-c", text]
    if not node["ssh"]:
        return remote
    return [*drop_missing_files(node["ssh"]), shlex.join(["exec", *remote])]


def drop_missing_files(argv: list[str]) -> list[str]:
    """Drop the options -F and -i whose files exist on the launch machine only; ssh then uses this node's configuration.

    Parameters
    ----------
    argv : list of str
        An ssh command line.

    Returns
    -------
    list of str
    """
    kept: list[str] = []
    for arg in argv:
        if kept and kept[-1] in FILE_OPTIONS and not os.path.exists(arg):
            print(f"torchfab: {arg} does not exist on this node; ssh runs without it", file=sys.stderr)
            kept.pop()
        else:
            kept.append(arg)
    return kept


def path_without(folder: str, path: str) -> str:
    """Remove a folder from a PATH.

    Parameters
    ----------
    folder : str
        The folder.
    path : str
        The PATH.

    Returns
    -------
    str
    """
    return os.pathsep.join(each for each in path.split(os.pathsep) if each != folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

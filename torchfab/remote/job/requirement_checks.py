"""The checks of phase one: whether this node has what a job requires.

Every check returns all problems that it found, each with a fix, instead of stopping at the first one, so that the user
can fix a node at once.
"""

from __future__ import annotations

import errno
import os
import time

from torchfab.remote import light_subprocess, tmux
from torchfab.remote.light_stdlib import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PYTHON_TIMEOUT_S = 20
PEERS_TIMEOUT_S = 5
# Addresses to which a wrong /etc/hosts, or that of Debian's installer, resolves a machine's own name.
_OWN_ADDRESSES = {"127.0.0.1", "127.0.1.1", "::1"}
_OTHER_PYTHON = "give an interpreter that works on every node with --python"
# Run by the training interpreter. Prints its version, and for each required module `name=2.1`, `name=` if the version
# is unknown, or `name` if the module is missing. Modules are located, not imported: importing torch takes seconds;
# and by the finders themselves, because importing importlib.util takes a quarter of the time of this program.
# The version is in the name of the .dist-info folder beside an installed package. importlib.metadata is used only if
# there is no such folder: importing it takes three times as long as all the rest.
_PYTHON_PROBE = """
import os, sys
def beside(name, spec):
    for place in spec.submodule_search_locations or ():
        for each in os.listdir(os.path.dirname(place)):
            head, _, rest = each.partition("-")
            if rest.endswith(".dist-info") and head.lower() == name.lower(): return rest[:-10]
def version(name, spec):
    try: found = beside(name, spec)
    except OSError: found = None
    if found: return found
    import importlib.metadata as m
    try: return m.version(name)
    except m.PackageNotFoundError: return ""
def find(name):
    if "." in name:
        from importlib.util import find_spec
        return find_spec(name)
    finders = (finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next(filter(None, (finder(name, None) for finder in finders)), None)
def word(name):
    try: spec = find(name)
    except (ImportError, ValueError): return name
    return name if spec is None else name + "=" + version(name, spec).replace(" ", "")
print(".".join(map(str, sys.version_info[:3])), *map(word, sys.argv[1:]))
"""


def problem(what: str, fix: str) -> dict[str, str]:
    """Return a problem in the form that the launch machine expects.

    Parameters
    ----------
    what, fix : str
        The problem, and how to fix it.

    Returns
    -------
    dict of str to str
    """
    return {"what": what, "fix": fix}


def run(request: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Run all checks.

    Parameters
    ----------
    request : dict
        As `Preparation` takes it.
    environ : mapping of str to str
        The environment of this node for the job, to which the job's own is added.

    Returns
    -------
    dict
        Facts: `tmux` and `python` (their versions, empty if unknown), `versions` of modules and programs.
    list of dict
        The problems.
    """
    tmux_version, tmux_problems = check_tmux(request["session"])
    python_version, modules, python_problems = check_python(request, environ)
    programs, program_problems = check_programs(request, environ)
    facts = {"tmux": tmux_version, "python": python_version, "versions": {**modules, **programs}}
    problems = [
        *(*tmux_problems, *python_problems, *program_problems),
        *check_workdir(request["workdir"], request["script"]),
        *check_program(request, environ),
        *([] if python_problems else check_launcher_arguments(request, environ)),
        *check_master(request),
        *check_peers(request["peers"]),
    ]
    return facts, problems


def check_tmux(session: str) -> tuple[str, list[dict[str, str]]]:
    """Check that tmux is new enough, and that a session does not exist yet.

    Parameters
    ----------
    session : str
        Name of the session.

    Returns
    -------
    str
        The version of tmux; empty if it does not run.
    list of dict
        The problems.
    """
    try:
        found = tmux.version()
    except tmux.TmuxUnusableError as error:
        return "", [problem(str(error), "install it there, for example: sudo apt-get install -y tmux")]
    required, name = (".".join(map(str, version)) for version in (tmux.MIN_VERSION, found))
    if found < tmux.MIN_VERSION:
        return name, [problem(f"tmux is {name}, {required} or newer is needed", "install a newer tmux there")]
    if tmux.has_session(session):
        what = f"the tmux session {session} exists already, from another launch machine or folder"
        return name, [problem(what, "choose another --name, or stop that job from where it was launched")]
    return name, []


def check_python(
    request: dict[str, Any], environ: Mapping[str, str]
) -> tuple[str, dict[str, str], list[dict[str, str]]]:
    """Check that the training interpreter runs, and finds the required modules.

    Parameters
    ----------
    request : dict
        `python`, `modules`, `workdir`, `python_path`, `installs`.
    environ : mapping of str to str
        The environment to run it in.

    Returns
    -------
    str
        The version of the interpreter; empty if it does not run.
    dict of str to str
        Versions of the modules that were found, by name.
    list of dict
        The problems.
    """
    python, workdir, path = request["python"], request["workdir"], request.get("python_path")
    extra_env = {"PYTHONPATH": path} if path else {}
    try:
        # Without the server's stdin, which carries the requests: a wrapper that reads stdin would consume the next one.
        code, output, errors = light_subprocess.run(
            [python, "-c", _PYTHON_PROBE, *request["modules"]],
            request.get("python_timeout_s", PYTHON_TIMEOUT_S),
            workdir if os.path.isdir(workdir) else "",
            {**environ, **extra_env},
        )
    except FileNotFoundError:
        what = f"there is no {python}"
        return "", {}, [problem(what, "give an interpreter that exists on every node with --python")]
    except (OSError, light_subprocess.ProgramTimeoutError) as error:
        return "", {}, [problem(f"{python} does not run: {error}", _OTHER_PYTHON)]
    fields = output.split()
    if _is_other_program(python, fields[:1], environ):
        return "", {}, [problem(f"{python} is not a Python", _OTHER_PYTHON)]
    if code or not fields:
        tail = errors.strip().splitlines()[-1:] or [f"it ended with {code}"]
        return "", {}, [problem(f"{python} does not run: {tail[0]}", _OTHER_PYTHON)]
    modules, missing = _split_modules(fields[1:])
    return fields[0], modules, [_missing_module(name, request) for name in missing]


def _is_other_program(python: str, printed: list[str], environ: Mapping[str, str]) -> bool:
    """Return whether an interpreter that did not print its version is another program, such as a shell."""
    if printed and printed[0][:1].isdigit():
        return False
    try:
        code, output, errors = light_subprocess.run([python, "--version"], PYTHON_TIMEOUT_S, env=environ)
    except (OSError, light_subprocess.ProgramTimeoutError):
        return False
    return code == 0 and not (output or errors).startswith("Python ")


def _split_modules(fields: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the versions of the modules that the interpreter found, and the names of the others."""
    found = {name: version for name, equals, version in (field.partition("=") for field in fields) if equals}
    return found, [field for field in fields if "=" not in field]


def _missing_module(name: str, request: dict[str, Any]) -> dict[str, str]:
    python, package = request["python"], request.get("installs", {}).get(name, name)
    fix = f"install it there: {python} -m pip install {package}; or give --workdir, or --python"
    return problem(f"{python} has no module {name}", fix)


def check_programs(request: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Check that the programs of the launcher are installed.

    Parameters
    ----------
    request : dict
        `programs`, `python`.
    environ : mapping of str to str
        The environment with the PATH to search.

    Returns
    -------
    dict of str to str
        Versions of the programs that were found, by name.
    list of dict
        The problems.
    """
    required = request.get("programs")
    if not required:
        return {}, []
    from torchfab.remote.host import programs  # imported here: most launchers need none

    return programs.check(required, request["python"], environ)


def check_workdir(workdir: str, script: str | None) -> list[dict[str, str]]:
    """Check that the working directory can be entered, and has the script.

    Parameters
    ----------
    workdir : str
        The working directory.
    script : str, optional
        Path of the script, relative to the working directory; None for a module.

    Returns
    -------
    list of dict
        The problems.
    """
    if not os.path.isdir(workdir):
        what = f"the working directory {workdir} does not exist"
        return [problem(what, "copy your code there, or give --workdir")]
    if not os.access(workdir, os.R_OK | os.X_OK):
        what = f"the working directory {workdir} cannot be entered"
        return [problem(what, "give this user read permission")]
    path = os.path.join(workdir, script or "")
    if script and not os.path.isfile(path):
        if os.path.isdir(path):
            return [_folder(path)]
        how = "is not a file" if os.path.exists(path) else "does not exist"
        return [problem(f"the script {path} {how}", "copy your code there, or give --workdir")]
    return []


def check_program(request: dict[str, Any], environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Check that the program that the ranks run instead of a Python script is executable.

    Parameters
    ----------
    request : dict
        `program` (a path, or a name on PATH; empty or missing for none), `workdir`, `python`.
    environ : mapping of str to str
        The environment with the PATH to search.

    Returns
    -------
    list of dict
        The problems: at most one.
    """
    program = request.get("program") or ""
    path = os.path.join(request["workdir"], program)
    if "/" in program:
        if os.path.isfile(path) and not os.access(path, os.X_OK):
            return [problem(f"{path} is not executable", f"chmod +x it there, or name what runs it: -- bash {program}")]
        return []
    if not program:
        return []
    from torchfab.remote.host import programs  # imported here: most jobs run a Python script

    if programs.find(program, request["python"], environ):
        return []
    if os.path.isdir(path):
        return [_folder(path)]
    what = f"there is no program {program} on PATH, nor beside {request['python']}"
    fix = "install it there, or give the --python of an environment that has it"
    if os.path.isfile(path):
        fix = f"{path} is a file: run it as -- ./{program}, or -- python {program}"
    return [problem(what, fix)]


def check_launcher_arguments(request: dict[str, Any], environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Check the arguments that the user passes on to a launcher with the launcher's own parser.

    Parameters
    ----------
    request : dict
        `parser`, the arguments of the interpreter that parse them (empty or missing: there are none); `python`.
    environ : mapping of str to str
        The environment to run it in.

    Returns
    -------
    list of dict
        The problems: at most one.
    """
    if not request.get("parser"):
        return []
    try:
        code, _, errors = light_subprocess.run(
            [request["python"], *request["parser"]],
            request.get("python_timeout_s", PYTHON_TIMEOUT_S),
            env=environ,
        )
    except (OSError, light_subprocess.ProgramTimeoutError):  # a slow disk; the launcher reports wrong arguments itself
        return []
    if code != 2:  # argparse's code for wrong arguments
        return []
    last = (errors.strip().splitlines() or ["it does not accept them"])[-1]
    return [problem(f"the launcher's arguments are wrong: {last.partition('error: ')[2] or last}", "correct them")]


def check_accelerate_config(environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Check that this user's configuration of accelerate does not make every rank start ranks of its own.

    Parameters
    ----------
    environ : mapping of str to str
        The environment, which may contain the path of the configuration.

    Returns
    -------
    list of dict
        The problems: at most one.
    """
    cache = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    path = os.path.join(os.path.expanduser(cache), "accelerate", "default_config.yaml")
    try:
        with open(path, errors="replace") as file:
            kinds = [line.split(":", 1)[1].strip(" \t\r\n'\",") for line in file if "distributed_type" in line[:30]]
    except (OSError, IndexError):
        return []
    if not kinds or kinds[0].upper() in ("NO", "MULTI_CPU", ""):
        return []
    what = f"{path} says distributed_type: {kinds[0]}, so accelerate would start a job of its own in every rank"
    return [problem(what, "run the script itself (fab import prints the command for such a file), or move it away")]


def _folder(path: str) -> dict[str, str]:
    return problem(f"{path} is a folder", "name the script in it, or the module: -- -m package.module")


def check_master(request: dict[str, Any]) -> list[dict[str, str]]:
    """Check that the master address resolves, and, except on node 0, not to this machine.

    Parameters
    ----------
    request : dict
        `master_addr`, `node_rank`, `one_machine`, `master_is_given` (by --master-addr; missing: it is not).

    Returns
    -------
    list of dict
        The problems.
    """
    address = request["master_addr"]
    if not address:
        return []
    found = _addresses(address)
    if not found:
        what = f"the master address {address} does not resolve"
        fix = "give an address that every node can reach with --master-addr, or with address= in the hosts file"
        return [problem(what, fix)]
    elsewhere = request["node_rank"] != 0 and not request["one_machine"]
    if elsewhere and found <= _OWN_ADDRESSES:
        what = f"the master address {address} is this node itself here ({', '.join(sorted(found))})"
        return [problem(what, "give an address that every node can reach with --master-addr")]
    if request["node_rank"] == 0 and request.get("master_is_given") and not any(map(_is_own, found)):
        what = f"the master address {address} is not an address of this host, which is node 0"
        fix = "correct --master-addr; for an address that a router forwards, use address= in the hosts file"
        return [problem(what, fix)]
    return []


def _is_own(address: str) -> bool:
    """Return whether an address belongs to this machine; an address that cannot be tested counts as its own."""
    try:
        tried = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return True
    try:
        tried.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    finally:
        tried.close()
    return True


def check_peers(addresses: list[str]) -> list[dict[str, str]]:
    """Check that the addresses of the other nodes resolve.

    Parameters
    ----------
    addresses : list of str
        The addresses.

    Returns
    -------
    list of dict
        The problems: at most one.
    """
    deadline = time.monotonic() + PEERS_TIMEOUT_S
    unknown = []
    for address in addresses:
        if time.monotonic() > deadline:  # a slow name server must not delay the whole launch
            break
        if not _addresses(address):
            unknown.append(address)
    if not unknown:
        return []
    shown = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
    what = f"addresses of other nodes do not resolve there: {shown}"
    return [problem(what, "give addresses that the nodes can reach with address= in the hosts file")]


def _addresses(name: str) -> set[str]:
    """Return the addresses that a name resolves to; empty when it does not resolve."""
    # As bytes: a text is encoded by the codec `idna`, whose import is slow.
    host = name.encode() if name.isascii() else name
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()

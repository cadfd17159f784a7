"""The source text of the program that runs on nodes: the modules of `torchfab.remote`, and an importer for them.

It is sent over the connection's stdin to `python3 -I -S`, and written into the job's folder for the supervisors:
nothing is installed on a node, and job and command never run different versions of it. A module is compiled when it is
imported; the supervisors of a job read compiled modules from a file beside the program (see
`torchfab.remote.job.bytecode_cache`).
"""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

_REMOTE = Path(__file__).parents[1] / "remote"

_PROGRAM = '''\
"""torchfab on a node: made by torchfab.transport.bundle from torchfab/remote; standard library only."""
import sys
if sys.version_info < (3, 9):
    sys.exit("torchfab-needs-python 3.9, this is %d.%d" % sys.version_info[:2])
from importlib.machinery import ModuleSpec
MODULES = {modules}
PACKAGES = {packages}
CODE = {}
class Importer:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in MODULES:
            return ModuleSpec(name, Importer, is_package=name in PACKAGES)
    @staticmethod
    def create_module(spec):
        return None
    @staticmethod
    def exec_module(module):
        exec(Importer.get_code(module.__name__), module.__dict__)
    @staticmethod
    def get_code(name):
        return CODE.get(name) or compile(MODULES[name], "<" + name + ">", "exec")
sys.meta_path.insert(0, Importer)
if "__file__" in globals():
    try:
        from marshal import load
        with open(__file__ + "c", "rb") as file:
            CODE = load(file) if file.readline() == repr(sys.version).encode() + b"\\n" else {}
    except (OSError, ValueError, EOFError, TypeError):
        pass
from torchfab.remote import server
'''

_MAIN = 'sys.exit(server.main(globals().get("SOURCE") or open(__file__).read()))\n'

# Reads as many bytes as its argument says, and leaves the rest of stdin for requests.
BOOTSTRAP = (
    "import sys,zlib;SOURCE=zlib.decompress(sys.stdin.buffer.read(int(sys.argv[1]))).decode();"
    'exec(compile(SOURCE,"torchfab","exec"))'
)


@cache
def source() -> str:
    """Return the program that runs on a node.

    Returns
    -------
    str
        Its source text.
    """
    modules = {"torchfab": ""}
    packages = ["torchfab"]
    for path in sorted(_REMOTE.rglob("*.py")):
        relative = path.relative_to(_REMOTE.parent)
        if "shims" in relative.parts:  # separate programs, see torchfab.launchers.shims
            continue
        if path.stem == "__init__":
            packages.append(name := ".".join(["torchfab", *relative.parent.parts]))
            modules[name] = ""
        else:
            name = ".".join(["torchfab", *relative.with_suffix("").parts])
            modules[name] = path.read_text(encoding="utf-8")
    return _PROGRAM.replace("{modules}", repr(modules)).replace("{packages}", repr(tuple(packages))) + _MAIN


@cache
def packed() -> bytes:
    """Return the compressed program: a third of its size, which saves round trips to a distant node.

    Returns
    -------
    bytes
        The source text, compressed with zlib.
    """
    return zlib.compress(source().encode(), 6)


def argv(python: str) -> tuple[str, ...]:
    """Return the command that starts the program on a node; write `packed()` to its stdin first.

    `-I -S`: without the user's environment, start-up files and site-packages; 10 ms instead of 100.

    Parameters
    ----------
    python : str
        The interpreter.

    Returns
    -------
    tuple of str
        The command.
    """
    return (python, "-I", "-S", "-c", BOOTSTRAP, str(len(packed())))

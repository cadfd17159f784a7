"""The one source text that runs on a node: the modules of `torchfab.remote`, and an importer that finds them in it.

It is sent over the connection's stdin to `python3 -I -S`, and written into the job's folder for the supervisors:
nothing is installed on a node, and job and command never run different versions of it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_REMOTE = Path(__file__).parent / "remote"

_PROGRAM = '''\
"""torchfab on a node: made by torchfab.bundle from torchfab/remote; standard library only."""
import sys
if sys.version_info < (3, 9):
    sys.exit("torchfab-needs-python 3.9, this is %d.%d" % sys.version_info[:2])
from importlib.machinery import ModuleSpec
MODULES = {modules}
class Importer:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in MODULES:
            return ModuleSpec(name, Importer, is_package=name in ("torchfab", "torchfab.remote"))
    @staticmethod
    def create_module(spec):
        return None
    @staticmethod
    def exec_module(module):
        name = module.__name__
        exec(compile(MODULES[name], "<" + name + ">", "exec"), module.__dict__)
sys.meta_path.insert(0, Importer)
from torchfab.remote import wire
'''

_MAIN = 'sys.exit(wire.main(globals().get("SOURCE") or open(__file__).read()))\n'

# Reads as many bytes of source as its argument says, and leaves the rest of stdin for the conversation.
BOOTSTRAP = 'import sys;SOURCE=sys.stdin.buffer.read(int(sys.argv[1])).decode();exec(compile(SOURCE,"torchfab","exec"))'


@cache
def source() -> str:
    """Return the program that runs on a node, as source text."""
    modules = {"torchfab": "", "torchfab.remote": ""}
    for path in sorted(_REMOTE.glob("*.py")):
        if path.stem != "__init__":
            modules[f"torchfab.remote.{path.stem}"] = path.read_text(encoding="utf-8")
    return _PROGRAM.replace("{modules}", repr(modules)) + _MAIN


def argv(python: str) -> tuple[str, ...]:
    """Return the command that starts the conversation on a node; `source()` is to be written to its stdin first.

    `-I -S`: without the user's environment, start-up files and site-packages; 10 ms instead of 100.
    """
    return (python, "-I", "-S", "-c", BOOTSTRAP, str(len(source().encode())))

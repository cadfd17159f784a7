"""The source text of the program that runs on nodes: the modules of `torchfab.remote`, and an importer for them.

It is sent over the connection's stdin to `python3 -I -S`, and written into the job's folder for the supervisor:
nothing is installed on a node, and a command and the program that it talks to always have the same version. A module is
compiled when it is imported; the supervisor of a job reads compiled modules from a file beside the program (see
`torchfab.remote.job.bytecode_cache`). The modules are in a comment at the end of the program, compressed, so that the
supervisor does not parse them. They have no docstrings and comments, but the same line numbers.

Building the program takes as long as a login. The result is cached beside the compiled modules of `torchfab.remote`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path

QUOTES = '"""'
_REMOTE = Path(__file__).parents[1] / "remote"

_PROGRAM = '''\
"""torchfab on a node: made by torchfab.transport.bundle from torchfab/remote; standard library only."""
import sys
if sys.version_info < (3, 9):
    sys.exit("torchfab-needs-python 3.9, this is %d.%d" % sys.version_info[:2])
from _frozen_importlib import ModuleSpec
NAMES = {names}
PACKAGES = {packages}
CODE = {}
TEXTS = {}
class Importer:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in NAMES:
            return ModuleSpec(name, Importer, is_package=name in PACKAGES)
    @staticmethod
    def create_module(spec):
        return None
    @staticmethod
    def exec_module(module):
        exec(Importer.get_code(module.__name__), module.__dict__)
    @staticmethod
    def get_code(name):
        if name not in CODE:
            CODE[name] = compile(Importer.get_text(name), "<" + name + ">", "exec")
        return CODE[name]
    @staticmethod
    def get_text(name):
        if not TEXTS:
            from binascii import a2b_base64
            from zlib import decompress
            texts = decompress(a2b_base64(source().rpartition("#")[2])).decode().split("\\0")
            TEXTS.update(zip(NAMES, texts))
        return TEXTS[name]
def source():
    if SOURCE:
        return SOURCE
    with open(__file__) as file:
        return file.read()
SOURCE = globals().get("SOURCE")
sys.meta_path.insert(0, Importer)
if "__file__" in globals():
    try:
        from marshal import load
        with open(__file__ + "c", "rb") as file:
            CODE = load(file) if file.readline() == repr(sys.version).encode() + b"\\n" else {}
    except (OSError, ValueError, EOFError, TypeError):
        pass
'''

# The supervisor does not load the server.
_MAIN = """\
# ---- run
if sys.argv[1:2] == ["supervise"]:
    from torchfab.remote.job.supervisor import main
    sys.exit(main(sys.argv[2:]))
from torchfab.remote.server import main
sys.exit(main(source()))
"""

# Reads the number of bytes given by its argument, and leaves the rest of stdin for requests.
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
    texts = {"torchfab": ""}
    packages = ["torchfab"]
    for path in _modules():
        relative = path.relative_to(_REMOTE.parent)
        if path.stem == "__init__":
            packages.append(name := ".".join(["torchfab", *relative.parent.parts]))
            texts[name] = ""
        else:
            name = ".".join(["torchfab", *relative.with_suffix("").parts])
            texts[name] = without_prose(path.read_text(encoding="utf-8"))
    program = _PROGRAM.replace("{names}", repr(tuple(texts))).replace("{packages}", repr(tuple(packages)))
    modules = base64.b64encode(zlib.compress("\0".join(texts.values()).encode(), 6)).decode()
    return f"{program}{_MAIN}#{modules}\n"


def _modules() -> list[Path]:
    paths = sorted(_REMOTE.rglob("*.py"))
    return [path for path in paths if "shims" not in path.parts]  # separate programs, see torchfab.launchers.shims


def without_prose(text: str) -> str:
    """Return the source of a module without its docstrings and comments, which are half of the text.

    Parameters
    ----------
    text : str
        The source; a docstring begins and ends its lines.

    Returns
    -------
    str
        Each statement on the same line as before.
    """
    return "\n".join(_without_prose(text.split("\n")))


def _without_prose(lines: list[str]) -> Iterator[str]:
    in_text = in_docstring = False
    for line in lines:
        stripped = line.strip()
        if in_text:
            in_text = line.count(QUOTES) % 2 == 0
            yield line
        elif in_docstring:
            in_docstring = not stripped.endswith(QUOTES)
            yield ""
        elif stripped.startswith(QUOTES):
            in_docstring = len(stripped) < 2 * len(QUOTES) or not stripped.endswith(QUOTES)
            yield line[: line.index(QUOTES)] + '""'
        else:
            in_text = line.count(QUOTES) % 2 == 1
            yield "" if stripped.startswith("#") else line


@cache
def packed() -> bytes:
    """Return the compressed program: a third of the size, which saves round trips to a distant node.

    Returns
    -------
    bytes
        The source text, compressed with zlib.
    """
    path, made_of = Path(cache_from_source(str(_REMOTE / "program.py"))).with_suffix(".z"), _fingerprint()
    with suppress(OSError):
        data = path.read_bytes()
        if data.endswith(made_of):
            return data.removesuffix(made_of)
    made = zlib.compress(source().encode(), 6)
    if not sys.dont_write_bytecode:
        with suppress(OSError):  # torchfab was installed by another user
            _write(path, made + made_of)
    return made


def _fingerprint() -> bytes:
    """Return a digest that changes when a module of the program, or this module, changes."""
    states = [(path, path.stat()) for path in (Path(__file__), *_modules())]
    text = repr([(str(path), state.st_mtime_ns, state.st_ctime_ns, state.st_size) for path, state in states])
    return hashlib.sha256(text.encode()).digest()


def _write(path: Path, data: bytes) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    new.write_bytes(data)
    new.replace(path)


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

"""Parts of the standard library without the modules that make their import slow.

A launch starts two interpreters on each node. `json`, `signal` and `ctypes` import `re`, `enum`, `functools` and more,
which takes as long as the start of the interpreter itself. This module uses the C functions below them, which are
private parts of CPython: if one is missing or differs, the public module is used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _module(private: str, public: str) -> Any:
    try:
        return __import__(private)
    except ImportError:
        return __import__(public)


signal, socket = _module("_signal", "signal"), _module("_socket", "socket")
_ALIASES = ("SIGCLD", "SIGIOT", "SIGPOLL")
_NAMES = (name for name in dir(signal) if name.startswith("SIG") and name[3].isalpha() and name not in _ALIASES)
_SIGNALS = {getattr(signal, name): name for name in _NAMES}


# ---- signals


def signal_name(number: int) -> str:
    """Return the name of a signal.

    Parameters
    ----------
    number : int
        The signal.

    Returns
    -------
    str
        Such as `SIGTERM`; `signal 40` for one without a name.
    """
    return _SIGNALS.get(number, f"signal {number}")


# ---- JSON


class _Decoding:
    """The attributes that the C scanner reads from a `json.JSONDecoder`."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(name: str) -> float:
        """Return the value of NaN, Infinity or -Infinity."""
        return float(name)


def _codec() -> tuple[Callable[[str, int], Any], Callable[[Any, int], Any]] | None:
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner

        encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
        scan = make_scanner(_Decoding())  # type: ignore[arg-type]
        value = {"a": [1, -2.5e3, True, None, "é\n"], "b": {}}
        text = "".join(encode(value, 0))
        return (scan, encode) if scan(text, 0) == (value, len(text)) else None
    except Exception:  # another version or implementation of Python
        return None


def _refuse(value: object) -> Any:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_CODEC = _codec()


def loads(text: str) -> Any:
    """Parse JSON, as `json.loads` does.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    object
        Its value.

    Raises
    ------
    ValueError
        The text is not JSON.
    """
    text = text.strip(" \t\n\r")
    try:
        if _CODEC is not None:
            value, end = _CODEC[0](text, 0)
            if end == len(text):
                return value
    except (StopIteration, SystemError, ValueError):  # not JSON; the scanner lacks the class of the exception
        pass
    import json

    return json.loads(text)


def dumps(value: Any) -> str:
    """Return a value as JSON, as `json.dumps` does.

    Parameters
    ----------
    value : object
        Made of dicts, lists, tuples, texts, numbers, True, False and None.

    Returns
    -------
    str
        One line of ASCII.

    Raises
    ------
    TypeError
        The value has parts of other types.
    """
    if _CODEC is None:
        import json

        return json.dumps(value)
    return "".join(_CODEC[1](value, 0))


# ---- digests


def sha256(data: bytes = b"") -> Any:
    """Return a SHA-256 object, as `hashlib.sha256` does, without loading OpenSSL.

    Parameters
    ----------
    data : bytes
        The data so far. Default: none.

    Returns
    -------
    object
        It has `update` and `hexdigest`.
    """
    for module in ("_sha2", "_sha256"):  # since Python 3.12; before
        try:
            return __import__(module).sha256(data)
        except (ImportError, AttributeError):
            pass
    import hashlib

    return hashlib.sha256(data)


# ---- functions of the C library


def c_function(name: str) -> Callable[..., int]:
    """Return a function of the C library that takes numbers and returns an `int`, or a small `long`.

    Parameters
    ----------
    name : str
        Its name.

    Returns
    -------
    callable
        Takes five ints at most.
    """
    try:
        function = _light_c_function(name)
    except Exception:  # another version or implementation of Python
        import ctypes

        function = ctypes.CDLL(None)[name]
        function.restype, function.argtypes = ctypes.c_long, [ctypes.c_long] * 5
    # An `int` leaves the upper half of the register as it was.
    return lambda *args: (function(*args, *[0] * (5 - len(args))) + 2**31) % 2**32 - 2**31


def _light_c_function(name: str) -> Any:
    import _ctypes

    class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "l"

    class Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL
        _restype_ = Long
        _argtypes_ = (Long,) * 5

    return Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), name))  # type: ignore[arg-type]

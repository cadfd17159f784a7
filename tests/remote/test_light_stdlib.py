"""Parts of the standard library without slow imports: the same results as the public modules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.place import python
from torchfab.remote import light_stdlib

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_json_is_that_of_the_standard_library(value: Any) -> None:
    text = light_stdlib.dumps(value)
    assert text == json.dumps(value)
    assert light_stdlib.loads(f" {text}\n") == value


@pytest.mark.parametrize("text", ["", "{", "[1,]", "1 2", "nul", '"\0"', "{'a': 1}", '{"a" 1}', "\ufeff1", "[" * 100])
def test_what_is_not_json_is_an_error(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        light_stdlib.loads(text)


def test_a_value_that_json_lacks_is_an_error() -> None:
    with pytest.raises(TypeError, match="Object of type set is not JSON serializable"):
        light_stdlib.dumps({"a": {1}})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), {1: "a"}, (1, 2), "\udce9"])
def test_special_values_are_written_as_by_the_standard_library(value: Any) -> None:
    assert light_stdlib.dumps(value) == json.dumps(value)
    assert repr(light_stdlib.loads(light_stdlib.dumps(value))) == repr(json.loads(json.dumps(value)))


@pytest.mark.parametrize("number", sorted(signal.Signals))
def test_signals_have_their_names(number: signal.Signals) -> None:
    assert light_stdlib.signal_name(number) == number.name


def test_a_signal_without_a_name_has_its_number() -> None:
    assert light_stdlib.signal_name(40) == "signal 40"


def test_functions_of_the_c_library_return_their_results() -> None:
    assert light_stdlib.c_function("getppid")() == os.getppid()
    assert light_stdlib.c_function("prctl")(-1) == -1


# Another Python, or another version of it, has not the same private modules.
WITHOUT = """
import sys
sys.modules["_json"] = None
sys.path.insert(0, sys.argv[1])
from torchfab.remote import light_stdlib
light_stdlib._light_c_function = lambda name: 1 / 0
print(light_stdlib._CODEC, light_stdlib.loads('{"a": [1]}'), light_stdlib.dumps({"a": [1]}))
print(light_stdlib.c_function("prctl")(-1))
"""


def test_public_modules_take_the_place_of_missing_ones() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(python(WITHOUT, root), capture_output=True, text=True, check=True)
    assert done.stdout == "None {'a': [1]} {\"a\": [1]}\n-1\n"


def test_no_slow_module_is_loaded() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = "import sys; sys.path.insert(0, sys.argv[1]); from torchfab.remote import light_stdlib"
    code += "; light_stdlib.c_function('prctl')(-1)"
    slow = "{'json', 're', 'enum', 'functools', 'ctypes', 'signal'}"
    code += f"; light_stdlib.loads('1'); light_stdlib.dumps(1); print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run(python(code, root), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

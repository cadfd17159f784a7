"""Tests of torchfab.core.lazy_dataclass: its classes behave as those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import field
from functools import cached_property
from typing import Any, Generic, TypeVar

import pytest

from torchfab.core import lazy_dataclass

Item = TypeVar("Item")
Decorate = Callable[..., Any]


def make_classes(dataclass: Decorate) -> tuple[Any, Any]:
    """Return a frozen dataclass and one derived from it."""

    @dataclass(frozen=True)
    class Base:
        """A base."""

        name: str
        secret: str = field(default="", repr=False, compare=False)
        parts: list[str] = field(default_factory=list, metadata={"help": "Parts."})

        def __post_init__(self) -> None:
            if not self.name:
                raise ValueError("no name")

        @property
        def upper(self) -> str:
            return self.name.upper()

    @dataclass(frozen=True)
    class Derived(Base):
        """A derived class."""

        count: int = 0

        def __str__(self) -> str:
            return f"{self.name} x {self.count}"

    return Base, Derived


@pytest.fixture(params=["lazy", "standard"])
def dataclass(request: pytest.FixtureRequest) -> Any:
    return lazy_dataclass.dataclass if request.param == "lazy" else dataclasses.dataclass


def test_objects_have_fields_defaults_and_methods(dataclass: Decorate) -> None:
    _, derived = make_classes(dataclass)
    made = derived("a", parts=["x"], count=2)
    assert repr(made).endswith("Derived(name='a', parts=['x'], count=2)")
    assert str(made) == "a x 2"
    assert made.upper == "A"
    assert made == derived("a", "other", ["x"], 2)
    assert made != derived("a", parts=["x"], count=3)
    assert derived("a").parts is not derived("a").parts


def test_fields_are_known_before_the_first_object(dataclass: Decorate) -> None:
    base, derived = make_classes(dataclass)
    assert [each.name for each in dataclasses.fields(derived)] == ["name", "secret", "parts", "count"]
    assert dataclasses.fields(base)[2].metadata["help"] == "Parts."
    assert dataclasses.is_dataclass(derived)
    assert not hasattr(base, "parts")
    assert base.secret == ""


def test_a_frozen_object_cannot_be_changed(dataclass: Decorate) -> None:
    base, _ = make_classes(dataclass)
    made = base("a")
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'name'"):
        made.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'other'"):
        made.other = "b"
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'name'"):
        del made.name


def test_a_plain_class_derived_from_a_frozen_one_has_attributes_of_its_own(dataclass: Decorate) -> None:
    base, _ = make_classes(dataclass)

    class Plain(base):  # type: ignore[misc,valid-type]
        pass

    made = Plain("a")
    made.other = 1
    del made.other
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "b"


def test_a_wrong_argument_is_a_type_error_each_time(dataclass: Decorate) -> None:
    base, _ = make_classes(dataclass)
    for _ in range(2):
        with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
            base("a", size=1)
        with pytest.raises(ValueError, match="no name"):
            base("")


def test_replace_and_asdict_and_copies(dataclass: Decorate) -> None:
    _, derived = make_classes(dataclass)
    made = dataclasses.replace(derived("a"), count=3)
    assert dataclasses.asdict(made) == {"name": "a", "secret": "", "parts": [], "count": 3}
    assert copy.deepcopy(made) == made


def test_objects_can_be_keys_and_hash_by_value(dataclass: Decorate) -> None:
    @dataclass(frozen=True)
    class Key:
        name: str

    @dataclass
    class Changing:
        name: str

    assert {Key("a"): 1}[Key("a")] == 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(Changing("a"))
    changing = Changing("a")
    changing.name = "b"
    assert changing == Changing("b")


def test_generic_classes_and_cached_properties(dataclass: Decorate) -> None:
    @dataclass(frozen=True)
    class Box(Generic[Item]):
        item: Item

        @cached_property
        def twice(self) -> tuple[Item, Item]:
            return self.item, self.item

    box: Any = Box[int](1)
    assert box.twice is box.twice
    assert box == Box(1)


def test_a_method_of_the_class_itself_stays(dataclass: Decorate) -> None:
    @dataclass(frozen=True)
    class Own:
        name: str

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    assert (repr(Own("a")), Own("a") == Own("b"), hash(Own("a"))) == ("own", True, 7)


def test_an_unfrozen_class_cannot_follow_a_frozen_one(dataclass: Decorate) -> None:
    base, _ = make_classes(dataclass)

    def derive() -> Any:
        @dataclass
        class Changing(base):  # type: ignore[misc,valid-type]
            count: int = 0

        return Changing("a")

    with pytest.raises(TypeError, match="cannot inherit non-frozen dataclass from a frozen one"):
        derive()


def test_an_object_that_another_process_has_pickled_is_complete() -> None:
    from torchfab.core.specs import Slot

    code = (
        "import pickle, sys; slots = pickle.load(sys.stdin.buffer); a, b = slots; "
        "assert a == b and hash(a) == hash(b), a; print(repr(a))"
    )
    data = pickle.dumps([Slot(0, 0, 1), Slot(0, 0, 1)])
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    assert done.stdout.decode().strip() == "Slot(rank=0, node_rank=0, local_rank=1)", done.stderr.decode()


def test_threads_may_use_a_class_for_the_first_time_at_once() -> None:
    for _ in range(20):
        _, derived = make_classes(lazy_dataclass.dataclass)
        start = threading.Barrier(8)
        made: list[Any] = []

        def use(derived: Any = derived, start: Any = start, made: Any = made) -> None:
            start.wait()
            made.append(derived("a", count=1))

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [derived("a", count=1)] * 8


def test_a_class_is_not_compiled_before_it_is_used() -> None:
    base, _ = make_classes(lazy_dataclass.dataclass)
    stub = vars(base)["__init__"]
    base("a")
    assert vars(base)["__init__"] is not stub
    assert vars(base)["__init__"].__qualname__.endswith("Base.__init__")

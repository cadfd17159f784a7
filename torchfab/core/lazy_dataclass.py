"""`dataclass` as of the standard library, but a class gets its methods when it is first used.

The standard one compiles six methods when a module is imported: 1 ms a class, and a command imports 90 classes of which
it uses 20. Everything else is the same: fields, methods, `replace`, errors, and what a type checker sees.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, **options):
        """Make a class a dataclass; its methods are compiled when it is first used.

        Parameters
        ----------
        cls : type
            The class.
        **options
            As of `dataclasses.dataclass`, except `slots` and `weakref_slot`, which need a new class.

        Returns
        -------
        type
            The same class.
        """
        return _defer(cls, options) if cls is not None else lambda decorated: _defer(decorated, options)


_FIELDS = "__dataclass_fields__"
# Whoever uses a class first comes by one of these: a new object, or one that was unpickled.
_METHODS = ("__init__", "__repr__", "__eq__")
_FROZEN_METHODS = (*_METHODS, "__hash__")
_NOT_COPIED = ("__dict__", "__weakref__", _FIELDS)
_completing = threading.RLock()


def _defer(cls: type, options: dict[str, Any]) -> type:
    deferred = _Deferred(cls, options)
    setattr(cls, _FIELDS, deferred)
    for name in _FROZEN_METHODS if options.get("frozen") else _METHODS:
        if name not in cls.__dict__ or cls.__dict__[name] is None:  # Python sets __hash__ beside an own __eq__
            setattr(cls, name, deferred.method(name))
    return cls


class _Deferred:
    """Stands in a class for its fields, and for its methods, until one of them is used.

    Parameters
    ----------
    cls : type
        The class, without its methods.
    options : dict of str to Any
        The arguments of the decorator.
    """

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self.cls, self.options = cls, options
        self.own = {name: value for name, value in cls.__dict__.items() if name not in _NOT_COPIED}

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Return the fields, as `dataclasses.fields` and a derived dataclass read them."""
        self.complete()
        return self.cls.__dict__[_FIELDS]

    def method(self, name: str) -> Any:
        """Return a method that completes the class, and then calls the method that takes its place."""

        def call(instance: Any, *args: Any, **kwargs: Any) -> Any:
            self.complete()
            return getattr(self.cls, name)(instance, *args, **kwargs)

        return call

    def complete(self) -> None:
        """Give the class its fields and methods, once."""
        with _completing:
            if self.cls.__dict__[_FIELDS] is self:
                self._complete()

    def _complete(self) -> None:
        # The standard decorator works on a twin: other threads must never see the class without its methods.
        twin: type = type(self.cls)(self.cls.__name__, self.cls.__bases__, dict(self.own))
        made = dict(dataclasses.dataclass(**self.options)(twin).__dict__)
        if made["__dataclass_params__"].frozen:
            made.update(_frozen_methods(self.cls, tuple(made[_FIELDS])))
        for name in [name for name in self.own if name not in made]:
            delattr(self.cls, name)  # the description of a field without a default value
        fields = made.pop(_FIELDS)
        for name, value in made.items():
            if name not in _NOT_COPIED and (name not in self.own or self.own[name] is not value):
                setattr(self.cls, name, value)
        setattr(self.cls, _FIELDS, fields)


def _frozen_methods(cls: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return what the standard decorator adds to a frozen class, which would name the twin."""

    def check(instance: object, verb: str, name: str) -> None:
        if type(instance) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot {verb} field {name!r}")

    def set_attribute(instance: object, name: str, value: object) -> None:
        check(instance, "assign to", name)
        super(cls, instance).__setattr__(name, value)

    def delete_attribute(instance: object, name: str) -> None:
        check(instance, "delete", name)
        super(cls, instance).__delattr__(name)

    return {"__setattr__": set_attribute, "__delattr__": delete_attribute}

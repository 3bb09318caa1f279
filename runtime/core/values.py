"""Values: small, frozen, equal where their fields are. As frozen dataclasses, but quick to define and to make.

`dataclass(frozen=True)` writes and compiles six methods for every class that is imported: 0.6 ms each, a sixth of a
worker's start. Here it writes one, `__init__`, when the first value of a class is made, which for most is after that;
all classes share the others. That nothing is assigned to is held by the type checker: at run time it would cost each
value of each job a call for every field.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """A class of values: a dataclass with slots, hashed and compared by its fields. They are not to be assigned to."""
    made = _made(cls)
    names = made.__match_args__
    made._fields = attrgetter(*names) if names else _nothing
    made.__eq__, made.__hash__ = _eq, _hash
    if "__repr__" not in cls.__dict__:
        made.__repr__ = _repr
    of_this_kind: type[T] = made
    return of_this_kind


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A class of things that change: a dataclass with slots, each equal to itself alone."""
    of_this_kind: type[T] = _made(cls)
    return of_this_kind


def _made(cls: type[Any]) -> Any:
    cls.__doc__ = cls.__doc__ or cls.__name__  # else dataclass makes one of the signature, which takes long to find out
    made: Any = dataclass(slots=True, eq=False, repr=False, init=False)(cls)
    if "__init__" not in cls.__dict__:
        made.__init__ = _init_of(made)
    return made


def _init_of(made: Any) -> Callable[..., None]:
    """Stands in for the `__init__` of the class until it is first called."""

    def write_and_call(self: Any, *args: Any, **kwargs: Any) -> None:
        # dataclass writes one for all the fields that a class inherits.
        heir: Any = type(made.__name__, (made,), {"__doc__": made.__doc__})
        made.__init__ = dataclass(eq=False, repr=False)(heir).__init__
        made.__init__(self, *args, **kwargs)

    return write_and_call


def _nothing(value: Any) -> tuple[()]:
    return ()


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    fields = self.__class__._fields
    return fields(self) == fields(other)


def _hash(self: Any) -> int:
    return hash(self.__class__._fields(self))


def _repr(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name, one in self.__dataclass_fields__.items() if one.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"

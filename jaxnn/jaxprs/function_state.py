"""Everything that a Python function depends on, as a value: its code, and what the code can read.

A function reads its closure, its defaults, its attributes and the globals that its code names; a
method reads its object too. Where all of these are values, here and in every function among them,
the function computes the same as long as they are equal, and need not be traced to know it.
"""

import dis
import functools
import sys
import types
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from jaxnn.errors import is_traced
from jaxnn.jaxprs.digests import digest

LIBRARIES = frozenset(
    {"builtins", "collections", "functools", "itertools", "math", "operator", "typing"}
    | {
        "beartype",
        "chex",
        "einops",
        "jax",
        "jaxlib",
        "jaxnn",
        "jaxtyping",
        "numpy",
        "optax",
        "scipy",
    }
    | {"equinox", "flax", "haiku"}
)
"""Packages whose modules, classes and globals do not change while a program runs."""


class UnknownStateError(Exception):
    """What a function depends on cannot be told from outside: an object with state of its own."""


class TracedStateError(UnknownStateError):
    """A function reads a value of the trace that it is called in, as one inside `jit` may."""


def function_state(f: Any) -> Hashable:
    """A value that is equal for two functions, or containers of such, only if they compute alike.

    Errors: UnknownStateError, for a function that reads an object without comparison by value;
    TracedStateError, for one that reads traced values.

    >>> power = lambda n: lambda x: x**n
    >>> function_state(power(2)) == function_state(power(2)) != function_state(power(3))
    True
    """
    return _State().of(f)


class Identity:
    """An object that is equal to itself alone, whatever its own comparison says."""

    def __init__(self, value: object):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value


class _State:
    """One walk: functions and containers that it comes back to are named by their number."""

    def __init__(self):
        self.numbers: dict[int, tuple[int, Any]] = {}  # the objects too: ids are used again

    def of(self, value: Any) -> Hashable:
        if value is None or isinstance(value, _VALUES):
            return type(value), value
        if isinstance(value, slice):
            return slice, self.of((value.start, value.stop, value.step))
        if isinstance(value, float | complex):
            return type(value), repr(value)  # NaN is equal to itself, and 0.0 differs from -0.0
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            if is_traced(value):
                raise TracedStateError
            return digest(value)
        if isinstance(value, types.ModuleType | type):
            return self._of_library(value)
        if _is_held_by_library(value):
            return Identity(value)
        if id(value) in self.numbers:
            return "seen", self.numbers[id(value)][0]
        self.numbers[id(value)] = len(self.numbers), value
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.MethodType):
            return self.of(value.__func__), self.of(value.__self__)
        if isinstance(value, functools.partial):  # `jax.tree_util.Partial` is one
            return type(value), self.of(value.func), self.of(value.args), self.of(value.keywords)
        if isinstance(value, tuple | list):
            return type(value), tuple(map(self.of, value))
        if isinstance(value, dict):
            return type(value), tuple((self.of(k), self.of(v)) for k, v in value.items())
        return self._of_object(value)

    def _of_function(self, f: types.FunctionType) -> Hashable:
        # Not f.__module__, which a decorator copies from the function that it wraps.
        module = f.__globals__.get("__name__") or ""
        checked = getattr(f, "__wrapped__", None) if _root(module) in _CHECKERS else None
        if checked is not None:
            return self.of(checked)
        try:
            cells = [cell.cell_contents for cell in f.__closure__ or ()]
        except ValueError:  # a variable without a value as yet
            raise UnknownStateError from None
        read: list[Any] = [cells, f.__defaults__, f.__kwdefaults__, vars(f)]
        if not _in_library(module):
            names, imports = _names(f.__code__)
            if not all(map(_in_library, imports)):
                raise UnknownStateError
            read.append({name: f.__globals__[name] for name in names if name in f.__globals__})
        return f.__code__, self.of(read)

    def _of_object(self, value: Any) -> Hashable:
        kind = type(value)
        if isinstance(value, jax.custom_jvp | jax.custom_vjp):
            return kind, self.of(vars(value))
        if isinstance(value, _COMPILED):
            return Identity(value), self.of(getattr(value, "__wrapped__", None))
        if kind.__hash__ in (None, object.__hash__) or kind.__eq__ is object.__eq__:
            raise UnknownStateError
        try:
            hash(value)
        except TypeError:
            raise UnknownStateError from None
        return kind, value

    def _of_library(self, value: types.ModuleType | type) -> Hashable:
        name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        if not _in_library(name):
            raise UnknownStateError
        return Identity(value)


_VALUES = (bool, int, str, bytes, type(Ellipsis), np.dtype, range)
_CHECKERS = ("beartype", "jaxtyping")  # whose wrappers check types and change nothing
_COMPILED = type(jax.jit(lambda: None))


def _is_held_by_library(value: Any) -> bool:
    """Whether a module of a library has the object under its name: no closure of the caller's."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not _in_library(module):
        return False
    return getattr(sys.modules.get(module), name, None) is value


def _root(module: str) -> str:
    return module.split(".")[0]


def _in_library(module: str) -> bool:
    return _root(module) in LIBRARIES


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The globals that code and the functions within it read, and the modules they import."""
    names, imports = set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            imports.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, further = _names(constant)
            names.update(inner)
            imports.update(further)
    return tuple(sorted(names)), tuple(sorted(imports))

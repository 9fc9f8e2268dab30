"""Functions compared by what they compute, so that a compiled program is never out of date.

`jax.jit` keeps a compiled program for a function object. A method whose object has changed since,
or a closure over a variable that has a new value, is the same object and would run the old program.
A `Snapshot` is the function together with a fingerprint. That is everything the function reads,
where all of it is values (`function_state`: closures over numbers, arrays and functions, layers of
jaxnn, modules that are hashed by their fields, as those of flax.linen). Otherwise, as for a method
of an object with state, the function is traced in every call, and the fingerprint is the trace: its
equations, and a digest of every array that it captures. Snapshots with equal fingerprints are equal
and share compiled programs, also if the functions are different objects.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxnn.errors import is_traced
from jaxnn.jaxprs.digests import digest
from jaxnn.jaxprs.function_state import (
    Identity,
    TracedStateError,
    UnknownStateError,
    function_state,
)
from jaxnn.jaxprs.nesting import equations
from jaxnn.types import PyTree


class Snapshot:
    """A function that is hashed and compared by what it computed when `snapshot` saw it.

    Calls go to `function` as it is now. A function whose trace captures values of an outer trace
    (inside `jit` or `grad`) is equal to no other.
    """

    def __init__(self, function: Callable, fingerprint: tuple[Hashable, ...]):
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.fingerprint = fingerprint
        self._hash = hash(fingerprint)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """The function's value."""
        return self.function(*args, **keywords)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Snapshot) or self._hash != other._hash:
            return False
        return self.fingerprint == other.fingerprint

    def __repr__(self) -> str:
        return f"Snapshot({getattr(self.function, '__name__', self.function)})"


def snapshot(f: Callable, *args: Any, order: int = 1, **keywords: Any) -> Snapshot:
    """f as a static argument of `jit`: equal to another snapshot if both compute the same.

    Where the function must be traced, that is at `args` and `keywords`, arrays or
    `jax.ShapeDtypeStruct`s; nothing is evaluated. If the trace contains custom derivatives
    (`jax.custom_jvp`, `jax.custom_vjp`), which it does not show, the derivative of that `order`
    with respect to the first argument is traced as well: 0 for a function that is only evaluated,
    2 for one that is differentiated twice. A snapshot given as f then stands for the function at
    these arguments too.

    >>> class Net:
    ...     scale = 2.0
    ...     def apply(self, w, x):
    ...         return self.scale * w * x
    >>> net, w, x = Net(), jnp.ones(2), jnp.ones(2)
    >>> before = snapshot(net.apply, w, x)
    >>> before == snapshot(net.apply, w, x)
    True
    >>> net.scale = 3.0
    >>> before == snapshot(net.apply, w, x)
    False
    """
    before: tuple = ()
    if isinstance(f, Snapshot):
        f, before = f.function, f.fingerprint
    try:
        return Snapshot(f, (function_state(f),))
    except TracedStateError:
        return Snapshot(f, (Identity(object()),))
    except UnknownStateError:
        pass  # to be traced
    closed = jax.make_jaxpr(fresh(f))(*args, **keywords)
    traces: list[ClosedJaxpr | None] = [closed]
    if order and args and _has_custom_rules(closed.jaxpr):
        traces.append(_derivative(lambda *a: f(*a, **keywords), order, args))
    parts = [Identity(object()) if t is None or is_traced(t.consts) else _closed(t) for t in traces]
    return Snapshot(f, (*before, *parts))


def fresh(f: Callable) -> Callable:
    """f as a function that JAX traces again, unless it is a snapshot.

    JAX keeps the traces of function objects as well: `jax.eval_shape` and `jax.make_jaxpr` of a
    method whose object has changed answer for the object as it was.

    >>> fresh(jnp.sin) is jnp.sin, fresh(jnp.sin)(0.0)
    (False, Array(0., dtype=float32, weak_type=True))
    """
    return f if isinstance(f, Snapshot) else lambda *args, **keywords: f(*args, **keywords)


def _derivative(f: Callable, order: int, args: tuple) -> ClosedJaxpr | None:
    """The trace of f's derivative by its first argument, which shows its rules; None without one.

    It is a pull back, or a push forward where that fails (a loop of unknown length has no other).
    """
    for derivative in (_pulled, _pushed):
        slope = f
        for _ in range(order):
            slope = partial(derivative, slope)
        try:
            return jax.make_jaxpr(slope)(*args)
        except (TypeError, ValueError, NotImplementedError):
            continue
    return None


def _pulled(f: Callable, params: PyTree, *args: Any) -> PyTree:
    y, pull_back = jax.vjp(lambda params: f(params, *args), params)
    return pull_back(jax.tree.map(_ones, y))


def _pushed(f: Callable, params: PyTree, *args: Any) -> PyTree:
    return jax.jvp(lambda params: f(params, *args), (params,), (jax.tree.map(_ones, params),))[1]


def _ones(x: Any) -> Any:
    if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        return jnp.ones_like(x)
    return np.zeros(jnp.shape(x), jax.dtypes.float0)


_CUSTOM = ("custom_jvp_call", "custom_vjp_call")


def _has_custom_rules(jaxpr: Jaxpr) -> bool:
    return any(eqn.primitive.name in _CUSTOM for eqn in equations(jaxpr.eqns))


def _closed(closed: ClosedJaxpr) -> Hashable:
    return _open(closed.jaxpr), tuple(map(_entries, closed.consts))


def _open(jaxpr: Jaxpr) -> Hashable:
    """Everything that a jaxpr says, with its variables numbered in the order of appearance."""
    numbers: dict[Any, int] = {}

    def defined(variables: Sequence[Any]) -> Hashable:
        return tuple((numbers.setdefault(v, len(numbers)), v.aval) for v in variables)

    def read(atoms: Sequence[Any]) -> Hashable:
        return tuple(
            (atom.aval, _entries(atom.val)) if isinstance(atom, Literal) else numbers[atom]
            for atom in atoms
        )

    inputs = defined(jaxpr.constvars), defined(jaxpr.invars)
    steps = tuple(
        (eqn.primitive, read(eqn.invars), _params(eqn), defined(eqn.outvars)) for eqn in jaxpr.eqns
    )
    return inputs, steps, read(jaxpr.outvars)


def _params(eqn: JaxprEqn) -> Hashable:
    # The functions of a custom rule are new objects in each trace; `_derivative` shows the rule.
    rules = eqn.primitive.name in _CUSTOM
    return tuple(
        (name, _value(value))
        for name, value in sorted(eqn.params.items())
        if not rules or isinstance(value, (ClosedJaxpr, Jaxpr, str, bool))
    )


def _value(value: Any) -> Hashable:
    match value:
        case ClosedJaxpr():
            return _closed(value)
        case Jaxpr():
            return _open(value)
        case tuple() | list():
            return type(value), tuple(map(_value, value))
        case dict():
            return tuple((key, _value(item)) for key, item in value.items())
        case np.ndarray() | jax.Array():
            return _entries(value)
        case float():
            return value.hex()  # NaN is equal to itself here, and 0.0 differs from -0.0
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    return type(value), value


def _entries(array: Any) -> Hashable:
    try:
        return digest(array)
    except ValueError:
        return Identity(array)

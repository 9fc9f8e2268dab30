"""Pytrees as a vector space: what optimizers, Krylov methods and kernels need of one.

A pytree of arrays is a vector whose coordinates are the entries of all its leaves. The functions
keep the structure and dtype of every leaf; leaves may be scalars, and trees may be empty. A
fraction in an integer leaf, or an imaginary part in a real one, would be lost and raises. Sums over
coordinates follow the rules of `jaxnn.precision`.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import precision
from jaxnn.errors import invalid
from jaxnn.types import Array, ArrayLike, Key, PyTree


def add(x: PyTree, y: PyTree) -> PyTree:
    """x + y, in the dtypes of `x`.

    >>> add({"a": jnp.ones(2)}, {"a": jnp.ones(2)})
    {'a': Array([2., 2.], dtype=float32)}
    """
    return jax.tree.map(lambda a, b: a + _cast(b, a), x, y)


def sub(x: PyTree, y: PyTree) -> PyTree:
    """x - y, in the dtypes of `x`.

    >>> sub({"a": jnp.ones(2)}, {"a": jnp.ones(2)})
    {'a': Array([0., 0.], dtype=float32)}
    """
    return jax.tree.map(lambda a, b: a - _cast(b, a), x, y)


def scale(a: ArrayLike, x: PyTree) -> PyTree:
    """a·x for a scalar a.

    >>> scale(2.0, (jnp.ones(2),))
    (Array([2., 2.], dtype=float32),)
    """
    return jax.tree.map(lambda leaf: _cast(a, leaf) * leaf, x)


def axpy(a: ArrayLike, x: PyTree, y: PyTree) -> PyTree:
    """a·x + y, in the dtypes of `y`.

    >>> axpy(2.0, (jnp.ones(2),), (jnp.ones(2),))
    (Array([3., 3.], dtype=float32),)
    """
    return add(y, scale(a, x))


def dot(x: PyTree, y: PyTree) -> Array:
    """⟨x, y⟩ = Σ conj(xᵢ) yᵢ over all coordinates of all leaves.

    >>> dot({"a": jnp.ones(3), "b": 2.0}, {"a": jnp.ones(3), "b": 0.5})
    Array(4., dtype=float32)
    """
    leaves, structure = jax.tree.flatten(x)
    return precision.accumulated(_dot, leaves, structure.flatten_up_to(y))


def norm(x: PyTree) -> Array:
    """‖x‖₂ = √⟨x, x⟩, also where the squares of the entries would overflow or vanish.

    >>> norm((jnp.array([3e-30]), jnp.array(4e-30)))
    Array(5.e-30, dtype=float32)
    """
    return precision.accumulated(_norm, jax.tree.leaves(x))


def largest_entry(x: PyTree) -> Array:
    """max_i |xᵢ| over all coordinates of all leaves, a real number; 0 where there are none.

    >>> largest_entry({"a": jnp.array([1.0, -3.0]), "b": 2.0})
    Array(3., dtype=float32)
    """
    # Floating point first: the absolute value of the smallest integer is not an integer.
    sizes = [jnp.max(jnp.abs(precision.inexact(a)), initial=0) for a in jax.tree.leaves(x)]
    return reduce(jnp.maximum, precision.common(*sizes)) if sizes else jnp.zeros(())


def size(x: PyTree) -> int:
    """The dimension: how many coordinates all leaves have together.

    >>> size({"W": jnp.ones((10, 64)), "b": jnp.ones(64)})
    704
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(x))


def where(condition: ArrayLike, x: PyTree, y: PyTree) -> PyTree:
    """x where the condition, a scalar, holds, else y.

    >>> where(jnp.array(False), {"a": 1.0}, {"a": 2.0})
    {'a': Array(2., dtype=float32, weak_type=True)}
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def cast(x: PyTree, y: PyTree) -> PyTree:
    """x in the dtypes of `y`; raises where a fraction or an imaginary part would be lost.

    >>> cast({"a": jnp.ones(2)}, {"a": jnp.ones(2, jnp.bfloat16)})["a"].dtype
    dtype(bfloat16)
    """
    return jax.tree.map(_cast, x, y)


def all_finite(x: PyTree) -> Array:
    """Whether no coordinate is NaN or infinite.

    >>> bool(all_finite((jnp.ones(2), jnp.inf)))
    False
    """
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(x)], bool))


def random_like(key: Key, x: PyTree, sampler: Callable[..., Array] = jax.random.normal) -> PyTree:
    """A random tree of the shapes and dtypes of `x`; every leaf has its own key.

    `sampler` is called as `sampler(key, shape, dtype)`: `jax.random.normal`,
    `jax.random.rademacher`, ...

    >>> random_like(jax.random.key(0), {"a": jnp.ones(2)}, jax.random.rademacher)["a"].dtype
    dtype('float32')
    """
    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves)) if leaves else []
    draws = [
        sampler(k, jnp.shape(leaf), jnp.result_type(leaf))
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def strong(x: PyTree) -> PyTree:
    """Arrays with dtypes of their own: a weak one would change in a loop, and compile twice.

    Errors: integers of NumPy that JAX cannot hold, as those beyond 2³¹ without `jax_enable_x64`.

    >>> strong({"rate": 0.5})["rate"].weak_type
    False
    """

    def stored(path: tuple, leaf: ArrayLike) -> Array:
        dtype = jnp.result_type(leaf)
        if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != dtype:
            _require_held(jax.tree_util.keystr(path), np.asarray(leaf), dtype)
        return jnp.asarray(leaf, dtype)

    return jax.tree_util.tree_map_with_path(stored, x)


def _require_held(where: str, entries: np.ndarray, dtype: jnp.dtype) -> None:
    if not jnp.issubdtype(dtype, jnp.integer) or entries.size == 0:
        return
    info = jnp.iinfo(dtype)
    for entry in (entries.min(), entries.max()):
        if not info.min <= entry <= info.max:
            raise invalid(
                f"an array{where}",
                got=f"{entry} in {entries.dtype}",
                expected=f"integers from {info.min} to {info.max}, which {dtype} holds",
                remedy="Set jax_enable_x64, or number what is counted from 0.",
            )


def require_differentiable(argument: str, x: Any) -> None:
    """Raise unless every leaf is an array of real floating-point numbers.

    >>> require_differentiable("params", {"W": jnp.ones(2), "count": 3})
    Traceback (most recent call last):
    ValueError: params['count']: got dtype int32, expected real floating point. ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        where = argument + jax.tree_util.keystr(path)
        try:
            dtype = jnp.result_type(leaf)
        except TypeError:
            raise invalid(
                where,
                got=f"a leaf of type {type(leaf).__name__}",
                expected="an array of real floating point",
                remedy="Close over what is not a parameter, or move it to another argument.",
            ) from None
        if not jnp.issubdtype(dtype, jnp.floating):
            raise invalid(
                where,
                got=f"dtype {dtype}",
                expected="real floating point",
                remedy="Derivatives need real numbers: close over integers and keys, convert the "
                "leaf with astype(float), or hold a complex leaf as its real and imaginary parts.",
            )


def _cast(value: ArrayLike, leaf: ArrayLike) -> Array:
    """`value` in the dtype of `leaf`; raises where that would drop more than precision."""
    dtype, leaf_dtype = jnp.result_type(value), jnp.result_type(leaf)
    for kind in (jnp.inexact, jnp.complexfloating):
        if jnp.issubdtype(dtype, kind) and not jnp.issubdtype(leaf_dtype, kind):
            raise invalid(
                "a vector",
                got=f"a leaf of dtype {leaf_dtype} to be combined with {dtype}",
                expected=f"a leaf that can hold {dtype}",
                remedy="Convert the leaf with astype first.",
            )
    return jnp.asarray(value, leaf_dtype)


def _dot(x: list[Array], y: list[Array]) -> Array:
    # Not jnp.vdot: on a CPU it adds in the order of the entries (a million float32 squares lose
    # four digits), on accelerators it rounds the factors. A sum is a tree of partial sums.
    products = [jnp.sum(jnp.conj(a) * b) for a, b in zip(x, y, strict=True)]
    return reduce(jnp.add, products) if products else jnp.zeros(())


def _norm(leaves: list[Array]) -> Array:
    largest = largest_entry(leaves)
    # A unit for the entries, and no function of them to be differentiated.
    ordinary = (largest > 0) & jnp.isfinite(largest)
    # Its reciprocal, by which XLA multiplies, is not to vanish.
    unit = jnp.minimum(largest, float(jnp.finfo(largest.dtype).max) / 8)
    unit = jax.lax.stop_gradient(jnp.where(ordinary, unit, 1))
    parts = [leaf / unit.astype(leaf.dtype) for leaf in leaves]
    return unit * jnp.sqrt(jnp.real(_dot(parts, parts)))

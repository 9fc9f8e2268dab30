"""Trees of one space as flat vectors: the coordinates that Krylov bases are stored in."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxnn.types import Array, PyTree


class Coordinates(NamedTuple):
    """How the members of a space become vectors (size,) of one dtype, and back."""

    size: int
    dtype: jnp.dtype
    ravel: Callable[[PyTree], Float[Array, "n"]]
    unravel: Callable[[Float[Array, "n"]], PyTree]


def coordinates(space: PyTree) -> Coordinates:
    """The coordinates of trees like `space`, leaf after leaf, each in C order.

    Their dtype holds all leaves, and is at least float32: Krylov methods need that many digits.

    >>> flat = coordinates({"a": jnp.zeros(2), "b": jnp.zeros((1, 2))})
    >>> flat.size, flat.unravel(jnp.arange(4.0))["b"]
    (4, Array([[2., 3.]], dtype=float32))
    """
    leaves, structure = jax.tree.flatten(space)
    # From shapes alone: no array of zeros that `jax.flatten_util` would need.
    shapes = [jnp.shape(leaf) for leaf in leaves]
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *dtypes)
    bounds = np.cumsum([0, *sizes])

    def ravel(x: PyTree) -> Array:
        parts = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(x)]
        return jnp.concatenate(parts) if parts else jnp.zeros(0, dtype)

    def unravel(v: Array) -> PyTree:
        parts = [
            v[start : start + size].reshape(shape).astype(dtype)
            for start, size, shape, dtype in zip(bounds[:-1], sizes, shapes, dtypes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return Coordinates(int(bounds[-1]), dtype, ravel, unravel)


def dot(a: Array, b: Array) -> Array:
    """a @ b with all the digits of its factors, on accelerators too.

    >>> dot(jnp.array([[1.0, 2.0]]), jnp.ones(2))
    Array([3.], dtype=float32)
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)

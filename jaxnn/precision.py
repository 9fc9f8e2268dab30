"""The dtypes of arithmetic: one rule for integer data, one for numbers of half precision.

Integers.  Where integers, booleans and bytes are data (pixels, targets of a regression, binary
units, coordinates) they are promoted to floating point before anything is computed with them:
to the dtype of the floating-point numbers that they meet, or to the default float where there are
none (`inexact`, `common`). Where they are labels, ids, lengths or counts they stay integers. No
floating-point companion of data (a target, an angle, a fill, ln Z) is ever cast to an integer
dtype.

Half precision.  Sums, means, ranks, coordinates, positions and second moments of float16 and
bfloat16 (and of anything narrower) are accumulated in float32, and cast at the end (`wide`,
`accumulated`): 1 + 1 + ... stops at 256 in bfloat16, and the squares of numbers above 255 are
infinite in float16.

Both rules hold in every mode of promotion: nothing here depends on
`jax_numpy_dtype_promotion`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.types import Array, ArrayLike, PyTree


def inexact_dtype(*arrays: ArrayLike) -> jnp.dtype:
    """The dtype in which arrays meet: the widest of those with fractions, or the default float.

    Integers and booleans do not take part in the choice, and Python numbers yield to arrays.

    >>> inexact_dtype(jnp.ones(2, jnp.bfloat16), jnp.arange(2))
    dtype(bfloat16)
    >>> inexact_dtype(jnp.ones(2, jnp.uint8))
    dtype('float32')
    """
    values: list[Any] = [a if hasattr(a, "dtype") else jnp.asarray(a) for a in arrays]
    inexact = [a for a in values if _has_fractions(a.dtype)]
    dtypes = {a.dtype for a in inexact}
    if len(dtypes) == 1 and all(isinstance(a, jax.Array) for a in inexact):
        return dtypes.pop()  # the usual case, without a look at the rules of promotion
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(jnp.result_type(*inexact) if inexact else jnp.result_type(float))


def inexact(x: ArrayLike, *companions: ArrayLike) -> Array:
    """x as an array of numbers with fractions, the form of data in all computations.

    Floating-point and complex numbers keep their dtype. Integers and booleans take that of the
    companions (parameters, a kernel, predictions), or the default float: `inexact(x)`.

    >>> inexact(jnp.array([0, 255], jnp.uint8))
    Array([  0., 255.], dtype=float32)
    >>> inexact(jnp.array([True]), jnp.ones((), jnp.float16)).dtype
    dtype('float16')
    """
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    return x.astype(inexact_dtype(*companions)) if _is_whole(x.dtype) else x


def common(*arrays: ArrayLike) -> tuple[Array, ...]:
    """Arrays of data in one dtype, `inexact_dtype(*arrays)`: predictions and targets, say.

    >>> common(jnp.array([1, 2]), jnp.array([1.5, 2.5]))
    (Array([1., 2.], dtype=float32), Array([1.5, 2.5], dtype=float32))
    """
    values = [jnp.asarray(a) for a in arrays]
    dtype = inexact_dtype(*values)
    return tuple(_as(a, dtype) for a in values)


def wide_dtype(*arrays: ArrayLike) -> jnp.dtype:
    """The dtype in which arrays are accumulated: `inexact_dtype`, but at least float32.

    >>> wide_dtype(jnp.ones(2, jnp.bfloat16)), wide_dtype(jnp.ones(2, jnp.complex64))
    (dtype('float32'), dtype('complex64'))
    """
    return _accumulation(inexact_dtype(*arrays))


def wide(x: ArrayLike, *companions: ArrayLike) -> Array:
    """x in the dtype of accumulation: cast what comes of it to `inexact_dtype(x)` at the end.

    >>> jnp.sum(wide(jnp.ones(1000, jnp.bfloat16)))
    Array(1000., dtype=float32)
    """
    x = jnp.asarray(x)
    return _as(x, wide_dtype(x, *companions))


def accumulated(f: Callable[..., Any], *trees: PyTree, **options: Any) -> Any:
    """f(*trees, **options) computed in `wide_dtype` of all leaves, cast to their `inexact_dtype`.

    Arrays, or trees of them, enter in one dtype; options enter as they are. Integers and booleans
    among the results (indices, counts) stay.

    >>> accumulated(jnp.mean, jnp.full(2000, 100.0, jnp.float16), axis=0)
    Array(100., dtype=float16)
    >>> accumulated(jnp.mean, jnp.full(4, 200, jnp.uint8))
    Array(200., dtype=float32)
    """
    values = jax.tree.leaves(trees)
    dtype = inexact_dtype(*values)
    accumulation = _accumulation(dtype)
    results = f(*jax.tree.map(lambda a: _as(a, accumulation), trees), **options)
    return jax.tree.map(lambda y: _back(y, dtype), results)


def _as(x: ArrayLike, dtype: jnp.dtype) -> Array:
    return x if isinstance(x, jax.Array) and x.dtype == dtype else jnp.asarray(x).astype(dtype)


def _back(y: ArrayLike, dtype: jnp.dtype) -> ArrayLike:
    """y in `dtype`, or in its real counterpart where y is real; integers and booleans stay."""
    own = jnp.result_type(y)
    if own == dtype or not _has_fractions(own):
        return y
    real = jnp.issubdtype(own, jnp.floating) and jnp.issubdtype(dtype, jnp.complexfloating)
    return _as(y, jnp.finfo(dtype).dtype if real else dtype)


# Asked of every array in every layer, and slow to ask of JAX.
@cache
def _has_fractions(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


@cache
def _is_whole(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


@cache
def _accumulation(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype

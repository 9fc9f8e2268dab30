"""Kernels as real symmetric matrices: their dtype, form, ridge and relative norms."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Shaped

from jaxnn.errors import concrete, invalid, is_traced
from jaxnn.precision import inexact_dtype, wide_dtype
from jaxnn.types import Array, ArrayLike


def real_arrays(caller: str, **arrays: ArrayLike | None) -> tuple[tuple[Any, ...], jnp.dtype]:
    """The arrays in one dtype of at least float32, and the dtype that results are cast to.

    Integers and booleans become floating-point numbers; None stays None.

    Errors: complex arrays.

    >>> (kernel, y), dtype = real_arrays("solve", kernel=jnp.eye(1, dtype="bfloat16"), y=1)
    >>> kernel.dtype, y, dtype
    (dtype('float32'), Array(1., dtype=float32), dtype(bfloat16))
    """
    given = {name: jnp.asarray(a) for name, a in arrays.items() if a is not None}
    for name, a in given.items():
        if jnp.iscomplexobj(a):
            raise invalid(
                f"{caller}({name})",
                got=f"dtype {a.dtype}",
                expected="real numbers",
                remedy="Pass real and imaginary parts as two outputs.",
            )
    wide = wide_dtype(*given.values())
    values = (given[name].astype(wide) if name in given else None for name in arrays)
    return tuple(values), inexact_dtype(*given.values())


def square(caller: str, kernel: Float[Array, "N N ..."]) -> Float[Array, "n n"]:
    """A kernel of a batch with itself as a symmetric matrix; rounding may have made it less so.

    >>> square("solve", jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    Array([[1., 1.],
           [1., 1.]], dtype=float32)
    """
    if kernel.ndim not in (2, 4) or kernel.shape[0] != kernel.shape[1]:
        raise invalid(
            f"{caller}(kernel)",
            got=f"shape {kernel.shape}",
            expected="(N, N) or (N, N, O, O)",
            remedy="It is the kernel of a batch with itself, kernels.ntk(f, params, x).",
        )
    matrix = as_matrix(kernel)
    return 0.5 * (matrix + matrix.T)


def regularized(
    caller: str, matrix: Float[Array, "n n"], noise: ArrayLike, diag_reg: ArrayLike
) -> Float[Array, "n n"]:
    """K + (noise + diag_reg · mean of the diagonal of K)·I; `noise` may be one number per row.

    Errors: negative or infinite numbers, other shapes. Where they are traced the matrix is NaN.

    >>> regularized("solve", jnp.diag(jnp.array([1.0, 3.0])), 0.5, 0.1)
    Array([[1.7, 0. ],
           [0. , 3.7]], dtype=float32)
    """
    n = len(matrix)
    total = jnp.zeros(n, matrix.dtype)
    unit = jnp.mean(jnp.diagonal(matrix)) if n else jnp.ones((), matrix.dtype)
    for name, value, shapes, scale in (
        ("noise", noise, ((), (n,)), jnp.ones_like(unit)),
        ("diag_reg", diag_reg, ((),), unit),
    ):
        if not is_traced(value) and not _within(value):
            raise invalid(
                f"{caller}({name})",
                got=concrete(value) if concrete(value) is not None else "negative numbers or NaN",
                expected="a number in [0, inf)",
                remedy="It is added to the diagonal of the kernel, as a variance.",
            )
        if jnp.shape(value) not in shapes:
            raise invalid(
                f"{caller}({name})",
                got=f"shape {jnp.shape(value)}",
                expected=" or ".join(map(str, shapes)),
                remedy="Use jax.vmap for several values.",
            )
        added = jnp.asarray(value, matrix.dtype)
        total = total + jnp.where(added >= 0, added, jnp.nan) * scale
    return matrix + jnp.diag(total)


def share(part: Float[Array, "..."], whole: Float[Array, "..."]) -> Float[Array, ""]:
    """‖part‖/‖whole‖ for norms of any size; 0/0 is 0, with derivatives of 0.

    >>> share(jnp.array([3e30]), jnp.array([0.0, 6e30])).round(3), share(jnp.zeros(2), jnp.zeros(2))
    (Array(0.5, dtype=float32), Array(0., dtype=float32))
    """
    (top, unit), (bottom, other) = map(_norm_in_units, (part, whole))
    empty = (bottom == 0) & (top == 0)
    return jnp.where(empty, 0.0, top / jnp.where(empty, 1.0, bottom) * (unit / other))


def _norm_in_units(a: Array) -> tuple[Array, Array]:
    """The norm in units of the largest entry, and that unit: no square over- or underflows."""
    unit = lax.stop_gradient(jnp.max(jnp.abs(a), initial=0.0))
    unit = jnp.where(unit > 0, unit, 1.0)
    total = jnp.sum((a / unit) ** 2)
    return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1.0)), total), unit


def _within(value: ArrayLike) -> bool:
    numbers = np.asarray(value, np.float64)
    return bool(np.all((numbers >= 0) & (numbers < np.inf)))


def as_columns(a: Shaped[Array, "N ..."]) -> Shaped[Array, "N C"]:
    """Targets (N, ...) as (N, C), also without examples or outputs.

    >>> as_columns(jnp.ones((4, 3, 2))).shape, as_columns(jnp.ones(0)).shape
    ((4, 6), (0, 1))
    """
    return a.reshape(a.shape[0], math.prod(a.shape[1:]))


def as_matrix(kernel: Shaped[Array, "N M ..."]) -> Shaped[Array, "n m"]:
    """A kernel (N, M) itself, or one (N, M, O, O) as (N·O, M·O), outputs of an example together.

    Errors: other ranks.

    >>> as_matrix(jnp.ones((4, 3, 2, 2))).shape
    (8, 6)
    """
    if kernel.ndim == 2:
        return kernel
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise invalid(
            "kernel",
            got=f"shape {kernel.shape}",
            expected="(N, M) or (N, M, O, O)",
            remedy="Use kernels.ntk with outputs='mean' or 'full', or kernels.infinite.",
        )
    n, m, o, _ = kernel.shape
    return jnp.transpose(kernel, (0, 2, 1, 3)).reshape(n * o, m * o)

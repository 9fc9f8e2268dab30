"""Ensembles of infinitely wide networks: mean and covariance of trained ones, in closed form."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid
from jaxnn.kernels.flow import checked_time
from jaxnn.kernels.matrices import as_columns, real_arrays, regularized, square
from jaxnn.kernels.modes import Modes, decomposed
from jaxnn.kernels.regression import positive_diagonal
from jaxnn.kernels.spectral import FLOW, applied
from jaxnn.linalg.vectors import dot
from jaxnn.types import Array, ArrayLike, PyTree

KernelFunction = Callable[..., Any]
"""(x1, x2=None) ↦ kernels with the fields nngp and ntk: `partial(kernels.infinite, net)`."""


class Ensemble(NamedTuple):
    """Moments over random initializations.

    mean        (M, ...) as the targets
    covariance  (M, M), or the variances (M,), or None; shared by all outputs
    """

    mean: Float[Array, "M ..."]
    covariance: Float[Array, "M ..."] | None


def ntk_ensemble(
    nngp: Shaped[Array, "N N"],
    ntk: Shaped[Array, "N N"],
    y: Shaped[Array, "N ..."],
    t: ArrayLike,
    *,
    cross_nngp: Shaped[Array, "M N"],
    cross_ntk: Shaped[Array, "M N"],
    own_nngp: Shaped[Array, "M ..."] | None,
    noise: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
) -> Ensemble:
    """Mean and covariance, over initializations, of infinitely wide networks trained for a time t.

        mean = A y,   covariance = K_** + A K Aᵀ - A K_*ᵀ - K_* Aᵀ,   A = Θ_* Θ⁻¹(1 - e^{-Θt})

    K and Θ are the NNGP and tangent kernels; t may be ∞. `own_nngp` is K_**: (M, M), its diagonal
    (M,) for variances alone, or None for means alone. `noise` and `diag_reg` are the ridge of
    `gradient_flow`. Variances that rounding makes negative are 0. `ensemble_predictor` keeps the
    eigenmodes for many test inputs and times.

    Errors: shapes that do not fit, a negative time or noise, complex numbers.

    Source: Lee et al. (2019), equations 14 and 15.

    >>> k = jnp.eye(2)
    >>> mean, covariance = ntk_ensemble(k, k, jnp.ones(2), jnp.inf,
    ...                                 cross_nngp=k, cross_ntk=k, own_nngp=k)
    >>> mean, bool(jnp.all(abs(covariance) < 1e-6))
    (Array([1., 1.], dtype=float32), True)
    """
    time = checked_time("ntk_ensemble", t)
    trained = _prepared("ntk_ensemble", nngp, ntk, y, noise, diag_reg)
    return _moments("ntk_ensemble", trained, time, cross_nngp, cross_ntk, own_nngp)


def ensemble_predictor(
    kernel_fn: KernelFunction,
    x: PyTree,
    y: Shaped[Array, "N ..."],
    *,
    kernel: Literal["ntk", "nngp"] = "ntk",
    noise: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
) -> Callable[..., Ensemble]:
    """The function predict(t, x_test) for ensembles trained on x, y, whose eigenmodes it keeps.

    predict(t, x_test=None, *, covariance="full") gives the `Ensemble` of networks trained by
    gradient flow for the time t, ∞ included, at x_test, or at the training inputs by default.
    `covariance` is "full", "diagonal" (variances, from the kernel of one input at a time) or None.
    It may be used inside jit, vmap over t, and grad.

    `kernel_fn`(x1, x2=None) returns the kernels between two batches, with fields nngp and ntk:
    `partial(kernels.infinite, net)`. All weights are trained with kernel="ntk", the last layer
    alone with "nngp". `noise` and `diag_reg` are the ridge of `gradient_flow`. The time is that of
    the summed squared error: at learning rate η on the mean of it over N·C numbers, k steps are
    the time k·η/(N·C).

    Errors: shapes that do not fit, a negative time or noise, complex numbers.

    Source: Lee et al. (2019), equations 14 and 15; Novak et al. (2020), section 2.

    >>> from functools import partial
    >>> from jaxnn import kernels, nn
    >>> net = nn.serial(nn.dense(512), nn.relu(), nn.dense(1))
    >>> predict = ensemble_predictor(partial(kernels.infinite, net), jnp.eye(2), jnp.ones(2))
    >>> predict(jnp.inf).mean.round(4)
    Array([1., 1.], dtype=float32)
    """
    if kernel not in ("ntk", "nngp"):
        raise invalid(
            "ensemble_predictor(kernel)",
            got=repr(kernel),
            expected="'ntk' or 'nngp'",
            remedy="'ntk' trains all weights, 'nngp' the last layer.",
        )
    own = kernel_fn(x)
    trained = _prepared("ensemble_predictor", own.nngp, getattr(own, kernel), y, noise, diag_reg)

    def predict(
        t: ArrayLike,
        x_test: PyTree | None = None,
        *,
        covariance: Literal["full", "diagonal"] | None = "full",
    ) -> Ensemble:
        if covariance not in ("full", "diagonal", None):
            expected, remedy = "'full', 'diagonal' or None", "'diagonal' gives variances."
            raise invalid(
                "predict(covariance)", got=repr(covariance), expected=expected, remedy=remedy
            )
        time = checked_time("predict", t)
        at = x if x_test is None else x_test
        cross = own if x_test is None else kernel_fn(x_test, x)
        if covariance == "full":
            prior = own.nngp if x_test is None else kernel_fn(x_test).nngp
        elif covariance == "diagonal":
            one = lambda z: kernel_fn(jax.tree.map(lambda leaf: leaf[None], z)).nngp[0, 0]
            prior = lax.map(one, at)
        else:
            prior = None
        return _moments("predict", trained, time, cross.nngp, getattr(cross, kernel), prior)

    return predict


class _Prepared(NamedTuple):
    nngp: Array
    matrix: Array  # Θ with its ridge
    modes: Modes
    y: Array
    dtype: Any


def _prepared(
    caller: str, nngp: Array, ntk: Array, y: Array, noise: ArrayLike, diag_reg: ArrayLike
) -> _Prepared:
    (nngp, ntk, y), dtype = real_arrays(caller, nngp=nngp, ntk=ntk, y=y)
    n = len(ntk)
    if not nngp.shape == ntk.shape == (n, n) or y.shape[:1] != (n,):
        raise invalid(
            f"{caller}(nngp, ntk, y)",
            got=f"shapes {nngp.shape}, {ntk.shape} and {y.shape}",
            expected="(N, N), (N, N) and (N, ...)",
            remedy="Outputs are independent in the limit: their kernel is one (N, N).",
        )
    matrix = regularized(caller, square(caller, ntk), noise, diag_reg)
    return _Prepared(nngp, matrix, decomposed(matrix), y, dtype)


def _moments(
    caller: str,
    trained: _Prepared,
    time: Array,
    cross_nngp: Array,
    cross_ntk: Array,
    own: Array | None,
) -> Ensemble:
    nngp, matrix, modes, y, dtype = trained
    n, m = len(matrix), len(cross_ntk)
    own_shape = (m,) if own is None else own.shape
    if not cross_nngp.shape == cross_ntk.shape == (m, n) or own_shape not in ((m,), (m, m)):
        raise invalid(
            f"{caller}(cross_nngp, cross_ntk, own_nngp)",
            got=f"shapes {cross_nngp.shape}, {cross_ntk.shape} and {own_shape}",
            expected=f"(M, {n}), (M, {n}), and (M, M) or (M,)",
            remedy="Rows are test inputs, columns training inputs.",
        )
    cross_nngp, cross_ntk = (a.astype(matrix.dtype) for a in (cross_nngp, cross_ntk))
    sides = as_columns(y) if own is None else cross_ntk.T
    found = applied(FLOW, matrix, modes, time.astype(matrix.dtype), sides)[0]
    if own is None:
        return Ensemble(dot(cross_ntk, found).reshape(m, *y.shape[1:]).astype(dtype), None)
    mean = dot(found.T, as_columns(y)).reshape(m, *y.shape[1:]).astype(dtype)
    prior = own.astype(matrix.dtype)
    if own.ndim == 1:
        change = jnp.sum(found * (dot(nngp, found) - 2.0 * cross_nngp.T), axis=0)
        return Ensemble(mean, jnp.maximum(prior + change, 0.0).astype(dtype))
    mixed = dot(cross_nngp, found)
    covariance = prior + dot(found.T, dot(nngp, found)) - mixed - mixed.T
    return Ensemble(mean, positive_diagonal(covariance).astype(dtype))

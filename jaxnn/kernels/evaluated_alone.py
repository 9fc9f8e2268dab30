"""What tracing cannot tell, told by values: f on a batch beside f on each of its examples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import tree
from jaxnn.kernels.examples import batched, only
from jaxnn.types import Apply, Array, ArrayLike, Params, PyTree


def change_when_alone(f: Apply, params: Params, x: PyTree) -> str | None:
    """What changes when f(params, x) is evaluated for each example alone, in words; "" if nothing.

    None under a trace. Values are compared entry by entry, and the gradients g_i of random
    combinations of the outputs of every example as Σ_i g_i/‖g_i‖: a constant hides a change of the
    values, a large row that of a small one, and the kernel is made of the gradients.

    >>> order, x = jnp.array([1, 0]), jnp.array([[0.1, 0.0], [0.0, 0.1]])
    >>> change_when_alone(lambda w, x: 1e5 + x[order] @ w, jnp.ones((2, 1)), x)
    'gradients that change by a factor of ...'
    """
    together, apart = jax.jit(lambda params, x: (f(params, x), _alone(f, params, x)))(params, x)
    pairs = zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True)
    try:
        change = max((_change(a, b) for a, b in pairs), default=0.0)
        if change > 0:
            return f"outputs that change by {change:.2g}"
        change = float(jax.jit(lambda params, x: _change_of_gradients(f, params, x))(params, x))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return None
    eps = max(float(jnp.finfo(a.dtype).eps) for a in _with_fractions(params) or [jnp.zeros(())])
    return f"gradients that change by a factor of {change:.2g}" if change > eps**0.5 else ""


def _alone(f: Apply, params: Params, x: PyTree) -> list[Array]:
    return jax.lax.map(lambda example: only(f(params, batched(example))), x)


def _change(a: Array, b: Array) -> float:
    """The largest |a - b| over the entries where it is no rounding error. NaN equals NaN.

    What may be rounding: √ε of the largest entry of the example, and 32ε of the largest of all.
    """
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    u, v = np.asarray(a), np.asarray(b)
    if u.shape != v.shape:
        return np.inf
    same = (u == v) | ((u != u) & (v != v))
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return float(not same.all())
    u, v = (w.astype(complex).reshape(len(w), -1) for w in (u, v))
    with np.errstate(invalid="ignore"):
        difference = np.nan_to_num(np.abs(u - v), nan=np.inf)
    difference = np.where(same.reshape(u.shape), 0.0, difference)
    rows = np.max(np.abs(u), axis=1, where=np.isfinite(u), initial=0.0, keepdims=True)
    eps = float(jnp.finfo(a.dtype).eps)
    rounding = eps**0.5 * rows + 32 * eps * np.max(rows, initial=0.0)
    return float(np.max(difference, where=difference > rounding, initial=0.0))


def _with_fractions(x: PyTree) -> list[Any]:
    leaves = jax.tree.leaves(x)
    return [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]


def _change_of_gradients(f: Apply, params: Params, x: PyTree) -> ArrayLike:
    """‖Σ_i g_i/‖g_i‖ - the same from one pass of the batch‖, relative to the first sum if > 1."""
    leaves, structure = jax.tree.flatten(params)
    moving = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    values = [leaf for leaf, moves in zip(leaves, moving, strict=True) if moves]

    def outputs(values: list[Array], x: PyTree) -> list[Array]:
        rest = iter(values)
        filled = [next(rest) if m else leaf for leaf, m in zip(leaves, moving, strict=True)]
        y = jax.tree.leaves(f(jax.tree.unflatten(structure, filled), x))
        return [leaf for leaf in y if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def gradient(x: PyTree, cotangents: list[Array]) -> list[Array]:
        # A function of fixed arrays can return more rows than there are examples.
        rows = lambda values: [
            y[: len(c)] for y, c in zip(outputs(values, x), cotangents, strict=True)
        ]
        return jax.vjp(rows, values)[1](cotangents)[0]

    def add(total: list[Array], one: tuple[PyTree, list[Array]]) -> tuple[list[Array], Array]:
        g = gradient(*(batched(part) for part in one))
        size = tree.norm(g)
        # A gradient that vanishes alone need not do so in the batch; NaN is left out.
        unit = jnp.where(jnp.isfinite(size), 1 / jnp.where(size > 0, size, 1), 0)
        return tree.add(total, jax.tree.map(lambda a: a * unit.astype(a.dtype), g)), unit

    y = jax.eval_shape(outputs, values, x)
    if not values or not y:
        return 0.0
    cotangents = tree.random_like(jax.random.key(1), y)
    zeros = jax.tree.map(jnp.zeros_like, values)
    total, units = jax.lax.scan(add, zeros, (x, cotangents))
    scaled = [c * _column(units, c.ndim).astype(c.dtype) for c in cotangents]
    together = gradient(x, scaled)
    change = tree.norm(tree.sub(together, total)) / jnp.maximum(tree.norm(total), 1)
    return jnp.where(jnp.isnan(change), jnp.inf, change)


def _column(units: Array, ndim: int) -> Array:
    return units.reshape(-1, *[1] * (ndim - 1))

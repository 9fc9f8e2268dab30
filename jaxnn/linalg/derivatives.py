"""Derivatives as linear operators: the objects that kernels and curvature are built from."""

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from jaxnn import tree
from jaxnn.linalg.operators import LinearOperator
from jaxnn.types import Params, PyTree


def jacobian(f: Callable[..., PyTree], params: Params, *args: Any) -> LinearOperator:
    """The Jacobian of `f(params, *args)` with respect to `params`, as a map params → outputs.

    J v = d/dt f(θ + t v)|₀ costs one forward-mode pass, Jᵀ u one reverse-mode pass; nothing is
    stored. J Jᵀ is the empirical neural tangent kernel and Jᵀ H J the Gauss-Newton matrix. Arrays
    in `args` are carried by the operator, so it can cross `jit` without becoming a constant.

    Errors: a leaf of `params` or of the output that is not real floating point, by its path.

    Source: Griewank & Walther (2008), chapter 3.

    >>> import jax.numpy as jnp
    >>> J = jacobian(lambda w, x: jnp.sin(x * w), jnp.zeros(3), jnp.array([1.0, 2.0, 3.0]))
    >>> J @ jnp.ones(3)
    Array([1., 2., 3.], dtype=float32)
    >>> (J @ J.T).to_dense().diagonal()
    Array([1., 4., 9.], dtype=float32)
    """
    tree.require_differentiable("params", params)
    f = f if isinstance(f, Partial) else Partial(f)
    outputs = jax.eval_shape(f, params, *args)
    tree.require_differentiable("f(params)", outputs)
    return LinearOperator(
        Partial(_push_forward, f, params, args),
        Partial(_pull_back, f, params, args),
        params,
        outputs,
    )


def _push_forward(f: Callable, params: Params, args: tuple, v: PyTree) -> PyTree:
    return jax.jvp(lambda p: f(p, *args), (params,), (v,))[1]


def _pull_back(f: Callable, params: Params, args: tuple, u: PyTree) -> PyTree:
    return jax.vjp(lambda p: f(p, *args), params)[1](u)[0]

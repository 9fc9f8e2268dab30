"""Derivatives as linear operators: the objects that kernels and curvature are built from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from jax.tree_util import Partial

from jaxnn import tree
from jaxnn.errors import invalid, is_traced
from jaxnn.jaxprs import has_forward_mode
from jaxnn.linalg.batches import (
    examples_at,
    mean_over_batches,
    require_batches,
    require_mean,
)
from jaxnn.linalg.operators import LinearOperator, Static, carried
from jaxnn.linalg.tridiagonal import require_measured_symmetry
from jaxnn.types import Array, Params, PyTree


def jacobian(f: Callable[..., PyTree], params: Params, *args: Any) -> LinearOperator:
    """The Jacobian of `f(params, *args)` with respect to `params`, as a map params → outputs.

    J v = d/dt f(θ + t v)|₀ costs one forward-mode pass, Jᵀ u one reverse-mode pass; nothing is
    stored. J Jᵀ is the empirical neural tangent kernel and Jᵀ H J the Gauss-Newton matrix. Arrays
    in `args` are carried by the operator, so it can cross `jit` without becoming a constant. Of an
    f with a `custom_vjp`, which has no forward mode, J v is the transpose of u ↦ Jᵀ u.

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
    f = carried(f, params, *args)
    program, outputs = jax.make_jaxpr(f, return_shape=True)(params, *args)
    tree.require_differentiable("f(params)", outputs)
    push = _push_forward if has_forward_mode(program.eqns) else push_by_reverse
    return LinearOperator(
        Partial(push, f, params, args),
        Partial(_pull_back, f, params, args),
        params,
        outputs,
    )


def _push_forward(f: Callable, params: Params, args: tuple, v: PyTree) -> PyTree:
    return jax.jvp(lambda p: f(p, *args), (params,), (v,))[1]


def push_by_reverse(f: Callable, params: Params, args: tuple, v: PyTree) -> PyTree:
    """J v by two passes in reverse mode: the second transposes the first, which is linear in u."""
    outputs, pull = jax.vjp(lambda p: f(p, *args), params)
    return jax.vjp(pull, outputs)[1]((v,))[0]


def _pull_back(f: Callable, params: Params, args: tuple, u: PyTree) -> PyTree:
    return jax.vjp(lambda p: f(p, *args), params)[1](u)[0]


def hessian(
    objective: Callable[..., Array],
    params: Params,
    *args: Any,
    batch_size: int | None = None,
    check: bool = True,
) -> LinearOperator:
    """The Hessian of `objective(params, *args)` with respect to `params`, a symmetric operator.

    H v = d/dt ∇L(θ + t v)|₀, forward mode over reverse mode; ⟨v, H v⟩ = d²/dt² L(θ + t v)|₀, two
    forward passes and no reverse. Nothing is stored; loops compute what does not depend on v once
    (`prepared`), and `stored` has the matrix, where `storage` says that it pays. Arrays in `args`
    are carried by the operator, so it can cross `jit` without becoming a constant.

    With `batch_size`, `args` are data with N examples along their first axes, and
    `objective(params, *batch)` is the mean over the examples of a batch: H is the Hessian of the
    mean over all, summed batch after batch as `mean_over_batches` does.

    Where the arguments are concrete, `check` has the objective evaluated (on the first batch). An
    objective with a `custom_vjp` has no forward mode: forms are then taken from products, which are
    reverse mode over reverse mode where the rule itself has a `custom_vjp`.

    Errors: parameters that are none or not real floating point, an objective that is no real
    scalar, data as in `mean_over_batches`; under `check` an objective whose value or gradient is
    not finite, or that differs when evaluated twice; that is not the mean of its values on the two
    halves of the first batch (a sum, batch norm, what depends on the place in a batch); with a
    `custom_vjp` whose derivative is not symmetric, so that it is the gradient of no function.

    Source: Pearlmutter (1994); Griewank & Walther (2008), section 5.4.

    >>> H = hessian(lambda w, x: jnp.sum(x * w**3), jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0]))
    >>> H @ jnp.ones(2)
    Array([  6., -12.], dtype=float32)
    >>> H.quadratic_form(jnp.ones(2))
    Array(-6., dtype=float32)
    """
    tree.require_differentiable("hessian(params)", params)
    if tree.size(params) == 0:
        raise invalid(
            "hessian(params)",
            got="no parameters",
            expected="at least one number",
            remedy="A layer without parameters has params (); take those of the whole network.",
        )
    first = args
    if batch_size is not None:
        n = require_batches("hessian", args, batch_size)
        first = examples_at(args, 0, min(batch_size, n))
    objective = carried(objective, params, *first, order=2)
    program = require_objective("hessian(objective)", objective, params, *first, evaluate=check)
    if batch_size is not None and check:
        require_mean("hessian(objective)", objective, params, first)
    bound = Static(batch_size), objective, params, args
    by_rule = not has_forward_mode(program.eqns)
    product = Partial(_hessian_product, *bound)
    gradient = jax.grad(objective)
    if by_rule and not has_forward_mode(jax.make_jaxpr(gradient)(params, *first).eqns):
        product = Partial(_hessian_by_reverse, *bound)
    form = None if by_rule else Partial(_hessian_form, *bound)
    operator = LinearOperator(
        product, product, domain=params, codomain=params, structure="symmetric", form=form
    )
    if by_rule and check and not is_traced((objective, params, args)):
        remedy = "Check the custom_vjp, or pass check=False for J of the gradient that it declares."
        require_measured_symmetry("hessian(objective): its Hessian", operator, remedy)
    return operator


def _hessian_product(
    batch_size: Static, objective: Callable, params: Params, args: tuple, v: PyTree
) -> PyTree:
    def product(*batch: Any) -> PyTree:
        gradient = jax.grad(lambda p: objective(p, *batch))
        return jax.jvp(gradient, (params,), (v,))[1]

    return mean_over_batches(product, args, batch_size.value)


def _hessian_by_reverse(
    batch_size: Static, objective: Callable, params: Params, args: tuple, v: PyTree
) -> PyTree:
    def product(*batch: Any) -> PyTree:
        gradient = jax.grad(lambda p: objective(p, *batch))
        return jax.grad(lambda p: tree.dot(v, gradient(p)))(params)

    return mean_over_batches(product, args, batch_size.value)


def _hessian_form(
    batch_size: Static, objective: Callable, params: Params, args: tuple, v: PyTree
) -> Array:
    def form(*batch: Any) -> Array:
        slope = lambda p: jax.jvp(lambda p: objective(p, *batch), (p,), (v,))[1]
        return jax.jvp(slope, (params,), (v,))[1]

    return mean_over_batches(form, args, batch_size.value)


def require_objective(
    argument: str, objective: Callable[..., Array], params: Params, *args: Any, evaluate: bool
) -> Jaxpr:
    """The program of an objective; raises unless it is a real scalar.

    With `evaluate`, it has to be a smooth and repeatable one besides.

    >>> require_objective("objective", lambda w: w, jnp.ones(3), evaluate=False)
    Traceback (most recent call last):
    ValueError: objective: got a value of shape (3,), expected a scalar. ...
    """
    evaluated = lambda *inputs: objective(*inputs)  # an objective may have no hash
    program, value = jax.make_jaxpr(evaluated, return_shape=True)(params, *args)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        shape = getattr(value, "shape", None)
        raise invalid(
            argument,
            got=f"a value of shape {shape}" if shape is not None else type(value).__name__,
            expected="a scalar",
            remedy="Sum or average it over examples and outputs, and return nothing beside it.",
        )
    tree.require_differentiable(f"{argument}: its value", value)
    if not evaluate or is_traced((objective, params, args)):
        return program.jaxpr
    # Traced twice, so that random numbers drawn by NumPy are seen as well.
    once = lambda: jax.jit(lambda p, a: jax.value_and_grad(objective)(p, *a))(params, args)
    (value, gradient), (again, _) = once(), once()
    if is_traced(value):  # the objective closes over traced arrays, or is called while tracing
        return program.jaxpr
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise invalid(
                argument,
                got=f"a gradient that is not finite at params{jax.tree_util.keystr(path)}",
                expected="a finite gradient at the params",
                remedy="Look for a division by 0, the square root or norm of 0, an overflow, or "
                "a run that has diverged.",
            )
    if not bool(jnp.isfinite(value) & jnp.isfinite(again)):
        raise invalid(
            argument,
            got=f"the value {value}",
            expected="a finite value at the params",
            remedy="Look for a division by 0, the logarithm of 0, or an overflow.",
        )
    if not bool(value == again):
        raise invalid(
            argument,
            got=f"{value} and, evaluated again, {again}",
            expected="a deterministic function",
            remedy="Fix its random key (functools.partial), and switch dropout off.",
        )
    return program.jaxpr

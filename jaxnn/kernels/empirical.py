"""The kernels of a given network at given parameters."""

import itertools
import math
from collections.abc import Callable, Hashable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from jaxnn import linalg, tree
from jaxnn.errors import invalid
from jaxnn.kernels import blocks
from jaxnn.kernels.contractions import Outputs
from jaxnn.kernels.coupling import require_independent
from jaxnn.kernels.planning import Plan, planned
from jaxnn.kernels.tiles import tiled
from jaxnn.types import Apply, Array, Params, PyTree

Method = Literal["auto", "structured", "jacobian", "vector_products"]
DEFAULT_MAX_BYTES = 2**32


def nngp(
    f: Apply,
    params: Params,
    x1: Shaped[Array, "N1 *in"],
    x2: Shaped[Array, "N2 ..."] | None = None,
) -> Float[Array, "N1 N2"]:
    """The kernel of the outputs themselves, K = (1/O) Σ_a f_a(x₁) f_a(x₂) over the O outputs.

    Averaged over random parameters it tends to the NNGP as the width grows.

    Source: Lee et al. (2018), equation 2.

    >>> nngp(lambda w, x: x * w, jnp.array(2.0), jnp.ones((3, 4)), jnp.ones((2, 4)))
    Array([[4., 4.],
           [4., 4.],
           [4., 4.]], dtype=float32)
    """
    x2 = x1 if x2 is None else x2
    y1, y2 = (f(params, x).reshape(x.shape[0], -1) for x in (x1, x2))
    return y1 @ y2.T / y1.shape[1]


def ntk(
    f: Apply,
    params: Params,
    x1: Shaped[Array, "N1 *in"],
    x2: Shaped[Array, "N2 ..."] | None = None,
    *,
    outputs: Outputs = "mean",
    method: Method = "auto",
    groups: Callable[[str], Hashable] | None = None,
    metric: PyTree | None = None,
    coupled: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Any:
    """The empirical neural tangent kernel Θ = J(x₁) M J(x₂)ᵀ of f at `params`, M = 1 unless given.

    f(params, x) -> (N, *out), or a pytree of such, is any function that treats the examples of a
    batch independently; x2=None means x1, and half the work.

    outputs    "mean" is (1/O) Σ_a Θ_aa over all O outputs, shape (N1, N2); "diagonal" is Θ_aa,
               (N1, N2, *out); "full" is Θ_ab, (N1, N2, *out, *out). Where f returns a pytree,
               "diagonal" is such a pytree, and "full" one of those at every leaf
    method     "structured" finds where parameters multiply data, and contracts the factors of the
               gradients in the cheapest way for each parameter (`kernels.plan` shows which);
               "jacobian" forms the gradients of all examples and contracts them;
               "vector_products" forms those of one example at a time and pushes them forward;
               "auto" takes the one that `kernels.plan` expects to be fastest. All are exact
    groups     path of a parameter ("[0]['W']") -> label; the result is then a dictionary by label,
               of the kernels of the parameters that share it: layer-wise kernels
    metric     M: a pytree like `params`, of scalars or of arrays that broadcast to the parameters
               (learning rates by layer or by entry)
    coupled    True allows f to couple the examples of a batch, at the price of a batched pass per
               output
    max_bytes  bound on the memory for intermediates (not for the result): batches are tiled

    On GPUs and TPUs float32 products may be rounded to fewer bits by default; where that matters,
    compute under `jax.default_matmul_precision("highest")`.

    Errors: leaves of `params` that are not real floating point, f that couples the examples of a
    batch, inputs of different shapes, unknown `outputs` or `method`, a `metric` of other structure.

    Source: Jacot, Gabriel & Hongler (2018), section 4; Novak, Sohl-Dickstein & Schoenholz (2022)
    for the contraction of factored gradients.

    >>> f = lambda w, x: x @ w
    >>> ntk(f, jnp.ones((2, 3)), jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    Array([[5., 2.],
           [2., 1.]], dtype=float32)
    """
    _require_choice("outputs", outputs, Outputs)
    _require_choice("method", method, Method)
    tree.require_differentiable("params", params)
    if x2 is not None and x2.shape[1:] != x1.shape[1:]:
        raise invalid(
            "x2",
            got=f"examples of shape {x2.shape[1:]}",
            expected=f"shape {x1.shape[1:]}, that of x1's",
            remedy="Both arguments go through the same f.",
        )
    task = blocks.problem(f, params, x1, metric, groups)
    if not coupled:
        require_independent(f, params, x1)
    compute = _compiled if _is_hashable(f) else _kernel
    kernels = compute(f, params, x1, x2, metric, outputs, method, groups, coupled, max_bytes)
    split = {label: _split(kernel, task.outputs, outputs) for label, kernel in kernels.items()}
    return split[None] if groups is None else split


def plan(
    f: Apply,
    params: Params,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    outputs: Outputs = "mean",
    method: Method = "auto",
    groups: Callable[[str], Hashable] | None = None,
    metric: PyTree | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Plan:
    """What `ntk` would do with the same arguments, by parameter, with its cost and the reason.

    The inputs may be arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    >>> f = lambda p, x: jnp.tanh(x @ p["W"] + p["b"])
    >>> params = {"W": jnp.ones((784, 512)), "b": jnp.ones(512)}
    >>> for row in plan(f, params, jax.ShapeDtypeStruct((64, 784), "float32")).rows:
    ...     print(row.parameter, row.contraction)
    ['W'] gram
    ['b'] gram
    """
    task = blocks.problem(f, params, x1, metric, groups)
    return planned(task, x1, x2, outputs, method, max_bytes)[1]


def ntk_operator(
    f: Apply,
    params: Params,
    x1: Shaped[Array, "N1 *in"],
    x2: Shaped[Array, "N2 ..."] | None = None,
) -> linalg.LinearOperator:
    """The full kernel as an operator, v ↦ Θ v, for the cost of one vjp and one jvp of the batch.

    Θ = J(x₁) J(x₂)ᵀ maps outputs at x2, (N2, *out), to outputs at x1, (N1, *out); nothing is
    stored, and f may couple examples.

    >>> theta = ntk_operator(lambda w, x: x @ w, jnp.ones((2, 3)), jnp.array([[1.0, 2.0]]))
    >>> theta @ jnp.ones((1, 3))
    Array([[5., 5., 5.]], dtype=float32)
    """
    first = linalg.jacobian(f, params, x1)
    second = first if x2 is None else linalg.jacobian(f, params, x2)
    return first @ second.T


def _kernel(
    f: Apply,
    params: Params,
    x1: Array,
    x2: Array | None,
    metric: PyTree | None,
    outputs: Outputs,
    method: str,
    groups: Callable[[str], Hashable] | None,
    coupled: bool,
    max_bytes: int,
) -> blocks.Block:
    task = blocks.problem(f, params, x1, metric, groups)
    if coupled:
        return blocks.of_coupled(f, params, task, x1, x1 if x2 is None else x2, outputs)
    way, how = planned(task, x1, x2, outputs, method, max_bytes)
    return tiled(way, x1, x2, how.tile, keep=how.keep)


_compiled = jax.jit(_kernel, static_argnums=(0, 5, 6, 7, 8, 9))


def _is_hashable(f: Apply) -> bool:
    try:
        hash(f)
    except TypeError:
        return False
    return True


def _split(kernel: Array, y: PyTree, outputs: Outputs) -> PyTree:
    """Give the flat output axes the shapes, and for a pytree the leaves, that f's outputs have."""
    if outputs == "mean":
        return kernel
    leaves, structure = jax.tree.flatten(y)
    shapes = [leaf.shape for leaf in leaves]
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))

    def cut(array: Array, axis: int) -> list[Array]:
        return jnp.split(array, ends[:-1], axis=axis)

    n = kernel.shape[:2]
    if outputs == "diagonal":
        parts = [k.reshape(*n, *s) for k, s in zip(cut(kernel, 2), shapes, strict=True)]
        return jax.tree.unflatten(structure, parts)
    rows = [
        jax.tree.unflatten(
            structure,
            [k.reshape(*n, *s1, *s2) for k, s2 in zip(cut(row, 3), shapes, strict=True)],
        )
        for row, s1 in zip(cut(kernel, 2), shapes, strict=True)
    ]
    return jax.tree.unflatten(structure, rows)


def _require_choice(argument: str, value: str, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise invalid(
            argument,
            got=repr(value),
            expected=f"one of {', '.join(map(repr, allowed))}",
            remedy="See the docstring of kernels.ntk.",
        )

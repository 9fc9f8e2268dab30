"""The kernels of a given network at given parameters."""

import itertools
import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from jaxnn import linalg, tree
from jaxnn.errors import invalid
from jaxnn.jaxprs import Snapshot, snapshot
from jaxnn.kernels import blocks
from jaxnn.kernels.coupling import Reading, read, require_independent
from jaxnn.kernels.examples import (
    abstract,
    alike,
    backward,
    explained,
    num_examples,
    require_function,
)
from jaxnn.kernels.mesh_axes import manual_axes, over, with_automatic_axes
from jaxnn.kernels.output_axes import Layout, OutputAxes, Outputs, arrangement, layout
from jaxnn.kernels.planning import Plan, planned
from jaxnn.kernels.tiles import in_pairs, tiled
from jaxnn.precision import accumulated
from jaxnn.types import Apply, Array, Params, PyTree

Method = Literal["auto", "structured", "jacobian", "vector_products"]
DEFAULT_MAX_BYTES = 2**32


def nngp(
    f: Apply,
    params: Params,
    x1: PyTree[Shaped[Array, "N1 ..."]],
    x2: PyTree[Shaped[Array, "N2 ..."]] | None = None,
    *,
    outputs: Outputs = "mean",
) -> Any:
    """The kernel of the outputs themselves, K_ab(x₁, x₂) = f_a(x₁) f_b(x₂).

    Averaged over random parameters, "mean" tends to the NNGP as the width grows. The products are
    accumulated in float32 at least; integer outputs are data, and become floating-point numbers.
    Complex outputs have the Hermitian kernel f_a(x₁) conj(f_b(x₂)). f may couple examples.

    Args:
        f: f(params, x) -> (N, *out), or a pytree of such.
        params: a pytree of any leaves that f takes.
        x1: an array (N1, *in), or a pytree of such.
        x2: likewise with N2; default: x1.
        outputs: "mean" is (1/O) Σ_a K_aa over all O outputs, shape (N1, N2); "diagonal" is K_aa,
            (N1, N2, *out); "full" is K_ab, (N1, N2, *out, *out). Where f returns a pytree,
            "diagonal" is such a pytree, and "full" one of those at every leaf.

    Errors: outputs without the batch axis in front, outputs of x2 unlike those of x1, inputs that
    are no arrays (N, ...), an unknown `outputs`.

    Source: Lee et al. (2018), equation 2.

    >>> nngp(lambda w, x: x * w, jnp.array(2.0), jnp.ones((3, 4)), jnp.ones((2, 4)))
    Array([[4., 4.],
           [4., 4.],
           [4., 4.]], dtype=float32)
    """
    _require_choice("outputs", outputs, Outputs)
    require_function("f", f)
    return with_automatic_axes(partial(_nngp, f, outputs), params, x1, x2, rows=x1)


def _nngp(f: Apply, outputs: Outputs, params: Params, x1: PyTree, x2: PyTree | None) -> Any:
    n1 = num_examples("x1", x1)
    y1 = f(params, x1)
    blocks.require_outputs("f(params, x1)", y1, n1)
    first = blocks.flattened(y1)
    second = first
    if x2 is not None:
        n2 = num_examples("x2", x2)
        y2 = f(params, x2)
        blocks.require_outputs("f(params, x2)", y2, n2)
        blocks.require_same_outputs(y1, y2)
        second = blocks.flattened(y2)
    kernel = accumulated(partial(_products, outputs=outputs), first, second.conj())
    return _split(kernel, abstract(y1), outputs)


def _products(first: Array, second: Array, outputs: Outputs) -> Array:
    if outputs == "full":
        return jnp.einsum("na,mb->nmab", first, second)
    if outputs == "diagonal":
        return jnp.einsum("na,ma->nma", first, second)
    return first @ second.T / max(first.shape[1], 1)


def ntk(
    f: Apply,
    params: Params,
    x1: PyTree[Shaped[Array, "N1 ..."]],
    x2: PyTree[Shaped[Array, "N2 ..."]] | None = None,
    *,
    outputs: Outputs | OutputAxes = "mean",
    method: Method = "auto",
    groups: Callable[[str], Hashable] | None = None,
    metric: PyTree | None = None,
    coupled: bool = False,
    paired: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Any:
    """The empirical neural tangent kernel Θ = J(x₁) M J(x₂)ᵀ of f at `params`; default: M = 1.

    f(params, x) -> (N, *out), or a pytree of such, is any function that treats the examples of a
    batch independently and alike; x2=None means x1, and half the work. The inputs are arrays
    (N, *in), or pytrees of such: an array with one row per example, such as a mask, belongs there,
    x1 = (x, mask), and not into the closure of f. Where the examples of x2 have another shape or
    dtype than those of x1, which f may take both, the method is "vector_products".

    outputs    "mean" is (1/O) Σ_a Θ_aa over all O outputs, shape (N1, N2); "diagonal" is Θ_aa,
               (N1, N2, *out); "full" is Θ_ab, (N1, N2, *out, *out). Where f returns a pytree,
               "diagonal" is such a pytree, and "full" one of those at every leaf.
               `OutputAxes(mean=axes, diagonal=axes)` decides for each axis of the outputs: channels
               averaged and pairs of positions kept, without the cost of all pairs of outputs
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
    paired     True compares row i of x1 with row i of x2 alone: the result is (N, ...) instead of
               (N1, N2, ...), for x2=None the kernel of every example with itself
    max_bytes  bound on the memory for intermediates (not for the result): batches are tiled

    The result has the dtype of f's outputs. Gradients of half precision are multiplied and summed
    in float32, so that a mean is finite where the sum is beyond float16.

    On GPUs and TPUs float32 products may be rounded to fewer bits by default; where that matters,
    compute under `jax.default_matmul_precision("highest")`.

    Errors: leaves of `params` that are not real floating point, f that couples the examples of a
    batch or treats them by their position in it, inputs that are no arrays (N, ...), outputs of x2
    unlike those of x1, unknown `outputs` or `method`, a `metric` of other structure.

    Source: Jacot, Gabriel & Hongler (2018), section 4; Novak, Sohl-Dickstein & Schoenholz (2022)
    for the contraction of factored gradients.

    >>> f = lambda w, x: x @ w
    >>> ntk(f, jnp.ones((2, 3)), jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    Array([[5., 2.],
           [2., 1.]], dtype=float32)
    """
    if not isinstance(outputs, OutputAxes):
        _require_choice("outputs", outputs, Outputs)
    _require_choice("method", method, Method)
    require_function("f", f)
    tree.require_differentiable("params", params)
    blocks.require_groups(groups)
    _require_pairs(x1, x2, outputs, coupled=coupled, paired=paired)
    compute = partial(_ntk, f, outputs, method, groups, coupled, paired, max_bytes)
    return with_automatic_axes(compute, params, x1, x2, metric, rows=x1)


def _ntk(
    f: Apply,
    outputs: Outputs | OutputAxes,
    method: Method,
    groups: Callable[[str], Hashable] | None,
    coupled: bool,
    paired: bool,
    max_bytes: int,
    params: Params,
    x1: PyTree,
    x2: PyTree | None,
    metric: PyTree | None,
) -> Any:
    params, x1, x2, metric = over(manual_axes(params, x1, x2), (params, x1, x2, metric))
    with explained(f):
        f = snapshot(f, params, x1)
        task = _read(f, params, x1, x2, method, metric, groups, coupled)
    if x2 is not None and (coupled or not alike(x1, x2)):
        f = snapshot(f, params, x2)
    labels = None if groups is None else task.labels
    with backward():
        kernels = _compiled(
            f, params, x1, x2, metric, outputs, method, labels, coupled, paired, max_bytes
        )
    split = {label: _split(kernel, task.outputs, outputs) for label, kernel in kernels.items()}
    return split[None] if groups is None else {label: split[label] for label in task.groups}


def _read(
    f: Apply,
    params: Params,
    x1: PyTree,
    x2: PyTree | None,
    method: str,
    metric: PyTree | None,
    groups: Callable[[str], Hashable] | None,
    coupled: bool,
) -> blocks.Problem:
    """All checks of the arguments of `ntk`; f is traced, once for every shape of its inputs."""
    shapes = (lambda *arguments: Reading(jax.eval_shape(*arguments))) if coupled else read
    first = shapes(f, params, x1)
    task = blocks.problem(f, params, x1, metric, groups, y=first.outputs)
    if not coupled:
        require_independent(f, params, x1, first, "f(params, x1)")
    if x2 is None:
        return task
    n2 = num_examples("x2", x2)
    same = alike(x1, x2)
    if not same:
        _require_method_for_unlike(method, x1, x2)
    second = first
    if not same or n2 != num_examples("x1", x1):
        try:
            second = shapes(f, params, x2)
        except (TypeError, ValueError) as error:
            if same:
                raise
            raise _unlike(x1, x2, "examples that f takes, as it takes those of x1") from error
    blocks.require_outputs("f(params, x2)", second.outputs, n2)
    blocks.require_same_outputs(first.outputs, second.outputs)
    if not coupled:
        require_independent(f, params, x2, second, "f(params, x2)")
    return task


def _require_method_for_unlike(method: str, x1: PyTree, x2: PyTree) -> None:
    if jax.tree.structure(x1) != jax.tree.structure(x2):
        raise _unlike(x1, x2, "the structure of x1")
    if method in ("structured", "jacobian"):
        raise _unlike(x1, x2, f"examples of the same shape and dtype for method={method!r}")


def _unlike(x1: PyTree, x2: PyTree, expected: str) -> ValueError:
    shown = [
        " and ".join(f"shape {a.shape} and dtype {a.dtype}" for a in jax.tree.leaves(abstract(x)))
        for x in (x1, x2)
    ]
    return invalid(
        "x2",
        got=f"examples of {shown[1]}, where those of x1 are of {shown[0]}",
        expected=expected,
        remedy="Both arguments go through the same f: convert one with astype or pad it, or use "
        "method='auto', which takes whatever f takes.",
    )


def plan(
    f: Apply,
    params: Params,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    outputs: Outputs | OutputAxes = "mean",
    method: Method = "auto",
    groups: Callable[[str], Hashable] | None = None,
    metric: PyTree | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Plan:
    """What `ntk` would do with the same arguments, by parameter, with its cost and the reason.

    The inputs are arrays or `jax.ShapeDtypeStruct`s, or pytrees of such; nothing is computed.

    >>> f = lambda p, x: jnp.tanh(x @ p["W"] + p["b"])
    >>> params = {"W": jnp.ones((784, 512)), "b": jnp.ones(512)}
    >>> for row in plan(f, params, jax.ShapeDtypeStruct((64, 784), "float32")).rows:
    ...     print(row.parameter, row.contraction)
    ['W'] gram
    ['b'] gram
    """
    require_function("f", f)
    blocks.require_groups(groups)
    for argument, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
        num_examples(argument, x)
    with explained(f):
        task = blocks.problem(f, params, x1, metric, groups)
    task, form = _arranged(task, outputs)
    with backward():
        return planned(task, x1, x2, form, method, max_bytes)[1]


def ntk_operator(
    f: Apply,
    params: Params,
    x1: PyTree[Shaped[Array, "N1 ..."]],
    x2: PyTree[Shaped[Array, "N2 ..."]] | None = None,
) -> linalg.LinearOperator:
    """The full kernel as an operator, v ↦ Θ v, for the cost of one vjp and one jvp of the batch.

    Θ = J(x₁) J(x₂)ᵀ maps outputs at x2, (N2, *out), to outputs at x1, (N1, *out); nothing is
    stored, and f may couple examples.

    >>> theta = ntk_operator(lambda w, x: x @ w, jnp.ones((2, 3)), jnp.array([[1.0, 2.0]]))
    >>> theta @ jnp.ones((1, 3))
    Array([[5., 5., 5.]], dtype=float32)
    """
    require_function("f", f)
    first = linalg.jacobian(f, params, x1)
    second = first if x2 is None else linalg.jacobian(f, params, x2)
    return first @ second.T


@partial(jax.jit, static_argnums=(0, 5, 6, 7, 8, 9, 10))
def _compiled(
    f: Snapshot,
    params: Params,
    x1: PyTree,
    x2: PyTree | None,
    metric: PyTree | None,
    outputs: Outputs | OutputAxes,
    method: str,
    labels: tuple[Hashable, ...] | None,
    coupled: bool,
    paired: bool,
    max_bytes: int,
) -> blocks.Block:
    task, form = _arranged(blocks.problem(f, params, x1, metric), outputs)
    task = task if labels is None else task._replace(labels=labels)
    if coupled and not blocks.is_empty(task, x1, x2):
        return blocks.of_coupled(f, params, task, x1, x1 if x2 is None else x2, form)
    if paired:
        one1, one2 = abstract(x1, 1), None if x2 is None else abstract(x2, 1)
        way, how = planned(task, one1, one2, form, method, max_bytes)
        return in_pairs(way, x1, x2, max(1, int(max_bytes // how.peak_bytes)))
    way, how = planned(task, x1, x2, form, method, max_bytes)
    return tiled(way, x1, x2, how.tile, keep=how.keep)


def _arranged(task: blocks.Problem, outputs: Outputs | OutputAxes) -> tuple[blocks.Problem, Layout]:
    """The problem with its outputs in the order of the layout."""
    if not isinstance(outputs, OutputAxes):
        return task, layout(outputs, task.num_outputs)
    order = arrangement(outputs, task.outputs)
    flat = lambda *arguments: [order.flat(y) for y in task.flat(*arguments)]
    return task._replace(flat=flat), order.layout


def _require_pairs(
    x1: PyTree, x2: PyTree | None, outputs: Outputs | OutputAxes, *, coupled: bool, paired: bool
) -> None:
    n1 = num_examples("x1", x1)
    if paired and x2 is not None and num_examples("x2", x2) != n1:
        raise invalid(
            "x2",
            got=f"{num_examples('x2', x2)} examples for {n1} of x1",
            expected="as many, since paired=True compares them row by row",
            remedy="With paired=False every row of x1 is compared with every row of x2.",
        )
    if coupled and (paired or isinstance(outputs, OutputAxes)):
        raise invalid(
            "coupled",
            got=f"True with outputs={outputs!r} and paired={paired}",
            expected="'mean', 'diagonal' or 'full' outputs of all pairs of examples",
            remedy="Every pass of a coupled f yields all of them: take what you need from 'full'.",
        )


def _split(kernel: Array, y: PyTree, outputs: Outputs | OutputAxes) -> PyTree:
    """Give the flat output axes the shapes, and for a pytree the leaves, that f's outputs have."""
    if outputs == "mean":
        return kernel
    if isinstance(outputs, OutputAxes):
        return arrangement(outputs, y).shaped(kernel)
    leaves, structure = jax.tree.flatten(y)
    shapes = [leaf.shape for leaf in leaves]
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))

    def cut(array: Array, axis: int) -> list[Array]:
        return jnp.split(array, ends[:-1], axis=axis)

    n = kernel.shape[: kernel.ndim - (1 if outputs == "diagonal" else 2)]
    if outputs == "diagonal":
        parts = [k.reshape(*n, *s) for k, s in zip(cut(kernel, len(n)), shapes, strict=True)]
        return jax.tree.unflatten(structure, parts)
    rows = [
        jax.tree.unflatten(
            structure,
            [k.reshape(*n, *s1, *s2) for k, s2 in zip(cut(row, len(n) + 1), shapes, strict=True)],
        )
        for row, s1 in zip(cut(kernel, len(n)), shapes, strict=True)
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

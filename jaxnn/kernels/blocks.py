"""Blocks of a kernel, for a tile of examples against another: what is kept of each, how they meet.

Every method is a pair of functions. `prepare` turns a batch into what is needed of it, arrays with
the batch in front; `meet` turns two of those into the block of the kernel between them.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Num

from jaxnn import tree
from jaxnn.errors import invalid
from jaxnn.jaxprs import fresh, has_forward_mode
from jaxnn.kernels import contractions
from jaxnn.kernels.cost import Choice
from jaxnn.kernels.examples import batched, num_examples, only
from jaxnn.kernels.mesh_axes import manual_axes, over
from jaxnn.kernels.output_axes import Layout
from jaxnn.kernels.structure import Factors, Structure, factors, parts
from jaxnn.precision import common, wide, wide_dtype
from jaxnn.types import Apply, Array, Params, PyTree

Block: TypeAlias = dict[Hashable, Array]
"""By label of a group of parameters: (N1, N2) for "mean", else with one or two axes of size O."""


class Method(NamedTuple):
    """A way to compute blocks.

    prepare  a batch x of N examples -> arrays with N in front
    meet     (prepared (N1), prepared (N2), whether they are the same) -> the block
    """

    prepare: Callable[[PyTree], PyTree]
    meet: Callable[[PyTree, PyTree, bool], Block]


class Problem(NamedTuple):
    """A network as a function of the leaves of its parameters and of one example.

    flat     (*leaves, *leaves of an example) -> [all outputs as one vector]
    leaves   the parameters; paths their names; weights the metric (None: 1); labels their groups
    outputs  shapes and dtypes of the outputs of one example, a pytree
    """

    flat: Callable[..., list[Array]]
    leaves: tuple[Array, ...]
    paths: tuple[str, ...]
    weights: tuple[Array | None, ...]
    labels: tuple[Hashable, ...]
    outputs: PyTree

    @property
    def groups(self) -> tuple[Hashable, ...]:
        """The distinct labels, in the order of the parameters."""
        return tuple(dict.fromkeys(self.labels))

    @property
    def num_outputs(self) -> int:
        """How many numbers f returns for an example."""
        return tree.size(self.outputs)


def problem(
    f: Apply,
    params: Params,
    x: PyTree,
    metric: PyTree | None = None,
    groups: Callable[[str], Hashable] | None = None,
    *,
    y: PyTree | None = None,
) -> Problem:
    """Read f, and check that it returns one output per example.

    `x` is an array (N, *in) or a pytree of such; `y` the shapes of f(params, x), where they are
    known.

    Errors: an output without the batch axis in front, or not real floating point; no output; a
    metric whose structure, shapes or dtypes do not fit the parameters; groups that are no function,
    or return what cannot be the key of a dictionary.

    >>> found = problem(lambda w, x: x @ w, jnp.ones((2, 3)), jnp.ones((4, 2)))
    >>> found.num_outputs, found.flat(jnp.ones((2, 3)), jnp.ones(2))
    (3, [Array([2., 2., 2.], dtype=float32)])
    """
    y = jax.eval_shape(fresh(f), params, x) if y is None else y
    require_outputs("f(params, x1)", y, num_examples("x1", x))
    tree.require_differentiable("f(params, x1)", y)
    with_paths, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = tuple(jax.tree_util.keystr(path) for path, _ in with_paths)
    form = jax.tree.structure(x)

    def flat(*arguments: Array) -> list[Array]:
        leaves, example = arguments[: len(paths)], arguments[len(paths) :]
        one = batched(jax.tree.unflatten(form, example))
        out = only(f(jax.tree.unflatten(structure, leaves), one))
        return [jnp.concatenate(common(*(leaf.ravel() for leaf in out)))]

    return Problem(
        flat,
        tuple(jnp.asarray(leaf) for _, leaf in with_paths),
        paths,
        _weights(metric, params),
        _labels(groups, paths),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), y),
    )


def require_outputs(argument: str, y: PyTree, n: int) -> None:
    """Raise unless the outputs `y` of a batch of n examples are arrays (n, ...), at least one.

    >>> require_outputs("f(params, x1)", jnp.ones((3, 4)), 4)
    Traceback (most recent call last):
    ValueError: f(params, x1): got shape (3, 4) for 4 examples, expected (4, *out), batch axis ...
    """
    leaves = jax.tree.leaves(y)
    if not leaves:
        raise invalid(
            argument,
            got=f"{y}, without an array",
            expected=f"({n}, *out), or a pytree of such",
            remedy="Return what the network computes.",
        )
    for leaf in leaves:
        if leaf.ndim < 1 or leaf.shape[0] != n:
            raise invalid(
                argument,
                got=f"shape {leaf.shape} for {n} examples",
                expected=f"({n}, *out), batch axis first",
                remedy="Return one output per example; wrap f if its batch axis lies elsewhere.",
            )


def flattened(y: PyTree) -> Num[Array, "N O"]:
    """All outputs of every example as one vector.

    >>> flattened({"a": jnp.ones((2, 3, 4)), "b": jnp.ones(2)}).shape
    (2, 13)
    """
    rows = [leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(y)]
    return jnp.concatenate(common(*rows), axis=1)


def require_same_outputs(y1: PyTree, y2: PyTree) -> None:
    """Raise unless the outputs of the second batch are, per example, those of the first.

    >>> require_same_outputs(jnp.ones((4, 3)), jnp.ones((5, 2)))
    Traceback (most recent call last):
    ValueError: f(params, x2): got outputs (2,) for an example, expected (3,), as of x1. ...
    """
    shapes1, shapes2 = (jax.tree.map(lambda a: a.shape[1:], y) for y in (y1, y2))
    if shapes1 != shapes2:
        raise invalid(
            "f(params, x2)",
            got=f"outputs {shapes2} for an example",
            expected=f"{shapes1}, as of x1",
            remedy="A kernel compares the same outputs of two examples.",
        )


def factored(
    task: Problem, structure: Structure, choices: Sequence[Choice], outputs: Layout
) -> Method:
    """Contract the factors of the gradients, term by term, each in the way chosen for it."""

    def prepare(x: PyTree) -> tuple[Factors, Array]:
        # The empty array keeps the number of examples where no parameter is used.
        return factors(structure, task.leaves, x), jnp.zeros((num_examples("x", x), 0))

    def meet(
        prepared1: tuple[Factors, Array], prepared2: tuple[Factors, Array], same: bool
    ) -> Block:
        (first, count1), (second, count2) = prepared1, prepared2
        block: Block = {}
        for number, (term, choice) in enumerate(zip(structure.terms, choices, strict=True)):
            left = parts(term, first.terms[number])
            right = left if same else parts(term, second.terms[number])
            part = contractions.contract(left, right, term.shape, outputs, choice.how)
            a, b = first.channels[number], second.channels[number]
            if a is not None and b is not None:
                part = part + a.inner(a if same else b, outputs)
            leaf = min(term.leaves)
            weight = task.weights[leaf]
            part = part if weight is None else weight.astype(part.dtype) * part
            _accumulate(block, task.labels[leaf], part)
        for leaf, a, b in zip(structure.direct, first.direct, second.direct, strict=True):
            weight = task.weights[leaf]
            left = a if weight is None else _weighted(a, weight, task.leaves[leaf])
            _accumulate(block, task.labels[leaf], contractions.inner(left, b, outputs))
        zero = _zero(task, count1.shape[0], count2.shape[0], outputs)
        divisor = outputs.averaged or 1
        return {
            label: (block.get(label, zero) / divisor).astype(zero.dtype) for label in task.groups
        }

    return Method(prepare, meet)


def is_empty(task: Problem, x1: PyTree, x2: PyTree | None) -> bool:
    """Whether the kernel is 0 or empty: no parameters, no outputs, or no examples."""
    batches = (x1, x1 if x2 is None else x2)
    return not (task.leaves and task.num_outputs and all(num_examples("x", x) for x in batches))


def nothing(task: Problem, outputs: Layout) -> Method:
    """The kernel without parameters, outputs or examples: zeros, or an empty array."""

    def meet(count1: Array, count2: Array, same: bool) -> Block:
        zero = _zero(task, count1.shape[0], count2.shape[0], outputs)
        return dict.fromkeys(task.groups or (None,), zero)

    return Method(lambda x: jnp.zeros((num_examples("x", x), 0)), meet)


def _zero(task: Problem, n1: int, n2: int, outputs: Layout) -> Array:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(task.outputs)))
    return jnp.zeros((n1, n2, *outputs.kept), dtype)


def pushed(
    f: Callable, leaves: Sequence[Array], direction: Sequence[Array], *, forward: bool
) -> Any:
    """J v, the derivative of f(*leaves) along a direction.

    If not `forward`, as the transpose of the pull back Jᵀ, which a `jax.custom_vjp` defines alone.
    In half precision the direction is scaled to a largest entry of 1, and J v is of float32.

    >>> f = lambda w: w**2
    >>> pushed(f, [jnp.array(3.0)], [jnp.array(1.0)], forward=False)
    Array(6., dtype=float32, weak_type=True)
    """
    if any(leaf.dtype != wide_dtype(leaf) for leaf in leaves):
        dtype = wide_dtype(*leaves)
        sizes = [jnp.max(jnp.abs(v), initial=0.0).astype(dtype) for v in direction]
        size = jnp.max(jnp.stack(sizes))
        size = jnp.where(size > 0, size, jnp.ones_like(size))
        direction = [(v.astype(dtype) / size).astype(v.dtype) for v in direction]
        return _derivative(f, leaves, direction, forward=forward).astype(dtype) * size
    return _derivative(f, leaves, direction, forward=forward)


def _derivative(
    f: Callable, leaves: Sequence[Array], direction: Sequence[Array], *, forward: bool
) -> Array:
    if forward:
        return jax.jvp(f, tuple(leaves), tuple(direction))[1]
    y, pull_back = jax.vjp(f, *leaves)
    return jax.linear_transpose(pull_back, y)(tuple(direction))[0]


def vector_products(task: Problem, outputs: Layout, *, forward: bool = True) -> Method:
    """Form the gradients of one example of the second batch, and push them through the first."""

    def meet(first: PyTree, second: PyTree, same: bool) -> Block:
        def push(direction: tuple[Array, ...]) -> Array:
            def along(example: PyTree) -> Array:
                f = lambda *leaves: task.flat(*leaves, *jax.tree.leaves(example))[0]
                return pushed(f, task.leaves, direction, forward=forward)

            return jax.vmap(along)(first)

        def against_one(example: PyTree) -> Block:
            f = lambda *leaves: task.flat(*leaves, *jax.tree.leaves(example))[0]
            y, pull_back = jax.vjp(f, *task.leaves)
            weighed = lambda unit: _weighed(task, pull_back(unit))
            units = over(manual_axes(y), jnp.eye(y.size, dtype=y.dtype))
            gradients = jax.vmap(weighed)(units)
            return {
                label: _reduced(
                    jax.vmap(push, out_axes=2)(_only(task, gradients, label)), outputs, y.dtype
                )
                for label in task.groups
            }

        return jax.tree.map(lambda b: jnp.moveaxis(b, 0, 1), jax.lax.map(against_one, second))

    return Method(lambda x: x, meet)


def _weighed(task: Problem, gradient: Sequence[Array]) -> tuple[Array, ...]:
    pairs = zip(gradient, task.weights, strict=True)
    return tuple(
        g if weight is None else (weight * g.astype(weight.dtype)).astype(g.dtype)
        for g, weight in pairs
    )


def _only(task: Problem, gradients: tuple[Array, ...], label: Hashable) -> tuple[Array, ...]:
    pairs = zip(gradients, task.labels, strict=True)
    return tuple(g if its == label else jnp.zeros_like(g) for g, its in pairs)


def _reduced(block: Array, outputs: Layout, dtype: jnp.dtype) -> Array:
    """(..., O, O) -> what is asked for of the last two axes."""
    a, b, out = outputs.letters
    by_axes = wide(block.reshape(*block.shape[:-2], *outputs.sizes, *outputs.sizes))
    return (jnp.einsum(f"...{a}{b}->...{out}", by_axes) / (outputs.averaged or 1)).astype(dtype)


def of_coupled(
    f: Apply, params: Params, task: Problem, x1: PyTree, x2: PyTree, outputs: Layout
) -> Block:
    """The whole kernel of a function that couples examples: a pull back and a push per output.

    Every pass goes through the whole batch, since any example's output may depend on all.
    """

    def vector(x: PyTree, *leaves: Array) -> Array:
        y = f(jax.tree.unflatten(jax.tree.structure(params), leaves), x)
        flat = [
            leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(y)
        ]
        return jnp.concatenate(common(*flat), axis=1)

    y2, pull_back = jax.vjp(partial(vector, x2), *task.leaves)
    program = jax.make_jaxpr(partial(vector, x1))(*task.leaves)
    forward = has_forward_mode(program.eqns)

    def against_one(number: Array) -> Block:
        unit = jnp.zeros(y2.size, y2.dtype).at[number].set(1).reshape(y2.shape)
        weighed = _weighed(task, pull_back(over(manual_axes(y2), unit)))
        push = partial(pushed, partial(vector, x1), task.leaves, forward=forward)
        return {label: push(_only(task, weighed, label)) for label in task.groups}

    rows = jax.lax.map(against_one, jnp.arange(y2.size))
    shape = (*y2.shape, num_examples("x1", x1), y2.shape[1])
    reduced = lambda r: _reduced(r.reshape(shape).transpose(2, 0, 3, 1), outputs, y2.dtype)
    return jax.tree.map(reduced, rows)


def _accumulate(block: Block, label: Hashable, part: Array) -> None:
    if label not in block:
        block[label] = part
        return
    dtype = max(block[label].dtype, part.dtype, key=lambda d: d.itemsize)
    block[label] = block[label].astype(dtype) + part.astype(dtype)


def _weighted(gradients: Array, weight: Array, leaf: Array) -> Array:
    flat = jnp.broadcast_to(weight, leaf.shape).reshape(-1).astype(gradients.dtype)
    return gradients * jnp.broadcast_to(flat, gradients.shape)


def _weights(metric: PyTree | None, params: Params) -> tuple[Array | None, ...]:
    leaves, structure = jax.tree.flatten(params)
    if metric is None:
        return (None,) * len(leaves)
    if jax.tree.structure(metric) != structure:
        raise invalid(
            "metric",
            got=str(jax.tree.structure(metric)),
            expected=f"the structure of params, {structure}",
            remedy="Give one scalar or array per parameter: jax.tree.map over params builds it.",
        )
    weights = []
    for (path, leaf), weight in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(metric), strict=True
    ):
        shape = jnp.shape(leaf)
        if not _broadcasts(weight, shape):
            raise invalid(
                f"metric{jax.tree_util.keystr(path)}",
                got=f"shape {jnp.shape(weight)}",
                expected=f"a scalar or an array that broadcasts to {shape}",
                remedy="Its entries weigh those of the parameter.",
            )
        if jnp.issubdtype(jnp.result_type(weight), jnp.complexfloating):
            raise invalid(
                f"metric{jax.tree_util.keystr(path)}",
                got=f"dtype {jnp.result_type(weight)}",
                expected="real numbers",
                remedy="They weigh the entries of real parameters.",
            )
        weight = jnp.asarray(weight, wide_dtype(leaf))
        weights.append(weight if weight.ndim == 0 else jnp.broadcast_to(weight, shape))
    return tuple(weights)


def require_groups(groups: Any) -> None:
    """Raise unless `groups` is None or a function.

    >>> require_groups("layer")
    Traceback (most recent call last):
    ValueError: groups: got 'layer', expected a function from the path of a parameter, ...
    """
    if groups is not None and not callable(groups):
        raise _not_groups(repr(groups))


def _labels(groups: Callable[[str], Hashable] | None, paths: Sequence[str]) -> tuple[Hashable, ...]:
    if groups is None:
        return (None,) * len(paths)
    labels = tuple(groups(path) for path in paths)
    try:
        hash(labels)
    except TypeError:
        raise _not_groups(f"a function that returns {labels[0]!r} for {paths[0]!r}") from None
    return labels


def _not_groups(got: str) -> ValueError:
    return invalid(
        "groups",
        got=got,
        expected="a function from the path of a parameter, such as \"[0]['W']\", to a label that "
        "can be the key of a dictionary",
        remedy="groups=lambda path: path gives one kernel per parameter.",
    )


def _broadcasts(weight: Any, shape: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(jnp.shape(weight), shape) == shape
    except ValueError:
        return False

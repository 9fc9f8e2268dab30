"""Batches of examples: pytrees of arrays whose leading axis is that of the examples."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.errors import invalid
from jaxnn.kernels.mesh_axes import shaped
from jaxnn.types import Array, ArrayLike, PyTree


def num_examples(argument: str, x: Any) -> int:
    """The number N of examples: every leaf of `x` is (N, ...).

    Errors: no leaves, leaves that are no arrays, scalars, leaves with different leading axes.

    >>> num_examples("x1", {"image": jnp.ones((5, 8, 8)), "label": jnp.arange(5)})
    5
    >>> num_examples("x1", [[1.0, 2.0], [3.0, 4.0]])
    Traceback (most recent call last):
    ValueError: x1: got leaves of shapes (), (), (), (), expected ... x1 = jnp.asarray(x1). ...
    """
    leaves = jax.tree.leaves(x)
    try:
        shapes = [jnp.shape(leaf) for leaf in leaves]
    except TypeError:
        got = f"a leaf of type {next(type(a).__name__ for a in leaves if not hasattr(a, 'shape'))}"
        raise _not_a_batch(argument, got) from None
    sizes = {shape[0] if shape else -1 for shape in shapes}
    if len(sizes) != 1 or -1 in sizes:
        shown = ", ".join(map(str, shapes[:8])) + (", ..." if len(shapes) > 8 else "")
        raise _not_a_batch(argument, f"leaves of shapes {shown or 'none'}")
    return sizes.pop()


def _not_a_batch(argument: str, got: str) -> ValueError:
    return invalid(
        argument,
        got=got,
        expected="arrays (N, ...) with the same number N of examples",
        remedy=f"A list of numbers becomes an array with {argument} = jnp.asarray({argument}). "
        "Close over what is not an example, or make it a part of params.",
    )


def abstract(x: PyTree, *leading: int) -> PyTree:
    """The shapes and dtypes of one example of `x`, with the axes `leading` in front.

    >>> abstract({"a": jnp.ones((5, 3))}, 1)
    {'a': ShapeDtypeStruct(shape=(1, 3), dtype=float32)}
    """

    def one(leaf: ArrayLike | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = (*leading, *jnp.shape(leaf)[1:])
        return shaped(shape, _dtype(leaf), leaf)

    return jax.tree.map(one, x)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def alike(x1: PyTree, x2: PyTree) -> bool:
    """Whether the examples of two batches have the same structure, shapes and dtypes.

    >>> alike(jnp.ones((5, 3)), jnp.ones((2, 3))), alike(jnp.ones((5, 3)), jnp.ones((5, 2)))
    (True, False)
    """
    (leaves1, form1), (leaves2, form2) = (jax.tree.flatten(abstract(x)) for x in (x1, x2))
    return form1 == form2 and leaves1 == leaves2


def batched(example: PyTree) -> PyTree:
    """One example as a batch of one.

    >>> batched((jnp.ones(3),))[0].shape
    (1, 3)
    """
    return jax.tree.map(lambda leaf: leaf[None], example)


def only(outputs: PyTree) -> list[Array]:
    """The leaves of what f returned for a batch of one, without the axis of examples.

    >>> only({"mean": jnp.ones((1, 3))})[0].shape
    (3,)
    """
    return [leaf[0] for leaf in jax.tree.leaves(outputs)]


def require_function(argument: str, f: Any) -> None:
    """Raise unless `f` can be called as f(params, x).

    >>> require_function("f", 3)
    Traceback (most recent call last):
    ValueError: f: got 3, expected a function f(params, x). ...
    """
    if callable(f):
        return
    network = callable(getattr(f, "apply", None))
    raise invalid(
        argument,
        got=f"a network, {type(f).__name__}" if network else f"{f!r}",
        expected="a function f(params, x)",
        remedy="Pass its `apply`: kernels.ntk(net.apply, params, x)."
        if network
        else "A layer of jaxnn has it as net.apply, a module of flax as module.apply.",
    )


@contextmanager
def backward() -> Iterator[None]:
    """Within: that a loop or an operation has no backward pass, in words of ours.

    >>> with backward():
    ...     loop = lambda w: jax.lax.while_loop(lambda w: w < 9, lambda w: 2 * w, w)
    ...     jax.grad(loop)(1.0)
    Traceback (most recent call last):
    ValueError: f(params, x): got a derivative with respect to params through a loop of unknown ...
    """
    try:
        yield
    except ValueError as error:
        loop = "Reverse-mode differentiation does not work" in str(error)
        if not loop and "Linearization failed" not in str(error):
            raise
        raise invalid(
            "f(params, x)",
            got="a derivative with respect to params through "
            + ("a loop of unknown length" if loop else "an operation without reverse mode"),
            expected="a function with a backward pass",
            remedy="lax.while_loop, and lax.fori_loop with traced bounds, have none: use lax.scan, "
            "or lax.fori_loop with Python numbers as bounds."
            if loop
            else "lax.reduce_window has one for lax.add, lax.max and lax.min from a constant.",
        ) from error


@contextmanager
def explained(f: Any) -> Iterator[None]:
    """Within: what a module that is no function f(params, x) raises, in words of ours.

    Modules of flax's nnx take x alone, and in training mode write to themselves while they run.
    """
    try:
        yield
    except Exception as error:
        foreign = type(error).__module__.split(".")[0] == "flax"
        misses = isinstance(error, TypeError) and "positional argument" in str(error)
        if not foreign and (inspect.isroutine(f) or not misses):
            raise
        raise invalid(
            "f(params, x)",
            got=f"{type(f).__name__} that raises {type(error).__name__}: {str(error)[:200]}",
            expected="a function f(params, x) that changes nothing",
            remedy="flax.linen: f = module.apply. flax.nnx: call model.eval(), which turns dropout "
            "off and lets normalizing layers use population statistics; then graph, params, rest "
            "= nnx.split(model, nnx.Param, ...) and f = lambda params, x: nnx.merge(graph, params, "
            "rest, copy=True)(x).",
        ) from error

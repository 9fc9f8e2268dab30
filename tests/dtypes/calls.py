"""One call of a public function, with arguments that are drawn in any dtype.

A leaf of `args` is a `Draw`, to be drawn in the dtype that is tested, or an array: one with
fractions takes part in tests of half precision, one of integers (labels, ids) stays as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = {"bool": 1, "uint8": 200, "int8": 100, "int32": 70_000}
"""Two of these entries, or the square of one, are beyond what the dtype holds."""


class Draw(NamedTuple):
    """Numbers to be drawn.

    kind  "data": integers from 0 to LARGEST, or normal numbers; "share": 0 and 1, or numbers
          between; "small": integers to 3; "kernel": symmetric, positive definite
    """

    shape: tuple[int, ...]
    kind: str = "data"


class Call(NamedTuple):
    """A call, and what is expected of it.

    f         of `args`, returns arrays, or a tree of them
    integers  "promoted": the result has fractions; "kept": entries are moved or counted, in any
              dtype; "refused": an error of ours, which says what is expected
    ulps      the error allowed in half precision, in units in the last place of the largest entry
              of a result; None where draws depend on the dtype, or it has no half precision
    slow      whether the call on integers is another program, and takes long to compile
    """

    f: Callable[..., Any]
    args: tuple[Any, ...]
    integers: str = "promoted"
    ulps: float | None = 4.0
    slow: bool = False


def data(*shape: int) -> Draw:
    return Draw(shape)


def share(*shape: int) -> Draw:
    return Draw(shape, "share")


def small(*shape: int) -> Draw:
    return Draw(shape, "small")


def kernel(n: int) -> Draw:
    return Draw((n, n), "kernel")


def floats(*shape: int, seed: int = 7) -> np.ndarray:
    """Numbers that are no integers in any test."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labels(*shape: int, classes: int) -> np.ndarray:
    return np.random.default_rng(8).integers(0, classes, shape).astype(np.int32)


def parameters(net: Any, in_shape: tuple[int, ...]) -> Any:
    """Random parameters of a layer, drawn without compiling its initializers."""
    shapes = jax.eval_shape(lambda key: net.init(key, in_shape)[0], jax.random.key(0))
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda s: 0.5 * rng.normal(size=s.shape).astype(np.float32), shapes)


def layer(net: Any, shape: tuple[int, ...], **options: Any) -> Call:
    """The application of a layer to a batch of data of this shape."""
    key = options.pop("key", None)
    apply = lambda params, x: net.apply(params, x, key=key)
    return Call(apply, (parameters(net, shape[1:]), Draw(shape)), **options)


def drawn(args: Any, dtype: Any, *, seed: int = 0) -> Any:
    """The arguments with every `Draw` in a dtype, and fractions too if it is a half."""
    rng = np.random.default_rng(seed)
    inexact = jnp.issubdtype(dtype, jnp.inexact)

    def leaf(a: Any) -> Any:
        if isinstance(a, Draw):
            return jnp.asarray(_numbers(rng, a, np.dtype(dtype), inexact).astype(dtype))
        if inexact and isinstance(a, np.ndarray) and a.dtype.kind == "f":
            return jnp.asarray(a.astype(dtype))
        return jnp.asarray(a) if isinstance(a, np.ndarray) else a

    return jax.tree.map(leaf, args, is_leaf=lambda a: isinstance(a, Draw))


def _numbers(rng: np.random.Generator, draw: Draw, dtype: np.dtype, inexact: bool) -> np.ndarray:
    shape, kind = draw
    if kind == "kernel":
        n = shape[0]
        if dtype.kind == "b":
            return np.eye(n)
        root = rng.normal(size=shape) if inexact else rng.integers(0, 2, shape)
        return root @ root.T / (n if inexact else 1) + 3 * np.eye(n)
    if kind == "share":
        return rng.uniform(size=shape) if inexact else rng.integers(0, 2, shape)
    if inexact:
        return rng.normal(size=shape)
    largest = LARGEST[dtype.name] if kind == "data" else min(LARGEST[dtype.name], 3)
    return rng.integers(0, largest, shape, endpoint=True)

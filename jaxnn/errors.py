"""One form for every message about bad input: argument, got, expected, remedy."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def invalid(argument: str, *, got: Any, expected: str, remedy: str) -> ValueError:
    """The error to raise for an argument of the wrong value, shape or type.

    >>> raise invalid("slope", got=-1.0, expected="a number ≥ 0", remedy="Pass its magnitude.")
    Traceback (most recent call last):
    ValueError: slope: got -1.0, expected a number ≥ 0. Pass its magnitude.
    """
    return ValueError(f"{argument}: got {got}, expected {expected}. {remedy}")


def concrete(value: Any) -> float | None:
    """The number behind `value`, or None where it is traced, callable or no single number.

    Lets a check apply to constants while traced values (a learning rate under `vmap`) pass.

    >>> concrete(0.5)
    0.5
    >>> concrete(lambda step: 0.5) is None
    True
    """
    try:
        return float(value)
    except (TypeError, ValueError, jax.errors.ConcretizationTypeError):
        return None


def is_traced(tree: Any) -> bool:
    """Whether some array in a pytree has no values yet: inside jit, vmap or grad.

    >>> is_traced({"a": 1.0}), bool(jax.jit(lambda x: is_traced(x))(1.0))
    (False, True)
    """
    try:
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array):
                leaf.is_deleted()  # a question that only an array of values can answer
    except jax.errors.ConcretizationTypeError:
        return True
    return False


def require_between(
    argument: str,
    value: Any,
    low: float,
    high: float,
    *,
    remedy: str,
    low_open: bool = False,
    high_open: bool = True,
) -> None:
    """Raise unless `value` lies in the interval; traced values pass, NaN does not.

    Intervals are closed below and open above unless said otherwise.

    >>> require_between("drop_probability", 0.2, 0.0, 1.0, remedy="")
    >>> require_between("drop_probability", 1.0, 0.0, 1.0, remedy="Keep some units.")
    Traceback (most recent call last):
    ValueError: drop_probability: got 1.0, expected a number in [0, 1). Keep some units.
    """
    number = concrete(value)
    if number is None:
        return
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    if not (above and below):
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise invalid(argument, got=value, expected=f"a number in {interval}", remedy=remedy)


def require_real(argument: str, *arrays: Any) -> None:
    """Raise where an array is complex: an order, a distance to a target or an image is real.

    >>> require_real("rotated(x)", jnp.ones(2, jnp.uint8))
    >>> require_real("rotated(x)", jnp.ones(2, complex))
    Traceback (most recent call last):
    ValueError: rotated(x): got dtype complex64, expected real numbers. ...
    """
    for dtype in (a.dtype if hasattr(a, "dtype") else jnp.asarray(a).dtype for a in arrays):
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise invalid(
                argument,
                got=f"dtype {dtype}",
                expected="real numbers",
                remedy="Pass real and imaginary parts as two arrays, or as two features.",
            )


def takes_keywords(function: Callable) -> bool:
    """Whether a function has **keywords: an update that does can be told value and value_fn.

    >>> takes_keywords(lambda grads, state, **extra: None), takes_keywords(lambda grads: None)
    (True, False)
    """
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def require_optimizer(argument: str, optimizer: Any) -> None:
    """Raise unless it has init and update, as optimizers of jaxnn and of optax do.

    >>> require_optimizer("fit(optimizer)", "adam")
    Traceback (most recent call last):
    ValueError: fit(optimizer): got str without init and update, expected a pair of functions ...
    """
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise invalid(
            argument,
            got=f"{type(optimizer).__name__} without init and update",
            expected="a pair of functions init(params) and update(grads, state, params)",
            remedy="Call its constructor: optimizers.adam(1e-3), optax.adam(1e-3).",
        )


def require_examples(argument: str, data: Any, *, remedy: str) -> int:
    """The number of examples, along the first axis of every leaf; raises where it is not one.

    >>> require_examples("fit(data)", (jnp.ones((5, 2)), jnp.ones(5)), remedy="")
    5
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise invalid(
            argument,
            got=f"shapes {', '.join(map(str, shapes))}" if shapes else "no arrays",
            expected="the same number of examples, at least one, along the first axis of each",
            remedy=remedy,
        )
    ((examples,),) = lengths
    return examples

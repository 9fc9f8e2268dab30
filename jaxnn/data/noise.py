"""Noise as a pure function of a key, and networks that draw it while they are trained.

The wrapped networks are f(params, x, *, key=None): with a key (`fit(..., stochastic=True)`) they
are noisy, without one, as on validation data, they are the network itself. For noise on gradients
see `optimizers.noisy`.
"""

import inspect
import math
from typing import Any

import jax

from jaxnn import tree
from jaxnn.data.augmentation import Augmentation
from jaxnn.errors import require_between
from jaxnn.types import Apply, ArrayLike, Key, PyTree


def perturb(key: Key, x: PyTree, std: ArrayLike) -> PyTree:
    """x + N(0, std²) in every coordinate of an array or a tree: inputs, weights or gradients.

    Errors: a negative std, leaves that are not real floating point.

    Source: Bishop (1995), for inputs; Graves (2011), for weights.

    >>> perturb(jax.random.key(0), {"W": jax.numpy.zeros(2)}, 0.0)
    {'W': Array([0., 0.], dtype=float32)}
    """
    require_between("perturb(std)", std, 0.0, math.inf, remedy="It is a standard deviation.")
    tree.require_differentiable("perturb(x)", x)
    return tree.axpy(std, tree.random_like(key, x), x)


def augmented(f: Apply, augmentation: Augmentation) -> Apply:
    """The network f(params, x) on inputs augmented anew whenever it is given a key.

    Noise on inputs is an augmentation too: `partial(perturb, std=0.1)`.

    >>> from functools import partial
    >>> f = augmented(lambda params, x: params * x, partial(perturb, std=0.1))
    >>> float(f(2.0, 3.0)), bool(f(2.0, jax.numpy.array(3.0), key=jax.random.key(0)) == 6.0)
    (6.0, False)
    """

    def apply(params: PyTree, x: Any, *, key: Key | None = None, **options: Any) -> Any:
        if key is None:
            return f(params, x, **options)
        first, second = jax.random.split(key)
        return f(params, augmentation(first, x), **_key_for(f, second), **options)

    return apply


def noisy_weights(f: Apply, std: ArrayLike) -> Apply:
    """The network f(params, x) at parameters with Gaussian noise whenever it is given a key.

    One draw for the whole batch. The gradient is that at the noisy parameters.

    Errors: a negative std.

    Source: Graves (2011), section 3.

    >>> f = noisy_weights(lambda params, x: params * x, 0.1)
    >>> float(f(2.0, 3.0)), bool(f(jax.numpy.array(2.0), 3.0, key=jax.random.key(0)) == 6.0)
    (6.0, False)
    """
    require_between("noisy_weights(std)", std, 0.0, math.inf, remedy="It is a standard deviation.")

    def apply(params: PyTree, x: Any, *, key: Key | None = None, **options: Any) -> Any:
        if key is None:
            return f(params, x, **options)
        first, second = jax.random.split(key)
        return f(perturb(first, params, std), x, **_key_for(f, second), **options)

    return apply


def _key_for(f: Apply, key: Key) -> dict[str, Key]:
    """The key as a keyword where f, one with dropout or another wrapper, takes it."""
    parameters = inspect.signature(f).parameters
    takes = "key" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {"key": key} if takes else {}

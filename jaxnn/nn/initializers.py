"""Weight initializers: `initializer(key, shape, dtype) -> Array`.

For a weight of shape (..., fan_in, fan_out) the variance of an entry is given in its docstring;
leading axes (the window of a convolution) count in both fans. Normal means normal: not truncated.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnn.errors import require_between
from jaxnn.types import Array, ArrayLike, Key, Shape

Initializer: TypeAlias = Callable[..., Array]

_MAGNITUDE = "Pass the magnitude; signs are symmetric already."


def zeros() -> Initializer:
    """Every entry 0, the usual bias.

    >>> zeros()(jax.random.key(0), (2,), "float32")
    Array([0., 0.], dtype=float32)
    """
    return jax.nn.initializers.zeros


def normal(std: ArrayLike = 1.0) -> Initializer:
    """Independent N(0, std²) entries.

    >>> normal(0.1)(jax.random.key(0), (3, 2), "float32").shape
    (3, 2)
    """
    require_between("std", std, 0.0, float("inf"), remedy=_MAGNITUDE)
    # As an array of the dtype: a NumPy scalar would widen the weights.
    return lambda key, shape, dtype=float: (
        jnp.asarray(std).astype(dtype) * jax.random.normal(key, shape, dtype)
    )


def uniform(limit: float = 1.0) -> Initializer:
    """Independent U(-limit, limit) entries, of variance limit²/3.

    >>> bool((abs(uniform(0.1)(jax.random.key(0), (5,), "float32")) <= 0.1).all())
    True
    """
    require_between("limit", limit, 0.0, float("inf"), remedy=_MAGNITUDE)
    return lambda key, shape, dtype=float: jax.random.uniform(key, shape, dtype, -limit, limit)


def xavier_normal() -> Initializer:
    """N(0, 2/(fan_in + fan_out)), a compromise of forward and backward variance.

    Derived for linear layers; under ReLU the signal halves at every layer.
    Source: Glorot & Bengio (2010), equation 12.

    >>> xavier_normal()(jax.random.key(0), (3, 2), "float32").shape
    (3, 2)
    """
    return jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


def xavier_uniform() -> Initializer:
    """U(-a, a) with a = √(6/(fan_in + fan_out)): the variance of `xavier_normal`.

    Source: Glorot & Bengio (2010), equation 16.

    >>> xavier_uniform()(jax.random.key(0), (3, 2), "float32").shape
    (3, 2)
    """
    return jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def he_normal() -> Initializer:
    """N(0, 2/fan_in), which keeps E‖h‖² through ReLU layers.

    Source: He et al. (2015), equation 10.

    >>> he_normal()(jax.random.key(0), (3, 2), "float32").shape
    (3, 2)
    """
    return jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def he_uniform() -> Initializer:
    """U(-a, a) with a = √(6/fan_in): the variance of `he_normal`.

    >>> he_uniform()(jax.random.key(0), (3, 2), "float32").shape
    (3, 2)
    """
    return jax.nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


def lecun_normal() -> Initializer:
    """N(0, 1/fan_in), which keeps the variance through linear layers.

    Source: LeCun, Bottou, Orr & Müller (1998), equation 16.

    >>> lecun_normal()(jax.random.key(0), (3, 2), "float32").shape
    (3, 2)
    """
    return jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def lecun_uniform() -> Initializer:
    """U(-a, a) with a = √(3/fan_in): the variance of `lecun_normal`.

    >>> lecun_uniform()(jax.random.key(0), (3, 2), "float32").shape
    (3, 2)
    """
    return jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def orthogonal(scale: ArrayLike = 1.0) -> Initializer:
    """A uniformly random matrix with orthonormal rows or columns, whichever are fewer, times scale.

    Leading axes are folded into the rows. Source: Saxe, McClelland & Ganguli (2014).

    >>> W = orthogonal()(jax.random.key(0), (3, 2), "float32")
    >>> bool(abs(W.T @ W - jax.numpy.eye(2)).max() < 1e-6)
    True
    """
    draw = jax.nn.initializers.orthogonal()

    def initializer(key: Key, shape: Shape, dtype: DTypeLike = float) -> Array:
        # There is no QR decomposition in half precision.
        half = jnp.finfo(dtype).bits < 32
        matrix = draw(key, shape, jnp.float32 if half else dtype).astype(dtype)
        return jnp.asarray(scale).astype(dtype) * matrix

    return initializer

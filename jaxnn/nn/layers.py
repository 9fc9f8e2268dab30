"""A network is a `Layer`: how to draw its parameters, apply it, and take its width to infinity."""

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Integer, Num

from jaxnn.errors import invalid, require_between
from jaxnn.nn import limit
from jaxnn.nn.initializers import Initializer
from jaxnn.nn.limit import Kernel
from jaxnn.nn.parametrization import SQRT2, Parametrization, weights
from jaxnn.precision import inexact
from jaxnn.types import Array, ArrayLike, Key, Params, Shape


class Layer(NamedTuple):
    """A network, or a piece of one: three pure functions, and what is to be known of them.

    Where a layer computes with integers or booleans, they become floating-point numbers first, in
    the dtype of its parameters; the tokens of `nn.embedding` stay integers.

    init    (key, in_shape) -> (params, out_shape); shapes have no batch axis
    apply   (params, x, *, key=None, stats=None) -> y; batch axis first
    kernel  Kernel -> Kernel, the limit of infinite width; raises, naming the layer, where there
            is none
    name    what it is called in tables
    parts   the layers it is made of, if it is a `serial` or a `parallel`
    reads_lengths  whether `apply` takes `Sequences` itself. Others get only their values, from
            `serial` and `parallel`, which put the lengths back
    mixes_positions  whether `kernel` needs the covariances between different pixels or times
    join    the function that makes it of its parts: `join(*parts)` is the layer, and of other
            parts one that combines them in the same way

    `key` drives random layers: None is the deterministic network (dropout off). `stats` are the
    population statistics of normalizing layers; None lets them use the batch's own.
    """

    init: Callable[[Key, Shape], tuple[Params, Shape]]
    apply: Callable[..., Any]
    kernel: Callable[[Kernel], Kernel]
    name: str = "layer"
    parts: tuple["Layer", ...] = ()
    reads_lengths: bool = False
    mixes_positions: bool = False
    join: Callable[..., "Layer"] | None = None

    def __repr__(self) -> str:
        """One line: the name, and those of its parts while there is room."""
        if not self.parts:
            return f"<{self.name} layer>"
        names = ", ".join(part.name for part in self.parts)
        shown = names if len(names) <= 80 else f"{names[:80].rsplit(', ', 1)[0]}, ..."
        return f"<{self.name} of {len(self.parts)} layers: {shown}>"


class Sequences(NamedTuple):
    """Sequences of unequal lengths, padded to one: what lies beyond its length is not read.

    Recurrent layers, self-attention and global pools know the lengths; layers that act at every
    time alone need not. A network takes this in place of x, so does `training.fit` as data.
    """

    values: Num[Array, "N T ..."]
    lengths: Integer[Array, "N"]

    def mask(self) -> Bool[Array, "N T"]:
        """Which times are within each sequence."""
        # Not in the dtype of the lengths: there are more times than bytes count.
        times = jnp.arange(self.values.shape[1], dtype=int)
        shape = self.values.shape[:2]
        lengths = jnp.broadcast_to(self.lengths[:, None].astype(int), shape)
        return jnp.broadcast_to(times[None, :], shape) < lengths


def dense(
    features: int,
    *,
    weight_std: ArrayLike = SQRT2,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
) -> Layer:
    """An affine map of the last axis, y = xW + b.

    W is (fan_in, features) and b is (features,), params {"W": W, "b": b}. At initialization
    W_ij ~ N(0, weight_std²/fan_in) and b_j ~ N(0, bias_std²). "standard" stores them so. "ntk"
    stores N(0, 1) numbers ω, β and computes y = (weight_std/√fan_in)·xω + bias_std·β; there a bias
    with bias_std = 0 has no effect, and is left out of the parameters. `weight_init` and
    `bias_init` replace the stored draws: a limit is then no longer known, and `.kernel` raises.

    With bias_std = None there is no bias in either parametrization. weight_std and bias_std may be
    traced, to differentiate kernels in them.

    Errors: features < 1, a negative standard deviation, an unknown parametrization, an input
    without a last axis or of a size other than `init` saw.

    Source: Jacot, Gabriel & Hongler (2018), equation 1 for "ntk".

    >>> params, out_shape = dense(3).init(jax.random.key(0), (5,))
    >>> out_shape, dense(3).apply(params, jnp.ones((2, 5))).shape
    ((3,), (2, 3))
    """
    require_count("dense(features)", features, "It is the number of outputs.")
    own = weights(
        "dense",
        weight_std=weight_std,
        bias_std=bias_std,
        parametrization=parametrization,
        weight_init=weight_init,
        bias_init=bias_init,
    )

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        require_in_shape("dense", in_shape, min_rank=1)
        fan_in = in_shape[-1]
        params = own.draw(key, (fan_in, features), fan_in)
        return params, (*in_shape[:-1], features)

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        weight = params["W"]
        fan_in = weight.shape[0]
        if jnp.ndim(x) < 2 or x.shape[-1] != fan_in:
            raise invalid(
                "dense.apply: x",
                got=f"shape {jnp.shape(x)}",
                expected=f"(N, ..., {fan_in}), batch axis first",
                remedy="Use the in_shape of init, nn.flatten() before dense, or x[None] for one "
                "example.",
            )
        return own.shift(params, inexact(x, weight) @ weight, fan_in)

    def kernel(kernel: Kernel) -> Kernel:
        return limit.affine(kernel, features, weight_std, bias_std, parametrization)

    if own.given:
        remedy = "Leave both None and choose weight_std and bias_std."
        no_limit = limit.no_limit("dense with weight_init or bias_init", remedy)
        return Layer(init, apply, no_limit, "dense")
    return Layer(init, apply, kernel, "dense")


def flatten() -> Layer:
    """All axes but the batch's become one, in C order.

    >>> flatten().apply((), jnp.ones((2, 8, 8))).shape
    (2, 64)
    """
    return stateless(
        "flatten",
        lambda x: x.reshape(x.shape[0], math.prod(x.shape[1:])),
        limit.flatten,
        out_shape=lambda in_shape: (math.prod(in_shape),),
    )


def identity() -> Layer:
    """y = x.

    >>> identity().apply((), jnp.ones((2, 3))).shape
    (2, 3)
    """
    return stateless("identity", lambda x: x, lambda kernel: kernel)


def dropout(
    drop_probability: float, *, kernel: Literal["deterministic", "random"] = "deterministic"
) -> Layer:
    """Units are set to 0 with probability p and the rest divided by 1 - p; off when key is None.

    The division keeps E[y] = x, so that the deterministic network needs no test-time scaling.
    `.kernel` is that of the deterministic network, the identity, or with kernel="random" that of
    the network with a key, whose masks are independent for every example: both kernels of an
    example with itself are divided by 1 - p. The units are no longer Gaussian, so that weights
    have to follow before an activation.

    Errors: drop_probability outside [0, 1), an unknown kernel.

    Source: Srivastava et al. (2014), section 4, in the inverted form.

    >>> half = dropout(0.5)
    >>> half.apply((), jnp.ones((1, 3)))
    Array([[1., 1., 1.]], dtype=float32)
    >>> set(half.apply((), jnp.ones((1, 30)), key=jax.random.key(0)).ravel().tolist())
    {0.0, 2.0}
    """
    require_between(
        "dropout(drop_probability)",
        drop_probability,
        0.0,
        1.0,
        remedy="It is the share of units set to zero, not of those kept.",
    )
    if kernel not in ("deterministic", "random"):
        raise invalid(
            "dropout(kernel)",
            got=repr(kernel),
            expected="'deterministic' or 'random'",
            remedy="'deterministic' is the limit with key=None, 'random' that with a key.",
        )
    keep_probability = 1.0 - drop_probability
    dropped = partial(limit.drop, keep_probability=keep_probability)

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        if key is None:
            return x
        x = inexact(x)
        kept = jax.random.bernoulli(key, keep_probability, x.shape)
        return jnp.where(kept, x / keep_probability, jnp.zeros_like(x))

    limit_of = dropped if kernel == "random" else lambda kernel: kernel
    return stateless("dropout", lambda x: x, limit_of)._replace(apply=apply)


def stateless(
    name: str,
    function: Callable[[Array], Array],
    kernel: Callable[[Kernel], Kernel],
    *,
    out_shape: Callable[[Shape], Shape] = lambda in_shape: in_shape,
) -> Layer:
    """The layer of a function without parameters; its params are ().

    >>> stateless("double", lambda x: 2 * x, lambda k: k).apply((), jnp.ones((1, 2)))
    Array([[2., 2.]], dtype=float32)
    """

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        require_in_shape(name, in_shape, min_rank=0)
        return (), out_shape(tuple(in_shape))

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        return function(x)

    return Layer(init, apply, kernel, name)


def require_in_shape(layer: str, in_shape: Shape, *, min_rank: int) -> None:
    """Raise unless `in_shape` is a tuple of at least `min_rank` integers ≥ 1.

    >>> require_in_shape("dense", (784,), min_rank=1)
    """
    fits = (
        isinstance(in_shape, tuple)
        and len(in_shape) >= min_rank
        and all(isinstance(n, Integral) and n >= 1 for n in in_shape)
    )
    if not fits:
        raise invalid(
            f"{layer}.init: in_shape",
            got=repr(in_shape),
            expected=f"a tuple of at least {min_rank} integers ≥ 1, without the batch axis",
            remedy="For data x pass x.shape[1:].",
        )


def require_count(argument: str, value: int, remedy: str) -> None:
    """Raise unless `value` is an integer ≥ 1.

    >>> require_count("dense(features)", 512, "It is the number of outputs.")
    """
    if not isinstance(value, Integral) or value < 1:
        raise invalid(argument, got=value, expected="an integer ≥ 1", remedy=remedy)

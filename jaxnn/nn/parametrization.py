"""How the weights of a layer are drawn, stored and scaled: the two parametrizations."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.errors import concrete, invalid, require_between
from jaxnn.nn.initializers import Initializer, normal, zeros
from jaxnn.types import Array, ArrayLike, Key, Params, Shape

Parametrization = Literal["standard", "ntk"]
SQRT2 = math.sqrt(2.0)  # the weight_std that keeps the second moment of ReLU networks


class Weights(NamedTuple):
    """What a layer does with its W and b besides the linear map itself.

    draw   (key, weight_shape, fan_in) -> {"W": W, "b": b}, b of the size of W's last axis
    shift  (params, xW, fan_in) -> y: the scales of the parametrization, and the bias
    given  whether initializers replace the stored draws, so that no limit is known
    """

    draw: Callable[[Key, Shape, int], Params]
    shift: Callable[[Params, Array, int], Array]
    given: bool


def weights(
    layer: str,
    *,
    weight_std: ArrayLike,
    bias_std: ArrayLike | None,
    parametrization: Parametrization,
    weight_init: Initializer | None,
    bias_init: Initializer | None,
) -> Weights:
    """W_ij ~ N(0, weight_std²/fan_in) and b_j ~ N(0, bias_std²), in one of two parametrizations.

    "standard" stores them so. "ntk" stores N(0, 1) numbers ω, β and computes
    y = (weight_std/√fan_in)·xω + bias_std·β; there a bias with bias_std = 0 has no effect, and is
    left out. With bias_std = None neither has a bias. `weight_init` and `bias_init` replace the
    stored draws. The standard deviations may be traced by `jit`, `vmap` or `grad`; a traced
    bias_std counts as not 0. `layer` appears in errors.

    Errors: a negative standard deviation, an unknown parametrization, bias_init without a bias.

    >>> ntk = weights("dense", weight_std=1.0, bias_std=0.5, parametrization="ntk",
    ...               weight_init=None, bias_init=zeros())
    >>> ntk.draw(jax.random.key(0), (4, 2), 4)["b"]
    Array([0., 0.], dtype=float32)
    """
    if parametrization not in ("standard", "ntk"):
        raise invalid(
            f"{layer}(parametrization)",
            got=repr(parametrization),
            expected="'standard' or 'ntk'",
            remedy="'ntk' keeps the tangent kernel finite as the width grows.",
        )
    for name, std in (("weight_std", weight_std), ("bias_std", bias_std)):
        require_between(
            f"{layer}({name})", 0.0 if std is None else std, 0.0, math.inf,
            remedy="It is a standard deviation.",
        )  # fmt: skip
    if bias_std is None and bias_init is not None:
        raise invalid(
            f"{layer}(bias_init)",
            got="an initializer with bias_std=None",
            expected="None, as there is no bias",
            remedy="Leave bias_std out.",
        )
    scaled, bias_scale = parametrization == "ntk", 0.0 if bias_std is None else bias_std
    with_bias = bias_std is not None and (
        not scaled or concrete(bias_std) != 0.0 or bias_init is not None
    )

    def draw(key: Key, shape: Shape, fan_in: int) -> Params:
        weight_key, bias_key = jax.random.split(key)
        draw_weight = weight_init or normal(1.0 if scaled else weight_std / math.sqrt(fan_in))
        params = {"W": draw_weight(weight_key, shape, default_float())}
        if with_bias:
            std = 1.0 if scaled else bias_scale
            draw_bias = bias_init or (zeros() if concrete(std) == 0.0 else normal(std))
            params["b"] = draw_bias(bias_key, shape[-1:], default_float())
        return params

    def shift(params: Params, y: Array, fan_in: int) -> Array:
        if scaled:
            y = like(weight_std, y) / math.sqrt(fan_in) * y
        if "b" in params:
            # Not by promotion of ranks: (features,) against (N, ..., features).
            bias = jnp.broadcast_to(params["b"], y.shape)
            y = y + (like(bias_scale, bias) * bias if scaled else bias)
        return y

    return Weights(draw, shift, weight_init is not None or bias_init is not None)


def like(std: ArrayLike, x: Array) -> Any:
    """A standard deviation as a Python number, or as an array of the dtype of x.

    >>> like(0.5, jnp.ones(2)), like(jnp.float32(0.5), jnp.ones(2, "bfloat16")).dtype
    (0.5, dtype(bfloat16))
    """
    return std if isinstance(std, (int, float)) else jnp.asarray(std).astype(x.dtype)


def default_float() -> jnp.dtype:
    """The dtype that JAX gives to Python floats: float32, or float64 where that is enabled.

    >>> default_float()
    dtype('float32')
    """
    return jnp.zeros(()).dtype

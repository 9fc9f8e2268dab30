"""How the weights of a layer are drawn, stored and scaled: the two parametrizations."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.errors import invalid, require_between
from jaxnn.nn.initializers import Initializer, normal, zeros
from jaxnn.types import Array, Key, Params, Shape

Parametrization = Literal["standard", "ntk"]


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
    weight_std: float,
    bias_std: float,
    parametrization: Parametrization,
    weight_init: Initializer | None,
    bias_init: Initializer | None,
) -> Weights:
    """W_ij ~ N(0, weight_std²/fan_in) and b_j ~ N(0, bias_std²), in one of two parametrizations.

    "standard" stores them so. "ntk" stores N(0, 1) numbers ω, β and computes
    y = (weight_std/√fan_in)·xω + bias_std·β; there a bias with bias_std = 0 has no effect, and is
    left out. `weight_init` and `bias_init` replace the stored draws. `layer` appears in errors.

    Errors: a negative standard deviation, an unknown parametrization.

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
            f"{layer}({name})", std, 0.0, math.inf, remedy="It is a standard deviation."
        )
    scaled = parametrization == "ntk"
    with_bias = not scaled or bias_std != 0.0 or bias_init is not None

    def draw(key: Key, shape: Shape, fan_in: int) -> Params:
        weight_key, bias_key = jax.random.split(key)
        draw_weight = weight_init or normal(1.0 if scaled else weight_std / math.sqrt(fan_in))
        params = {"W": draw_weight(weight_key, shape, default_float())}
        if with_bias:
            std = 1.0 if scaled else bias_std
            draw_bias = bias_init or (normal(std) if std else zeros())
            params["b"] = draw_bias(bias_key, shape[-1:], default_float())
        return params

    def shift(params: Params, y: Array, fan_in: int) -> Array:
        if scaled:
            y = weight_std / math.sqrt(fan_in) * y
        if "b" in params:
            # Not by promotion of ranks: (features,) against (N, ..., features).
            bias = jnp.broadcast_to(params["b"], y.shape)
            y = y + (bias_std * bias if scaled else bias)
        return y

    return Weights(draw, shift, weight_init is not None or bias_init is not None)


def default_float() -> jnp.dtype:
    """The dtype that JAX gives to Python floats: float32, or float64 where that is enabled.

    >>> default_float()
    dtype('float32')
    """
    return jnp.zeros(()).dtype

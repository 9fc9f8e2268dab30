"""Convolutions over one to three spatial axes, channels last, and their transposes."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxnn.errors import invalid
from jaxnn.nn import limit
from jaxnn.nn.initializers import Initializer
from jaxnn.nn.layers import Layer, require_count, require_in_shape
from jaxnn.nn.limit import Kernel
from jaxnn.nn.parametrization import SQRT2, Parametrization, weights
from jaxnn.nn.windows import (
    Padding,
    covered,
    enlarged,
    places,
    require_spatial,
    windows,
    wrap,
    wrap_for,
)
from jaxnn.precision import common
from jaxnn.types import Array, ArrayLike, Key, Params, Shape

_AXES = "HWD"


def conv(
    features: int,
    window: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    padding: Padding = "SAME",
    dilation: Sequence[int] | None = None,
    groups: int = 1,
    weight_std: ArrayLike = SQRT2,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
) -> Layer:
    """A convolution (as all networks do, without flipping the window), channels last.

        y[n, i, c] = Σ_a Σ_c' W[a, c', c] x[n, strides·i + dilation·a, c'] + b[c]

    `window` has one size for each of 1 to 3 spatial axes; x is (N, *spatial, C), W is
    (*window, C/groups, features). The borders are those of `padding`: "SAME" pads with zeros to
    ⌈n/stride⌉ outputs, "VALID" does not pad, "CIRCULAR" wraps around, so that shifts of the input
    shift the output exactly. With groups, channels and features are cut into as many parts, and a
    part of the features reads its part of the channels: groups = C is a depthwise convolution.
    The other options are those of `nn.dense`, with fan_in = Π window · C/groups.

    Errors: sizes that are not integers ≥ 1, one per axis; groups that do not divide channels and
    features; a window larger than a "VALID" input; an input of a shape other than `init` saw.

    Source: LeCun, Bottou, Bengio & Haffner (1998), section II.A.

    >>> import jax
    >>> layer = conv(6, (5, 5), padding="VALID")
    >>> params, out_shape = layer.init(jax.random.key(0), (28, 28, 1))
    >>> out_shape, params["W"].shape
    ((24, 24, 6), (5, 5, 1, 6))
    """
    require_count("conv(features)", features, "It is the number of output channels.")
    require_count("conv(groups)", groups, "It is the number of parts of the channels.")
    own = windows(
        "conv", window, strides=strides, padding=padding, dilation=dilation, max_axes=len(_AXES)
    )
    affine = weights(
        "conv",
        weight_std=weight_std,
        bias_std=bias_std,
        parametrization=parametrization,
        weight_init=weight_init,
        bias_init=bias_init,
    )
    numbers = _dimension_numbers(len(own.size))

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        _require_spatial_shape("conv", in_shape, len(own.size))
        channels = in_shape[-1]
        if channels % groups or features % groups:
            raise invalid(
                "conv(groups)",
                got=groups,
                expected=f"a divisor of {channels} channels and of {features} features",
                remedy="Every group has equally many of both.",
            )
        fan_in = math.prod(own.size) * (channels // groups)
        params = affine.draw(key, (*own.size, channels // groups, features), fan_in)
        return params, (*places("conv.init", own, tuple(in_shape[:-1])), features)

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        weight = params["W"]
        require_spatial("conv", x, len(own.size), weight.shape[-2] * groups)
        places("conv.apply", own, x.shape[1:-1])
        x, weight = common(x, weight)  # unlike `@`, `lax` does not promote
        circular = own.padding == "CIRCULAR"
        y = lax.conv_general_dilated(
            wrap_for(own, x) if circular else x,
            weight,
            own.strides,
            "VALID" if circular else own.padding,
            rhs_dilation=own.dilation,
            dimension_numbers=numbers,
            feature_group_count=groups,
        )
        return affine.shift(params, y, math.prod(weight.shape[:-1]))

    def kernel(kernel: Kernel) -> Kernel:
        below = limit.patches(kernel, own)
        return limit.affine(below, features, weight_std, bias_std, parametrization)

    if groups > 1:
        no_limit = limit.no_limit("conv with groups", "Use groups=1.")
        return Layer(init, apply, no_limit, "conv")
    if affine.given:
        remedy = "Leave both None and choose weight_std and bias_std."
        no_limit = limit.no_limit("conv with weight_init or bias_init", remedy)
        return Layer(init, apply, no_limit, "conv")
    return Layer(init, apply, kernel, "conv")


def conv_transpose(
    features: int,
    window: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    padding: Padding = "SAME",
    dilation: Sequence[int] | None = None,
    weight_std: ArrayLike = SQRT2,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
) -> Layer:
    """A convolution of the input with stride - 1 zeros between its entries, which enlarges it.

        y[n, j, c] = Σ_{i, a: strides·i + dilation·(k - 1 - a) = j + border} W[a, c', c] x[n, i, c']

    It is the transpose of `nn.conv` (of its linear part), with the window flipped and the roles of
    channels and features exchanged. Along an axis of n entries it has n·stride outputs with "SAME"
    and "CIRCULAR" padding, and n·stride + max(covered - stride, 0) with "VALID". x is
    (N, *spatial, C), W is (*window, C, features). The other options are those of `nn.dense`, with
    fan_in = Π window · C, although an output reads only about 1/Π strides of these entries.

    Errors: as for `nn.conv`.

    Source: Zeiler et al. (2010); Dumoulin & Visin (2016), chapter 4.

    >>> import jax
    >>> layer = conv_transpose(8, (4, 4), strides=(2, 2))
    >>> layer.init(jax.random.key(0), (7, 7, 16))[1]
    (14, 14, 8)
    """
    name = "conv_transpose"
    require_count(f"{name}(features)", features, "It is the number of output channels.")
    own = windows(
        name, window, strides=strides, padding=padding, dilation=dilation, max_axes=len(_AXES)
    )
    affine = weights(
        name,
        weight_std=weight_std,
        bias_std=bias_std,
        parametrization=parametrization,
        weight_init=weight_init,
        bias_init=bias_init,
    )
    numbers = _dimension_numbers(len(own.size))
    reach = covered(own)

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        _require_spatial_shape(name, in_shape, len(own.size))
        channels = in_shape[-1]
        fan_in = math.prod(own.size) * channels
        params = affine.draw(key, (*own.size, channels, features), fan_in)
        return params, (*enlarged(own, tuple(in_shape[:-1])), features)

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        weight = params["W"]
        require_spatial(name, x, len(own.size), weight.shape[-2])
        x, weight = common(x, weight)  # unlike `@`, `lax` does not promote
        if own.padding == "CIRCULAR":
            zero = jnp.zeros((), x.dtype)
            between = [(0, 0, 0), *((0, s - 1, s - 1) for s in own.strides), (0, 0, 0)]
            x = lax.pad(x, zero, between)
            x = wrap(x, [k // 2 for k in reach], [(k - 1) // 2 for k in reach])
            y = lax.conv_general_dilated(
                x, weight, (1,) * len(reach), "VALID",
                rhs_dilation=own.dilation, dimension_numbers=numbers,
            )  # fmt: skip
        else:
            y = lax.conv_transpose(
                x, weight, own.strides, own.padding,
                rhs_dilation=own.dilation, dimension_numbers=numbers,
            )  # fmt: skip
        return affine.shift(params, y, math.prod(weight.shape[:-1]))

    def kernel(kernel: Kernel) -> Kernel:
        below = limit.transposed_patches(kernel, own)
        return limit.affine(below, features, weight_std, bias_std, parametrization)

    if affine.given:
        remedy = "Leave both None and choose weight_std and bias_std."
        no_limit = limit.no_limit(f"{name} with weight_init or bias_init", remedy)
        return Layer(init, apply, no_limit, name)
    return Layer(init, apply, kernel, name)


def _dimension_numbers(axes: int) -> tuple[str, str, str]:
    spatial = _AXES[:axes]
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


def _require_spatial_shape(layer: str, in_shape: Shape, axes: int) -> None:
    require_in_shape(layer, in_shape, min_rank=axes + 1)
    if len(in_shape) != axes + 1:
        raise invalid(
            f"{layer}.init: in_shape",
            got=repr(in_shape),
            expected=f"{axes} spatial axes, as the window has, and the channels",
            remedy="Give the window a size for every spatial axis.",
        )

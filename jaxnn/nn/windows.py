"""Windows that slide over the spatial axes of N ... C data: sizes, strides, borders.

Along an axis of n entries a window of k of them, `dilation` apart, covers (k - 1)·dilation + 1. It
starts at every stride-th place. "VALID" takes the places where it fits, ⌊(n - covered)/stride⌋ + 1;
"SAME" pads with zeros (a maximum: with -∞) to ⌈n/stride⌉ places; "CIRCULAR" wraps around instead.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp

from jaxnn.errors import invalid
from jaxnn.types import Array, Shape

Padding: TypeAlias = Literal["SAME", "VALID", "CIRCULAR"]


class Windows(NamedTuple):
    """Windows of one layer: a size, a stride and a dilation per spatial axis, and the padding."""

    size: Shape
    strides: Shape
    dilation: Shape
    padding: Padding


def windows(
    layer: str,
    size: Sequence[int],
    *,
    strides: Sequence[int] | None,
    padding: Padding,
    dilation: Sequence[int] | None = None,
    max_axes: int | None = None,
) -> Windows:
    """The windows of these options; strides and dilation are 1 unless given.

    Errors: anything but integers ≥ 1, one per axis; an unknown padding; more axes than `max_axes`.

    >>> windows("conv", (3, 3), strides=(2, 2), padding="SAME").dilation
    (1, 1)
    """
    size = _integers(f"{layer}(window)", size, None)
    if not size or (max_axes is not None and len(size) > max_axes):
        limit = "at least 1" if max_axes is None else f"1 to {max_axes}"
        raise invalid(
            f"{layer}(window)",
            got=f"{len(size)} sizes",
            expected=limit,
            remedy="Give one for each spatial axis: (3, 3) for images.",
        )
    if padding not in ("SAME", "VALID", "CIRCULAR"):
        raise invalid(
            f"{layer}(padding)",
            got=repr(padding),
            expected="'SAME', 'VALID' or 'CIRCULAR'",
            remedy="'SAME' pads with zeros, 'VALID' does not pad, 'CIRCULAR' wraps around.",
        )
    ones = (1,) * len(size)
    return Windows(
        size,
        ones if strides is None else _integers(f"{layer}(strides)", strides, len(size)),
        ones if dilation is None else _integers(f"{layer}(dilation)", dilation, len(size)),
        padding,
    )


def covered(windows: Windows) -> Shape:
    """How many entries a window reaches over along every axis, holes of the dilation included.

    >>> covered(windows("conv", (3, 2), strides=None, dilation=(2, 1), padding="SAME"))
    (5, 2)
    """
    return tuple((k - 1) * d + 1 for k, d in zip(windows.size, windows.dilation, strict=True))


def places(layer: str, windows: Windows, shape: Shape) -> Shape:
    """How often the windows fit into spatial axes of this shape.

    Errors: none at all along an axis, with VALID padding.

    >>> places("conv", windows("conv", (3, 3), strides=(2, 1), padding="VALID"), (8, 8))
    (3, 6)
    """
    if windows.padding != "VALID":
        return tuple(-(-n // s) for n, s in zip(shape, windows.strides, strict=True))
    reach = covered(windows)
    if any(n < k for n, k in zip(shape, reach, strict=True)):
        raise invalid(
            f"{layer}: the spatial axes of x",
            got=f"shape {shape}",
            expected=f"at least {reach}, what a window covers",
            remedy="Use smaller windows or padding='SAME'.",
        )
    return tuple((n - k) // s + 1 for n, k, s in zip(shape, reach, windows.strides, strict=True))


def enlarged(windows: Windows, shape: Shape) -> Shape:
    """The spatial axes of a transposed convolution's output, of an input of this shape.

    >>> enlarged(windows("conv_transpose", (4,), strides=(2,), padding="VALID"), (7,))
    (16,)
    """
    valid = windows.padding == "VALID"
    axes = zip(shape, windows.strides, covered(windows), strict=True)
    return tuple(n * s + (max(k - s, 0) if valid else 0) for n, s, k in axes)


def wrap(x: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """`x` continued periodically along its spatial axes, the axes between the first and the last.

    >>> wrap(jnp.arange(3.0)[None, :, None], (1,), (2,))[0, :, 0]
    Array([2., 0., 1., 2., 0., 1.], dtype=float32)
    """
    spatial = list(zip(before, after, strict=True))
    return jnp.pad(x, [(0, 0), *spatial, (0, 0)], mode="wrap")


def wrap_for(windows: Windows, x: Array) -> Array:
    """`x` continued so far that "VALID" windows, centered, see a circle.

    >>> circle = windows("conv", (3,), strides=None, padding="CIRCULAR")
    >>> wrap_for(circle, jnp.arange(4.0)[None, :, None])[0, :, 0]
    Array([3., 0., 1., 2., 3., 0.], dtype=float32)
    """
    reach = covered(windows)
    return wrap(x, [(k - 1) // 2 for k in reach], [k // 2 for k in reach])


def require_spatial(layer: str, x: Array, axes: int, channels: int | None) -> None:
    """Raise unless `x` has a batch axis, this many spatial axes and a channel axis.

    >>> require_spatial("conv", jnp.ones((2, 8, 8, 3)), 2, 3)
    """
    fits = jnp.ndim(x) == axes + 2 and channels in (None, x.shape[-1])
    if not fits:
        last = "C" if channels is None else channels
        raise invalid(
            f"{layer}.apply: x",
            got=f"shape {jnp.shape(x)}",
            expected=f"(N, {axes} spatial axes, {last}), batch axis first, channels last",
            remedy="Use the in_shape of init; add a channel axis by x[..., None].",
        )


def _integers(argument: str, values: Sequence[int], count: int | None) -> Shape:
    listed = isinstance(values, (tuple, list))
    fits = listed and all(isinstance(n, Integral) and n >= 1 for n in values)
    if not fits or count not in (None, len(values)):
        raise invalid(
            argument,
            got=repr(values),
            expected=f"a tuple of {'' if count is None else f'{count} '}integers ≥ 1",
            remedy="Give one for each spatial axis: (3, 3) for images.",
        )
    return tuple(int(n) for n in values)

"""Images changed at random, as pure functions of a key: crop, flip, rotate, warp.

An augmentation is a function (key, x) -> x of a batch of images (N, height, width, channels), every
image by its own draw. Options are set by `functools.partial`, and `compose` does several in turn.
Angles are in radians, counterclockwise with the first row on top; lengths are in pixels.

Augmentations that move whole pixels keep the dtype of the images. Those that interpolate promote
integers to floating point, and compute places in at least float32 (see `jaxnn.precision`).
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid, require_between, require_real
from jaxnn.precision import inexact_dtype, wide, wide_dtype
from jaxnn.types import Array, ArrayLike, Key

Augmentation: TypeAlias = Callable[[Key, Array], Array]

Padding: TypeAlias = Literal["constant", "edge", "reflect", "wrap"]


def compose(*augmentations: Augmentation) -> Augmentation:
    """The augmentations in turn, each with a key of its own.

    >>> from functools import partial
    >>> augment = compose(flip, partial(crop, size=(6, 6), padding=1))
    >>> augment(jax.random.key(0), jnp.ones((4, 8, 8, 3))).shape
    (4, 6, 6, 3)
    """

    def composed(key: Key, x: Array) -> Array:
        keys = jax.random.split(key, max(len(augmentations), 1))
        for augmentation, part in zip(augmentations, keys, strict=False):
            x = augmentation(part, x)
        return x

    return composed


def flip(
    key: Key,
    x: Shaped[ArrayLike, "N H W C"],
    *,
    axis: Literal["horizontal", "vertical"] = "horizontal",
    probability: ArrayLike = 0.5,
) -> Shaped[Array, "N H W C"]:
    """Each image or, with a given probability, its mirror image.

    "horizontal" swaps left and right, "vertical" top and bottom.

    Errors: another axis, a probability outside [0, 1].

    >>> flip(jax.random.key(0), jnp.array([[[[1.0], [2.0]]]]), probability=1.0).ravel()
    Array([2., 1.], dtype=float32)
    """
    if axis not in ("horizontal", "vertical"):
        raise invalid(
            "flip(axis)",
            got=repr(axis),
            expected="'horizontal' or 'vertical'",
            remedy="Compose two flips for both.",
        )
    require_between(
        "flip(probability)", probability, 0.0, 1.0, high_open=False, remedy="0.5 is usual."
    )
    x = jnp.asarray(x)
    chosen = jax.random.bernoulli(key, probability, x.shape[:1])
    mirrored = jnp.flip(x, 2 if axis == "horizontal" else 1)
    return jnp.where(chosen[:, None, None, None], mirrored, x)


def crop(
    key: Key,
    x: Shaped[ArrayLike, "N H W C"],
    size: tuple[int, int],
    *,
    padding: int = 0,
    mode: Padding = "constant",
) -> Shaped[Array, "N h w C"]:
    """A window of each image at a random place, all places being equally likely.

    The image is first padded by so many pixels on every side, with 0 or as `mode` says (of
    `jnp.pad`): size=(H, W) then shifts it by up to `padding` pixels.

    Errors: a size below 1 or beyond the padded image, a negative padding.

    Source: He et al. (2016), section 4.2, with padding=4.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> crop(jax.random.key(0), x, (2, 3)).shape
    (1, 2, 3, 1)
    """
    x = jnp.asarray(x)
    n, height, width, channels = x.shape
    places = tuple(
        whole + 2 * padding - part + 1 for whole, part in zip((height, width), size, strict=True)
    )
    if padding < 0 or min(size) < 1 or min(places) < 1:
        raise invalid(
            "crop(size, padding)",
            got=f"{size}, {padding}",
            expected=f"sizes from 1 to ({height}, {width}) + 2·padding, and padding ≥ 0",
            remedy="size is (height, width) of what is cut out.",
        )
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, border, mode=mode)
    limits = jnp.broadcast_to(jnp.array([places], jnp.int32), (n, 2))
    starts = jax.random.randint(key, (n, 2), 0, limits)

    def window(image: Array, start: Array) -> Array:
        corner = (start[0], start[1], jnp.zeros((), start.dtype))
        return jax.lax.dynamic_slice(image, corner, (*size, channels))

    return jax.vmap(window)(x, starts)


def rotate(
    key: Key, x: Shaped[ArrayLike, "N H W C"], max_angle: ArrayLike, *, fill: ArrayLike = 0.0
) -> Float[Array, "N H W C"]:
    """Each image turned about its center by an angle from the uniform distribution on ±max_angle.

    Errors: a negative angle.

    >>> rotate(jax.random.key(0), jnp.ones((2, 5, 5, 1)), 0.3).shape
    (2, 5, 5, 1)
    """
    require_between("rotate(max_angle)", max_angle, 0.0, math.inf, remedy="It is in radians.")
    require_real("rotate(x)", x)
    dtype = wide_dtype(x)
    limit = jnp.asarray(max_angle, dtype)
    angles = jax.random.uniform(key, jnp.shape(x)[:1], dtype, -limit, limit)
    return rotated(x, angles, fill=fill)


def rotated(
    x: Shaped[ArrayLike, "N H W C"], angles: Shaped[ArrayLike, "N"], *, fill: ArrayLike = 0.0
) -> Float[Array, "N H W C"]:
    """Each image turned counterclockwise about its center by its angle, bilinearly.

    >>> rotated(jnp.array([[[[1.0], [2.0]], [[3.0], [4.0]]]]), jnp.array([jnp.pi / 2])).ravel()
    Array([2., 4., 1., 3.], dtype=float32)
    """
    require_real("rotated(x, angles)", x, angles)
    n, height, width, _ = jnp.shape(x)
    if jnp.shape(angles) != (n,):
        raise invalid(
            "rotated(angles)",
            got=f"shape {jnp.shape(angles)}",
            expected=f"({n},), one angle for each image",
            remedy="Use jnp.full(len(x), angle) for one angle.",
        )
    dtype = wide_dtype(x)
    rows = jnp.arange(height, dtype=dtype) - 0.5 * (height - 1)
    columns = jnp.arange(width, dtype=dtype) - 0.5 * (width - 1)
    di, dj = jnp.meshgrid(rows, columns, indexing="ij")

    def field(angle: Array) -> Array:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([di * cos + dj * sin - di, dj * cos - di * sin - dj], axis=-1)

    return displace(x, jax.vmap(field)(jnp.asarray(angles, dtype)), fill=fill)


def warp(
    key: Key,
    x: Shaped[ArrayLike, "N H W C"],
    *,
    displacement: ArrayLike,
    smoothness: float,
    fill: ArrayLike = 0.0,
) -> Float[Array, "N H W C"]:
    """Each image distorted by a smooth random field, as handwriting is from person to person.

        y(p) = x(p + u(p)),  u(p) ~ N(0, displacement²) in either direction,
        correlated as exp(-|p - q|²/4·smoothness²) away from the borders

    Both are in pixels. The field is white noise under a Gaussian of width `smoothness`, scaled to
    the same size everywhere; in the paper the noise is uniform, and the scale that of the kernel.

    Errors: a negative displacement, a smoothness ≤ 0.

    Source: Simard, Steinkraus & Platt (2003), section 2.

    >>> warp(jax.random.key(0), jnp.ones((2, 8, 8, 1)), displacement=1.0, smoothness=3.0).shape
    (2, 8, 8, 1)
    """
    remedy = "It is a length in pixels."
    require_between("warp(displacement)", displacement, 0.0, math.inf, remedy=remedy)
    require_between("warp(smoothness)", smoothness, 0.0, math.inf, low_open=True, remedy=remedy)
    require_real("warp(x)", x)
    n, height, width, _ = jnp.shape(x)
    dtype = wide_dtype(x)

    def smoothing(size: int) -> Array:
        place = jnp.arange(size, dtype=dtype)
        distance = place[:, None] - place[None, :]
        kernel = jnp.exp(-0.5 * (distance / smoothness) ** 2)
        return kernel / jnp.linalg.norm(kernel, axis=1, keepdims=True)

    noise = jax.random.normal(key, (n, height, width, 2), dtype)
    field = jnp.einsum("ik,nklc,jl->nijc", smoothing(height), noise, smoothing(width))
    return displace(x, jnp.asarray(displacement, dtype) * field, fill=fill)


def displace(
    x: Shaped[ArrayLike, "N H W C"], field: Shaped[ArrayLike, "N H W 2"], *, fill: ArrayLike = 0.0
) -> Float[Array, "N H W C"]:
    """y(p) = x(p + u(p)): every pixel fetched from where the field points, bilinearly.

    `field` holds rows (down) and columns (right) to go from a pixel. Beyond its border an image
    is `fill`.

    Errors: a field of another shape, complex numbers.

    >>> x = jnp.array([[[[1.0], [3.0]]]])
    >>> right_by_half = jnp.full((1, 1, 2, 2), jnp.array([0.0, 0.5]))
    >>> displace(x, right_by_half).ravel()
    Array([2. , 1.5], dtype=float32)
    """
    require_real("displace(x, field)", x, field)
    images = wide(x)
    n, height, width, _ = images.shape
    if jnp.shape(field) != (n, height, width, 2):
        raise invalid(
            "displace(field)",
            got=f"shape {jnp.shape(field)}",
            expected=f"{(n, height, width, 2)} for images of shape {images.shape}",
            remedy="Give every pixel of every image the rows and columns to go.",
        )
    dtype = images.dtype
    background = jnp.asarray(fill, dtype)
    grid = jnp.meshgrid(
        jnp.arange(height, dtype=dtype), jnp.arange(width, dtype=dtype), indexing="ij"
    )

    def fetched(image: Array, u: Array) -> Array:
        row, column = grid[0] + u[..., 0], grid[1] + u[..., 1]
        total = jnp.zeros_like(image)
        for i in (jnp.floor(row), jnp.floor(row) + 1.0):
            for j in (jnp.floor(column), jnp.floor(column) + 1.0):
                inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
                index = (
                    jnp.clip(i, 0, height - 1).astype(jnp.int32),
                    jnp.clip(j, 0, width - 1).astype(jnp.int32),
                )
                weight = (1.0 - jnp.abs(row - i)) * (1.0 - jnp.abs(column - j))
                pixel = jnp.where(inside[..., None], image[index], background)
                total = total + weight[..., None] * pixel
        return total

    return jax.vmap(fetched)(images, jnp.asarray(field, dtype)).astype(inexact_dtype(x))

"""Where the entries of a kernel are: pixels of images, times of sequences, or at no place.

Kernels have the axes (*positions, N1, N2). Positions come first, so that sums over windows add
whole blocks of pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.nn.windows import Windows, covered, enlarged, places
from jaxnn.types import Array, Shape


@dataclass(frozen=True)
class Positions:
    """The spatial axes S of features, and which pairs of positions a kernel has entries for.

    shape    sizes of the spatial axes; () for flat features
    crossed  entries for any two positions, axes (*S, *S); else for equal ones, axes (*S)
    """

    shape: Shape = ()
    crossed: bool = False

    @property
    def axes(self) -> Shape:
        """The sizes of a kernel's axes before those of the pairs.

        >>> Positions((8, 8), crossed=True).axes
        (8, 8, 8, 8)
        """
        return self.shape * 2 if self.crossed else self.shape

    def covariance(self, x1: Array, x2: Array) -> Array:
        """The mean over channels of the products of x1 (N1, *S, C) and x2 (N2, *S, C)."""
        (n1, *_, channels), n2, size = x1.shape, x2.shape[0], math.prod(self.shape)
        x1, x2 = x1.reshape(n1, size, channels), x2.reshape(n2, size, channels)
        # Accelerators would round float32 to fewer bits by default, and angles amplify the error.
        subscripts = "nsc,mtc->stnm" if self.crossed else "nsc,msc->snm"
        k = jnp.einsum(subscripts, x1, x2, precision=lax.Precision.HIGHEST) / channels
        return k.reshape(*self.axes, n1, n2)

    def own_covariance(self, x: Array) -> Array:
        """Every example's covariance with itself, (*axes, N)."""
        n, *_, channels = x.shape
        x = x.reshape(n, math.prod(self.shape), channels)
        if not self.crossed:
            return jnp.moveaxis(jnp.mean(x**2, axis=2), 0, -1).reshape(*self.axes, n)
        k = jnp.einsum("nsc,ntc->stn", x, x, precision=lax.Precision.HIGHEST) / channels
        return k.reshape(*self.axes, n)

    def variances(self, covariance: Array, *, second: bool = False) -> Array:
        """The entries of equal positions, on the first (or second) axes of the crossed ones."""
        if not self.crossed:
            return covariance
        size, pairs = math.prod(self.shape), covariance.shape[-2:]
        diagonal = jnp.einsum("ssnm->snm", covariance.reshape(size, size, *pairs))
        ones = (1,) * len(self.shape)
        order = (*ones, *self.shape) if second else (*self.shape, *ones)
        return diagonal.reshape(*order, *pairs)

    def coincident(self) -> Array:
        """Whether both positions of an entry are the same; shape (*axes, 1, 1)."""
        if not self.crossed:
            return jnp.ones((1,) * (len(self.shape) + 2), bool)
        size = math.prod(self.shape)
        return (jnp.arange(size)[:, None] == jnp.arange(size)[None, :]).reshape(*self.axes, 1, 1)

    def traced(self, k: Array) -> Array:
        """The mean over equal positions, (N1, N2)."""
        diagonal = self.variances(k)
        return jnp.mean(diagonal.reshape(-1, *k.shape[-2:]), axis=0) if self.shape else k

    def moved(self, windows: Windows) -> "Positions":
        """The positions of windows over these."""
        return Positions(places("kernel", windows, self.shape), self.crossed)

    def joint_sum(self, k: Array, windows: Windows) -> Array:
        """Σ_a k[s + a, s' + a]: both positions of an entry move through their windows at once."""
        count = len(self.shape)
        for axis, (n, taps) in enumerate(zip(self.shape, _taps(windows, self.shape), strict=True)):
            together = (axis, axis + count) if self.crossed else (axis,)
            k = _continued(k, together, windows, axis, n)
            k = reduce(jnp.add, [_taken(k, together, tap) for tap in taps])
        return k

    def spread(self, windows: Windows) -> "Positions":
        """The positions of the outputs of a transposed convolution over these."""
        return Positions(enlarged(windows, self.shape), self.crossed)

    def transposed_sum(self, k: Array, windows: Windows) -> Array:
        """Σ_a k̃[j + a - low, j' + a - low], k̃ being k with stride - 1 zeros between its entries."""
        count = len(self.shape)
        for axis, (n, d) in enumerate(
            zip(enlarged(windows, self.shape), windows.dilation, strict=True)
        ):
            together = (axis, axis + count) if self.crossed else (axis,)
            k = _stuffed(k, together, windows, axis)
            taps = [slice(a * d, a * d + n) for a in range(windows.size[axis])]
            k = reduce(jnp.add, [_taken(k, together, tap) for tap in taps])
        return k

    def mixed(self, k: Array, matrices: Sequence[Array]) -> Array:
        """Σ_{s, s'} A[t, s] k[s, s'] A[t', s'] of a crossed kernel, a matrix A per spatial axis."""
        count = len(self.shape)
        for axis, matrix in enumerate(matrices):
            matrix = jnp.asarray(matrix).astype(k.dtype)
            for at in (axis, axis + count):
                product = jnp.tensordot(matrix, k, (1, at), precision=lax.Precision.HIGHEST)
                k = jnp.moveaxis(product, 0, at)
        return k

    def separate_sum(self, k: Array, windows: Windows) -> Array:
        """Σ_{a, a'} k[s + a, s' + a'] of a crossed kernel."""
        count = len(self.shape)
        for axis, (n, taps) in enumerate(zip(self.shape, _taps(windows, self.shape), strict=True)):
            for alone in (axis, axis + count):
                k = _continued(k, (alone,), windows, axis, n)
                k = reduce(jnp.add, [_taken(k, (alone,), tap) for tap in taps])
        return k

    def entries(self, windows: Windows, dtype: jnp.dtype) -> Array:
        """How many entries the windows of each position have, those beyond the border left out."""
        counts = Positions(self.shape).joint_sum(jnp.ones(self.shape, dtype), windows)
        if not self.crossed:
            return counts
        ones = (1,) * counts.ndim
        return counts.reshape(*counts.shape, *ones) * counts.reshape(*ones, *counts.shape)


def _taps(windows: Windows, shape: Shape) -> list[list[slice]]:
    """For every axis and every entry of a window, where along the continued axis it is."""
    outputs = places("kernel", windows, shape)
    per_axis = zip(windows.size, windows.strides, windows.dilation, outputs, strict=True)
    return [[slice(a * d, a * d + (m - 1) * s + 1, s) for a in range(k)] for k, s, d, m in per_axis]


def _taken(k: Array, axes: Sequence[int], tap: slice) -> Array:
    index = [slice(None)] * k.ndim
    for axis in axes:
        index[axis] = tap
    return k[tuple(index)]


def _stuffed(k: Array, axes: Sequence[int], windows: Windows, axis: int) -> Array:
    """`k` with stride - 1 zeros between entries along `axes`, padded for a transposed window."""
    reach, stride = covered(windows)[axis], windows.strides[axis]
    low, high = reach - 1, stride - 1 + max(reach - stride, 0)
    if windows.padding == "SAME":
        total = reach + stride - 2
        low = reach - 1 if stride > reach - 1 else -(-total // 2)
        high = total - low
    if windows.padding == "CIRCULAR":
        low, high = 0, stride - 1
    zero = np.zeros((), k.dtype)
    inside = [(low, high, stride - 1) if a in axes else (0, 0, 0) for a in range(k.ndim)]
    k = lax.pad(k, zero, inside)
    if windows.padding != "CIRCULAR":
        return k
    circle = [(reach // 2, (reach - 1) // 2) if a in axes else (0, 0) for a in range(k.ndim)]
    return jnp.pad(k, circle, mode="wrap")


def _continued(k: Array, axes: Sequence[int], windows: Windows, axis: int, n: int) -> Array:
    """`k` beyond its borders along `axes`, all of size n, as the padding of a window axis says."""
    if windows.padding == "VALID":
        return k
    reach, stride = covered(windows)[axis], windows.strides[axis]
    if windows.padding == "CIRCULAR":
        low, high = (reach - 1) // 2, reach // 2
    else:
        ((low, high),) = lax.padtype_to_pads((n,), (reach,), (stride,), "SAME")
    widths = [(low, high) if a in axes else (0, 0) for a in range(k.ndim)]
    if windows.padding == "CIRCULAR":
        return jnp.pad(k, widths, mode="wrap")
    return lax.pad(k, np.zeros((), k.dtype), [(low, high, 0) for low, high in widths])

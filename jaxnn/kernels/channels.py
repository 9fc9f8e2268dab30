"""Weights that act a second time, through a small function of themselves.

In weight normalization, y = (x V) c(V), a matrix V multiplies data and also sets a factor c_k of
every column. Its gradient is the factored one plus D e: e = ∂f/∂c, and D (C, K) the derivative of
c_k with respect to its own column. Neither sum is formed. With s_k = (rowᵀ D)_k column_k and
d_k = Σ_c D²_ck, the inner product of two gradients is

    (row · row') (column · column') + s · e' + e · s' + (d e) · e'.

A single number c (a spectral or a Frobenius norm) may depend on all columns; s and d are then sums.
"""

import itertools
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.kernels.contractions import Part, Parts, inner, mirrored
from jaxnn.kernels.coupling import coupling
from jaxnn.kernels.mesh_axes import shaped
from jaxnn.kernels.output_axes import Layout
from jaxnn.kernels.program import Program
from jaxnn.precision import wide
from jaxnn.types import Array, Shape


class Channel(NamedTuple):
    """How a parameter acts besides being multiplied as a matrix.

    leaf      position of the parameter
    value     number of c in the program
    equation  number of the equation that computes it
    shape     (B, C, K) of the matrix
    axes      order of the parameter's axes in its columns, as an array (B, K, C)
    joined    positions of parameters that act through c alone, such as a learned scale of columns
    """

    leaf: int
    value: int
    equation: int
    shape: tuple[int, int, int]
    axes: tuple[int, ...]
    joined: tuple[int, ...] = ()


class ChannelFactors(NamedTuple):
    """s, e and d e of the text above, each (N, O, B K) or, if c is one number, (N, O, 1)."""

    along: Array
    slope: Array
    squared: Array

    def inner(self, other: "ChannelFactors", outputs: Layout) -> Array:
        """What the channel adds to the inner product of two gradients."""
        if other is self:
            half = inner(self.slope, self.along + self.squared / 2, outputs)
            return half + mirrored(half)
        crossed = inner(self.along, other.slope, outputs)
        return crossed + inner(self.slope, other.along + other.squared, outputs)


def channel(
    program: Program, leaves: Sequence[Any], leaf: int, value: int, index: np.ndarray
) -> Channel | None:
    """The channel of parameter `leaf` through `value`, None if c_k depends on others or is complex.

    index  (B, C, K) numbers of the parameter's own entries
    """
    numbers = [n for n, e in enumerate(program.equations) if e.outputs[:1] == (value,)]
    axes = _axes(index, leaves[leaf].shape) if index.size == leaves[leaf].size else None
    is_real = jnp.issubdtype(program.avals[value].dtype, jnp.floating)
    if not numbers or axes is None or not is_real:
        return None
    blocks, rows, columns = index.shape
    found = Channel(leaf, value, numbers[0], (blocks, rows, columns), axes)
    return found if _by_column(program, leaves, value, leaf, found.shape, axes) else None


def joins(found: Channel, program: Program, leaves: Sequence[Any], leaf: int) -> bool:
    """Whether a parameter that acts through c alone moves every c_k by an entry of its own."""
    blocks, _, columns = found.shape
    shape = (1, 1, leaves[leaf].size)
    axes = tuple(range(len(leaves[leaf].shape)))
    return leaves[leaf].size in (1, blocks * columns) and _by_column(
        program, leaves, found.value, leaf, shape, axes
    )


def _by_column(
    program: Program,
    leaves: Sequence[Any],
    value: int,
    leaf: int,
    matrix: tuple[int, int, int],
    axes: tuple[int, ...],
) -> bool:
    """Whether c is one number, or has an entry for every column that depends on no other column."""
    blocks, rows, columns = matrix
    size = int(np.prod(program.avals[value].shape))
    if size != blocks * columns or size == 1:
        return size == 1

    def columns_apart(leaves: Sequence[Array], columns_first: Array) -> Array:
        own = columns_first.reshape([leaves[leaf].shape[k] for k in axes])
        own = own.transpose(np.argsort(axes))
        return program.evaluated(value, _changed(leaves, leaf, own)).reshape(-1)

    abstract = [shaped(a.shape, a.dtype, a) for a in leaves]
    columns_first = shaped((size, rows), leaves[leaf].dtype, leaves[leaf])
    return coupling(columns_apart, abstract, columns_first).kind == "independent"


def _changed(leaves: Sequence[Any], leaf: int, own: Array) -> list[Any]:
    return [*leaves[:leaf], own, *leaves[leaf + 1 :]]


def _axes(index: np.ndarray, shape: Shape) -> tuple[int, ...] | None:
    """The order of the parameter's axes in the columns of its matrix, None if they are mixed."""
    numbers = np.arange(index.size).reshape(shape)
    columns = index.swapaxes(1, 2).ravel()
    orders = itertools.permutations(range(len(shape)))
    return next((k for k in orders if np.array_equal(numbers.transpose(k).ravel(), columns)), None)


def channel_factors(
    found: Channel, program: Program, leaves: Sequence[Array], parts: Parts, cotangent: Array
) -> ChannelFactors:
    """The factors of one example, for which `parts` are those of the matrix.

    cotangent  (O, *c) of c
    """

    def derivative(leaf: int) -> Array:
        total = lambda own: jnp.sum(program.evaluated(found.value, _changed(leaves, leaf, own)))
        return wide(jax.grad(total)(leaves[leaf]))

    blocks, rows, columns = found.shape
    slope = derivative(found.leaf).transpose(found.axes).reshape(blocks, columns, rows)
    slope = slope.swapaxes(1, 2)
    s = reduce(jnp.add, [_applied(part, slope) for part in parts])
    squares = jnp.sum(slope**2, axis=1).reshape(-1)
    e = wide(cotangent).reshape(cotangent.shape[0], -1)
    if e.shape[1] == 1:
        s, squares = jnp.sum(s, axis=1, keepdims=True), jnp.sum(squares, keepdims=True)
    for leaf in found.joined:
        squares = squares + derivative(leaf).reshape(-1) ** 2
    return ChannelFactors(s, e, squares[None] * e)


def _applied(part: Part, slope: Array) -> Array:
    """Σ_t (rowᵀ slope) column: (O, B K)."""
    if part.looks_up:
        by_block = jax.vmap(lambda matrix, numbers: matrix[numbers])
        found = by_block(slope, jnp.maximum(part.row, 0))
        rows = jnp.where((part.row >= 0)[..., None], found, jnp.zeros_like(found))
        s = jnp.einsum("btk,obtk->obk", rows, part.column)
    elif part.transposed:
        s = jnp.einsum("obtc,bck,btk->obk", part.column, slope, part.row)
    else:
        s = jnp.einsum("btk,obtk->obk", jnp.einsum("btc,bck->btk", part.row, slope), part.column)
    return s.reshape(s.shape[0], -1)

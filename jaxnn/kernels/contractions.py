"""Kernel blocks from factored gradients, in three ways that differ only in cost.

A parameter's gradient in example n for output o is Σ over parts of Σ_t row_{n,t} ⊗ column_{n,o,t},
a stack of B matrices (C, K). The block of the kernel is its inner product over (B, C, K):

    gram       Σ_{t,s} (row_nt · row_ms)(column_not · column_mps): no gradient is formed
    explicit   both gradients are formed and multiplied: one large matrix product
    one-sided  the gradients of the second batch are formed, the factors of the first applied
"""

from functools import reduce
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxnn.kernels.output_axes import Layout
from jaxnn.types import Array

Contraction: TypeAlias = Literal["gram", "explicit", "one-sided"]


class Part(NamedTuple):
    """One kind of factors of a gradient; a parameter has one, or a few if it is shared.

    row     (N, B, T, C), or the numbers (N, B, T) of the rows that are looked up, < 0 for none
    column  (N, O, B, T, K)

    If `transposed`, column is (N, O, B, T, C) and row (N, B, T, K): the weight is used as Wᵀ.
    """

    row: Array
    column: Array
    looks_up: bool = False
    transposed: bool = False


Parts: TypeAlias = tuple[Part, ...]


def contract(
    first: Parts, second: Parts, shape: tuple[int, int, int], outputs: Layout, how: Contraction
) -> Array:
    """The block (N1, N2, *outputs.kept) of one parameter; `shape` is (B, C, K).

    Averaged outputs are summed over: the caller divides by their number.
    """
    if how == "gram":
        return reduce(jnp.add, [_gram(a, b, outputs) for a in first for b in second])
    right = gradient(second, shape)
    if how == "one-sided":
        return reduce(jnp.add, [_one_sided(a, right, outputs) for a in first])
    left = right if second is first else gradient(first, shape)
    return inner(left, right, outputs)


def inner(
    left: Float[Array, "N1 O ..."], right: Float[Array, "N2 O ..."], outputs: Layout
) -> Array:
    """The block of explicit gradients: their inner products over all but the leading two axes.

    >>> inner(jnp.ones((2, 3, 4)), jnp.ones((5, 3, 4)), Layout(full=3)).shape
    (2, 5, 3, 3)
    """
    a, b, out = outputs.letters
    if a == b == "u":  # one product of matrices; XLA copies for a sum over several axes
        return left.reshape(left.shape[0], -1) @ right.reshape(right.shape[0], -1).T
    left, right = (outputs.split(g.reshape(*g.shape[:2], -1), 1) for g in (left, right))
    return jnp.einsum(f"n{a}x,m{b}x->nm{out}", left, right)


def mirrored(block: Array) -> Array:
    """The block of the second argument against the first: examples and outputs change places.

    >>> mirrored(jnp.ones((2, 5, 3, 4))).shape
    (5, 2, 4, 3)
    """
    swapped = jnp.swapaxes(block, 0, 1)
    return jnp.swapaxes(swapped, -2, -1) if block.ndim >= 4 else swapped


def gradient(parts: Parts, shape: tuple[int, int, int]) -> Float[Array, "N O B K C"]:
    """The gradients themselves, Σ_t column ⊗ row: in this order a product leaves them so."""
    return reduce(jnp.add, [_outer(part, shape) for part in parts])


def _outer(part: Part, shape: tuple[int, int, int]) -> Array:
    if part.looks_up:
        return _scattered(part, shape)
    if part.transposed:
        return jnp.einsum("nobtc,nbtk->nobkc", part.column, part.row)
    if part.row.shape[1] == 1:  # XLA multiplies in half the time without an axis of size 1
        return jnp.einsum("notk,ntc->nokc", part.column[:, :, 0], part.row[:, 0])[:, :, None]
    return jnp.einsum("nobtk,nbtc->nobkc", part.column, part.row)


def _scattered(part: Part, shape: tuple[int, int, int]) -> Array:
    _, rows, columns = shape
    absent = jnp.where(part.row < 0, rows, part.row)

    def block(numbers: Array, columns_at: Array) -> Array:  # (T,), (O, T, K)
        zeros = jnp.zeros((columns_at.shape[0], rows, columns), columns_at.dtype)
        return zeros.at[:, numbers].add(columns_at, mode="drop")

    over_blocks = jax.vmap(block, in_axes=(0, 1), out_axes=1)
    return jnp.swapaxes(jax.vmap(over_blocks)(absent, part.column), 3, 4)


def _gram(first: Part, second: Part, outputs: Layout) -> Array:
    a, b, out = outputs.letters
    column1, column2 = (outputs.split(part.column, 1) for part in (first, second))
    if first.transposed == second.transposed:
        rows = _row_products(first, second)
        if first.column.shape[2:4] == second.column.shape[2:4] == (1, 1):
            # Without the axes of size 1, XLA multiplies the factors as they lie in memory.
            columns = inner(first.column, second.column, outputs)
            return jnp.einsum(f"nm,nm{out}->nm{out}", rows[:, :, 0, 0, 0], columns)
        columns = jnp.einsum(f"n{a}btk,m{b}bsk->nm{out}bts", column1, column2)
        return _sum_of_products(rows, columns, "nmbts", f"nm{out}bts", out)
    if first.transposed:
        second_row = _dense_row(second, first.column.dtype, first.column.shape[-1])
        left = jnp.einsum(f"n{a}btc,mbsc->nm{a}bts", column1, second_row)
        right = jnp.einsum(f"nbtk,m{b}bsk->nm{b}bts", first.row, column2)
    else:
        first_row = _dense_row(first, first.column.dtype, second.column.shape[-1])
        left = jnp.einsum(f"nbtc,m{b}bsc->nm{b}bts", first_row, column2)
        right = jnp.einsum(f"n{a}btk,mbsk->nm{a}bts", column1, second.row)
        a, b = b, a
    return _sum_of_products(left, right, f"nm{a}bts", f"nm{b}bts", out)


def _sum_of_products(left: Array, right: Array, a: str, b: str, out: str) -> Array:
    return jnp.einsum(f"{a},{b}->nm{out}", left, right)


def _row_products(first: Part, second: Part) -> Array:
    if first.looks_up and second.looks_up:
        numbers = first.row[:, None, :, :, None]
        equal = (numbers == second.row[None, :, :, None, :]) & (numbers >= 0)
        return equal.astype(first.column.dtype)
    if first.looks_up:
        return _looked_up(first.row, second.row)
    if second.looks_up:
        swapped = _looked_up(second.row, first.row)
        return swapped.transpose(1, 0, 2, 4, 3)
    if first.row.shape[1:3] == second.row.shape[1:3] == (1, 1):
        return (first.row[:, 0, 0] @ second.row[:, 0, 0].T)[:, :, None, None, None]
    return jnp.einsum("nbtc,mbsc->nmbts", first.row, second.row)


def _looked_up(numbers: Array, rows: Array) -> Array:
    """onehot(numbers) · rows: (N, B, T), (M, B, S, C) -> (N, M, B, T, S)."""

    def pair(numbers: Array, rows: Array) -> Array:  # (T,), (S, C)
        found = jnp.take(rows, numbers, axis=1, mode="clip").T
        return jnp.where((numbers >= 0)[:, None], found, jnp.zeros_like(found))

    blocks = jax.vmap(pair)
    return jax.vmap(jax.vmap(blocks, (None, 0)), (0, None))(numbers, rows)


def _dense_row(part: Part, dtype: jnp.dtype, rows: int) -> Array:
    return jax.nn.one_hot(part.row, rows, dtype=dtype) if part.looks_up else part.row


def _one_sided(part: Part, right: Array, outputs: Layout) -> Array:
    a, b, out = outputs.letters
    if part.looks_up:
        rows = jnp.maximum(part.row, 0)

        def pick(numbers: Array, valid: Array) -> Array:  # (B, T) -> (M, O, B, T, K)
            per_block = jax.vmap(lambda m, n: jnp.take(m, n, axis=3), (2, 0), 2)
            found = jnp.swapaxes(per_block(right, numbers), 3, 4)
            return jnp.where(valid[None, None, :, :, None], found, jnp.zeros_like(found))

        applied = jax.vmap(pick)(rows, part.row >= 0)
    elif part.transposed:
        applied = jnp.einsum("nbtk,mpbkc->nmpbtc", part.row, right)
    else:
        applied = jnp.einsum("nbtc,mpbkc->nmpbtk", part.row, right)
    column, applied = outputs.split(part.column, 1), outputs.split(applied, 2)
    return jnp.einsum(f"n{a}btk,nm{b}btk->nm{out}", column, applied)

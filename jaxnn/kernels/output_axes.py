"""What a kernel keeps of the outputs of two examples: their mean, the diagonal, or all pairs."""

import math
from typing import Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxnn.errors import invalid
from jaxnn.types import Array, PyTree, Shape

Outputs: TypeAlias = Literal["mean", "full", "diagonal"]


class OutputAxes(NamedTuple):
    """How a kernel treats each axis of f's outputs, an array (N, *out); axes count within *out.

    mean      axes over which Θ is averaged: the same index in both examples
    diagonal  axes of which the same index in both examples is kept

    All pairs of indices are kept of the other axes. A kernel is (N1, N2, *kept, *full): the axes of
    *out that are not averaged, in their order, and once more those of which all pairs are kept.

    >>> OutputAxes(mean=(-1,), diagonal=(0,))
    OutputAxes(mean=(-1,), diagonal=(0,))
    """

    mean: tuple[int, ...] = ()
    diagonal: tuple[int, ...] = ()


class Layout(NamedTuple):
    """The flat axis of outputs as averaged × diagonal × full outputs; None where there is no axis.

    >>> Layout(averaged=4, full=3).letters
    ('uo', 'up', 'op')
    """

    averaged: int | None = None
    diagonal: int | None = None
    full: int | None = None

    @property
    def letters(self) -> tuple[str, str, str]:
        """Names of the output axes in the first and the second argument, and in the result."""
        shared = "u" * (self.averaged is not None) + "d" * (self.diagonal is not None)
        pairs = ("o", "p") if self.full is not None else ("", "")
        kept = "d" * (self.diagonal is not None)
        return shared + pairs[0], shared + pairs[1], kept + "".join(pairs)

    @property
    def sizes(self) -> Shape:
        """The sizes of the axes that there are."""
        return tuple(size for size in self if size is not None)

    @property
    def kept(self) -> Shape:
        """The output axes of a kernel."""
        return tuple(n for n in (self.diagonal, self.full, self.full) if n is not None)

    @property
    def products(self) -> int:
        """Inner products of gradients per pair of examples."""
        return math.prod(self.sizes) * (1 if self.full is None else self.full)

    def split(self, array: Array, axis: int) -> Array:
        """The array with its flat axis of outputs as the axes that there are."""
        if len(self.sizes) == 1:
            return array
        return array.reshape(*array.shape[:axis], *self.sizes, *array.shape[axis + 1 :])


def layout(outputs: Outputs, num_outputs: int) -> Layout:
    """The layout in which all axes are treated alike.

    >>> layout("diagonal", 3)
    Layout(averaged=None, diagonal=3, full=None)
    """
    names = {"mean": "averaged", "diagonal": "diagonal", "full": "full"}
    return Layout(**{names[outputs]: num_outputs})


class Arrangement(NamedTuple):
    """The outputs of f, one array of shape `shape`, by what a kernel does with each axis."""

    shape: Shape
    mean: tuple[int, ...]
    diagonal: tuple[int, ...]
    full: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        """The layout of outputs that `flat` has put in order."""
        groups = (self.mean, self.diagonal, self.full)
        return Layout(*(self._size(axes) if axes else None for axes in groups))

    def flat(self, y: Array) -> Array:
        """The flat vector of outputs in the order averaged, diagonal, full."""
        order = (*self.mean, *self.diagonal, *self.full)
        return y.reshape(self.shape).transpose(order).ravel()

    def shaped(self, kernel: Array) -> Array:
        """A kernel (*leading, *layout.kept) as (*leading, *kept, *full), in f's order of axes."""
        leading = kernel.ndim - len(self.layout.kept)
        kept = (*self.diagonal, *self.full)
        sizes = [self.shape[axis] for axis in (*kept, *self.full)]
        apart = kernel.reshape(*kernel.shape[:leading], *sizes)
        places = [leading + int(k) for k in np.argsort(kept)]
        return apart.transpose(*range(leading), *places, *range(leading + len(kept), apart.ndim))

    def _size(self, axes: tuple[int, ...]) -> int:
        return math.prod(self.shape[axis] for axis in axes)


def arrangement(axes: OutputAxes, y: PyTree) -> Arrangement:
    """How a kernel treats the outputs of one example, arrays of the shapes of `y`.

    Errors: outputs that are no single array, axes that it does not have, an axis given twice.

    >>> arrangement(OutputAxes(mean=(-1,)), np.ones((8, 8, 3)))
    Arrangement(shape=(8, 8, 3), mean=(2,), diagonal=(), full=(0, 1))
    """
    leaves = jax.tree.leaves(y)
    if len(leaves) != 1:
        raise invalid(
            "outputs",
            got=f"{axes} for outputs of {len(leaves)} arrays",
            expected="f that returns one array, whose axes it names",
            remedy="Let f return one of them, or use 'mean', 'diagonal' or 'full'.",
        )
    shape = leaves[0].shape
    rank = len(shape)
    given = [*axes.mean, *axes.diagonal]
    if len({axis % max(rank, 1) for axis in given}) < len(given) or not all(
        -rank <= axis < rank for axis in given
    ):
        raise invalid(
            "outputs",
            got=str(axes),
            expected=f"different axes of the outputs {shape} of one example",
            remedy="The axis of the examples does not count: axis 0 is the one after it.",
        )
    mean, diagonal = (tuple(sorted(axis % rank for axis in each)) for each in axes)
    full = tuple(axis for axis in range(rank) if axis not in (*mean, *diagonal))
    return Arrangement(shape, mean, diagonal, full)

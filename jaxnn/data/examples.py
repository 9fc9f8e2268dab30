"""Data sets as arrays, batch axis first: split, standardize, batch.

Every function is pure, and runs inside `jit` because all sizes are static. Data whose values are
sorted, grouped or repeated need a split by group, which is not made here.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from jaxnn.errors import invalid, require_examples, require_real
from jaxnn.precision import common, inexact, wide
from jaxnn.types import Array, ArrayLike, Key


class Split(NamedTuple):
    """Three disjoint parts of a data set, each a tuple of the arrays that were split.

    train       to fit the parameters
    validation  to choose everything else: hyperparameters, when to stop
    test        to be looked at once, at the end
    """

    train: tuple[Any, ...]
    validation: tuple[Any, ...]
    test: tuple[Any, ...]


def split(
    key: Key,
    *arrays: Shaped[ArrayLike, "..."],
    fractions: tuple[float, float, float] | None = None,
    sizes: tuple[int, int, int] | None = None,
    stratify: Shaped[ArrayLike, "N"] | None = None,
) -> Split:
    """Disjoint random parts of the examples for training, validation and test.

    Either `fractions` or `sizes` gives the three parts; what they leave over is in none. The test
    part is cut first and the validation part from the rest, never from the test part: with one
    key, the test part depends on its own size alone, and a smaller training part is contained in
    a larger one. All arrays are cut alike.

    `stratify` are labels whose classes every part shall hold in the same proportions, as closely
    as whole examples allow.

    Errors: no arrays, unequal numbers of examples, not exactly one of fractions and sizes,
    negative ones, a sum over 1 or over N, a positive fraction of less than an example.

    >>> x, y = jnp.ones((10, 3)), jnp.arange(10)
    >>> train, validation, test = split(jax.random.key(0), x, y, fractions=(0.6, 0.2, 0.2))
    >>> x_train, y_train = train
    >>> x_train.shape, validation[1].shape, test[1].shape
    ((6, 3), (2,), (2,))
    """
    if not arrays:
        raise invalid(
            "split(arrays)",
            got="no array",
            expected="at least one",
            remedy="Pass x, or x and y, behind the key.",
        )
    remedy = "Transpose arrays that have examples on another axis."
    n = require_examples("split(arrays)", arrays, remedy=remedy)
    n_train, n_validation, n_test = _part_sizes(n, fractions, sizes)
    if stratify is None:
        order = jax.random.permutation(key, n)
    else:
        require_examples("split(stratify)", (arrays[0], stratify), remedy=remedy)
        order = _interleaved(key, jnp.asarray(stratify))
    start_test = n - n_test
    parts = (
        order[:n_train],
        order[start_test - n_validation : start_test],
        order[start_test:],
    )
    return Split(*(tuple(jnp.asarray(a)[part] for a in arrays) for part in parts))


class Standardization(NamedTuple):
    """An affine map of features, z = (x - mean)/std, and its inverse.

    mean, std  of the data it was fitted to, of size 1 along the axes averaged over; std is 1 where
               a feature was constant. Those of half-precision data are float32
    """

    mean: Float[Array, "..."]
    std: Float[Array, "..."]

    @property
    def finite(self) -> Bool[Array, "..."]:
        """Whether mean and std are finite: not where the data had NaN or ∞; there z is NaN."""
        return jnp.isfinite(self.mean) & jnp.isfinite(self.std)

    def transform(self, x: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
        """z = (x - mean)/std, in the dtype of x; of integers in that of the mean."""
        mean, std = self._like(x)
        values, mean, std = common(wide(x), mean, std)
        return ((values - mean) / std).astype(inexact(x, self.mean).dtype)

    def inverse(self, z: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
        """x = mean + std·z, in the dtype of z; of integers in that of the mean."""
        mean, std = self._like(z)
        values, mean, std = common(wide(z), mean, std)
        return (mean + std * values).astype(inexact(z, self.mean).dtype)

    def _like(self, x: ArrayLike) -> tuple[Array, Array]:
        shape = jnp.shape(x)
        fits = len(shape) == self.mean.ndim and all(
            m in (1, n) for m, n in zip(self.mean.shape, shape, strict=True)
        )
        # (N, 1) against (1, d) would broadcast to d features.
        if not fits:
            raise invalid(
                "Standardization: x",
                got=f"shape {shape}",
                expected=f"the axes of the fitted data, whose mean has shape {self.mean.shape}",
                remedy="Use x[None] for one example; fit again for other features.",
            )
        return jnp.broadcast_to(self.mean, shape), jnp.broadcast_to(self.std, shape)


def standardize(
    x: Shaped[ArrayLike, "N ..."], *, axis: int | tuple[int, ...] = 0
) -> tuple[Float[Array, "N ..."], Standardization]:
    """Training data of mean 0 and standard deviation 1 per feature, and the map that made them so.

    Fit on the training part alone, and give the others to `transform`. `axis` are the axes to
    average over: 0 for every feature by itself, (0, 1, 2) for every channel of images N H W C.
    The standard deviation divides by N. A constant feature becomes 0. Integers become floats.

    Errors: no examples, or axes without the batch's. NaN and infinite values cannot raise under
    `jit`: the map's `finite` tells which features have them.

    >>> x_train, scaling = standardize(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> x_train
    Array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    >>> scaling.transform(jnp.array([[2.0, 6.0]]))
    Array([[0., 1.]], dtype=float32)
    """
    require_real("standardize(x)", x)
    original, x = x, wide(x)
    axes = (axis,) if isinstance(axis, int) else axis
    axes = {a + x.ndim if a < 0 else a for a in axes}
    if x.size == 0 or 0 not in axes or not axes <= set(range(x.ndim)):
        raise invalid(
            "standardize: x, axis",
            got=f"shape {x.shape}, axis {axis}",
            expected="at least one example, averaged over",
            remedy="Name the batch axis 0 among the axes to average over.",
        )
    along = {"axis": tuple(sorted(axes)), "keepdims": True}
    # About the first example, in units of the largest deviation: a constant feature deviates by
    # exactly 0, and no square over- or underflows.
    first = x[tuple(slice(0, 1) if a in axes else slice(None) for a in range(x.ndim))]
    centered = x - jnp.broadcast_to(first, x.shape)
    unit = jnp.max(jnp.abs(centered), **along)
    unit = jnp.where(unit == 0, 1.0, unit)
    centered = centered / jnp.broadcast_to(unit, x.shape)
    mean = jnp.mean(centered, **along)
    std = jnp.sqrt(jnp.mean(jnp.square(centered - jnp.broadcast_to(mean, x.shape)), **along))
    scaling = Standardization(first + unit * mean, unit * jnp.where(std == 0, 1.0, std))
    return scaling.transform(original), scaling


def batches(
    key: Key,
    num_examples: int,
    batch_size: int,
    *,
    remainder: Literal["drop", "wrap", "raise"] = "drop",
) -> Int[Array, "num_batches {batch_size}"]:
    """Indices of one shuffled epoch, a row for every mini-batch.

    `remainder` says what becomes of the N mod B examples at the end of the shuffled order:
    "drop" leaves them out of this epoch, "wrap" fills their batch up with the first ones, which
    are then drawn twice, and "raise" refuses them.

    Errors: a batch size outside 1, ..., N; a remainder under "raise".

    >>> rows = batches(jax.random.key(0), 7, 2)
    >>> rows.shape, len(set(rows.ravel().tolist()))
    ((3, 2), 6)
    >>> batches(jax.random.key(0), 7, 2, remainder="wrap").shape
    (4, 2)
    """
    if not 1 <= batch_size <= num_examples:
        raise invalid(
            "batches(batch_size)",
            got=batch_size,
            expected=f"an integer from 1 to the number of examples, {num_examples}",
            remedy="Use batch_size=num_examples for the full batch.",
        )
    if remainder not in ("drop", "wrap", "raise"):
        raise invalid(
            "batches(remainder)",
            got=repr(remainder),
            expected="'drop', 'wrap' or 'raise'",
            remedy="'drop' is usual for training.",
        )
    left_over = num_examples % batch_size
    if left_over and remainder == "raise":
        raise invalid(
            "batches(batch_size)",
            got=f"{batch_size} for {num_examples} examples",
            expected="a divisor of the number of examples",
            remedy=f"Allow remainder='drop' or 'wrap' for the {left_over} left over.",
        )
    order = jax.random.permutation(key, num_examples)
    if remainder == "wrap" and left_over:
        order = jnp.concatenate([order, order[: batch_size - left_over]])
    num_batches = order.size // batch_size
    return order[: num_batches * batch_size].reshape(num_batches, batch_size)


def one_hot(labels: Shaped[ArrayLike, "*N"], num_classes: int) -> Float[Array, "*N {num_classes}"]:
    """e_y, the vector of 0s with a 1 at the label; NaN for a label outside 0, ..., K - 1.

    Errors: labels that are neither integers nor booleans.

    >>> one_hot(jnp.array([0, 2]), 3)
    Array([[1., 0., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    labels = jnp.asarray(labels)
    if not (jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool):
        raise invalid(
            "one_hot(labels)",
            got=f"dtype {labels.dtype}",
            expected="integers or booleans, the numbers of classes",
            remedy="Use labels.astype(int) for 0.0, 1.0, ...",
        )
    labels = labels.astype(int)
    vectors = jax.nn.one_hot(labels, num_classes)
    known = (labels >= 0) & (labels < num_classes)
    return jnp.where(known[..., None], vectors, jnp.nan)


def _part_sizes(n: int, fractions: tuple | None, sizes: tuple | None) -> tuple[int, int, int]:
    """How many of n examples are for training, validation and test."""
    if (fractions is None) == (sizes is None):
        raise invalid(
            "split(fractions, sizes)",
            got=f"fractions={fractions}, sizes={sizes}",
            expected="exactly one of them",
            remedy="Pass fractions=(0.8, 0.1, 0.1), or three numbers of examples as sizes.",
        )
    if sizes is not None:
        integers = all(hasattr(size, "__index__") for size in sizes)
        if len(sizes) != 3 or not integers or min(sizes) < 0 or sum(sizes) > n:
            raise invalid(
                "split(sizes)",
                got=sizes,
                expected=f"three integers ≥ 0 of sum ≤ {n}, the number of examples",
                remedy="They are the sizes of the training, validation and test part.",
            )
        return sizes
    assert fractions is not None
    if len(fractions) != 3 or not min(fractions) >= 0 or not math.fsum(fractions) <= 1 + 1e-9:
        raise invalid(
            "split(fractions)",
            got=fractions,
            expected="three numbers ≥ 0 of sum ≤ 1",
            remedy="They are the shares of the training, validation and test part.",
        )
    train, validation, test = fractions
    # Cut from the end, so that the rounding of one part never moves those behind it.
    ends = [round(n * share) for share in (test, test + validation, test + validation + train)]
    parts = (ends[2] - ends[1], ends[1] - ends[0], ends[0])
    if any(share > 0 and part == 0 for share, part in zip(fractions, parts, strict=True)):
        raise invalid(
            "split(fractions)",
            got=f"{fractions} of {n} examples",
            expected="at least one example for every positive fraction",
            remedy="Pass sizes instead, or 0 for a part that may be empty.",
        )
    return parts


def _interleaved(key: Key, labels: Array) -> Array:
    """A random order in which every class is spread evenly, so that any stretch is stratified."""
    permutation_key, offset_key = jax.random.split(key)
    shuffled = jax.random.permutation(permutation_key, labels.size)
    by_class = shuffled[jnp.argsort(labels[shuffled], stable=True)]
    sorted_labels = labels[by_class]
    first = jnp.searchsorted(sorted_labels, sorted_labels, side="left")
    count = jnp.searchsorted(sorted_labels, sorted_labels, side="right") - first
    # The n members of a class sit at (u, u + 1, ..., u + n - 1)/n with one random u per class, so
    # that a rare class may fall into any part.
    offset = jax.random.uniform(offset_key, labels.shape)[first]
    rank = jnp.arange(labels.size) - first
    position = (rank.astype(offset.dtype) + offset) / count.astype(offset.dtype)
    return by_class[jnp.argsort(position)]

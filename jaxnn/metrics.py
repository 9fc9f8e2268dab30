"""Metrics: one number, or one per class, for all predictions of a data set at once.

Where a classifier is judged, `prediction` is either classes, integers or booleans (N,), or scores
of real numbers (N, K), of which the largest names the class, the first among equals. Scores with
a NaN name no class. Labels are integers or booleans (N,). What the data leave undefined is NaN.

Predictions and targets of a regression may be integers as well; the result has the wider dtype of
the two, see `jaxnn.precision`.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import rankdata
from jaxtyping import Float, Int, Shaped

from jaxnn.errors import invalid, require_real
from jaxnn.precision import accumulated, common, inexact, wide
from jaxnn.types import Array, ArrayLike


def accuracy(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, ""]:
    """The share of examples whose predicted class is the label; the error rate is 1 minus it.

    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]),
    ...          jnp.array([1, 0, 1, 1]))
    Array(0.75, dtype=float32)
    """
    prediction, target = _classes("accuracy", prediction, target)
    return jnp.mean(prediction == target, dtype=float)


def top_k_accuracy(
    scores: Shaped[ArrayLike, "N K"], target: Shaped[ArrayLike, "..."], k: int
) -> Float[Array, ""]:
    """The share of examples whose label is among the k largest scores; k is static.

    Of equal scores the first counts as larger, so that k = 1 is `accuracy`.

    Errors: k outside 1, ..., K.

    >>> top_k_accuracy(jnp.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), jnp.array([2, 2]), k=2)
    Array(0.5, dtype=float32)
    """
    scores = jnp.asarray(scores)
    if not 1 <= k <= scores.shape[-1]:
        raise invalid(
            "top_k_accuracy(k)",
            got=k,
            expected=f"an integer from 1 to the number of classes, {scores.shape[-1]}",
            remedy="With k the number of classes every label is found.",
        )
    _, target = _classes("top_k_accuracy", inexact(scores), target)
    best = jnp.argsort(scores, axis=-1, descending=True, stable=True)[:, :k].astype(int)
    found = jnp.any(best == target[:, None], axis=-1)
    return jnp.mean(found & ~jnp.any(jnp.isnan(scores), axis=-1), dtype=float)


def confusion_matrix(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."], num_classes: int
) -> Int[Array, "{num_classes} {num_classes}"]:
    """C_ij, the number of examples of class i that are predicted as j: rows are the truth.

    Examples whose label or prediction is outside 0, ..., num_classes - 1 are in no cell, so that
    ΣC < N tells of them. `num_classes` is static.

    >>> confusion_matrix(jnp.array([0, 1, 1, 2]), jnp.array([0, 1, 2, 2]), 3)
    Array([[1, 0, 0],
           [0, 1, 0],
           [0, 1, 1]], dtype=int32)
    """
    if jnp.issubdtype(jnp.result_type(prediction), jnp.floating):
        if jnp.shape(prediction)[-1] != num_classes:
            raise invalid(
                "confusion_matrix(num_classes)",
                got=num_classes,
                expected=f"{jnp.shape(prediction)[-1]}, the number of scores per example",
                remedy="Pass prediction.shape[-1].",
            )
    elif num_classes < 1:
        raise invalid(
            "confusion_matrix(num_classes)",
            got=num_classes,
            expected="an integer ≥ 1",
            remedy="Labels are 0, ..., num_classes - 1.",
        )
    j, i = _classes("confusion_matrix", prediction, target)
    counted = (i >= 0) & (i < num_classes) & (j >= 0) & (j < num_classes)
    cell = jnp.where(counted, i * num_classes + j, num_classes**2).ravel()
    counts = jnp.bincount(cell, length=num_classes**2 + 1)[:-1]
    return counts.reshape(num_classes, num_classes)


def precision(confusion: Shaped[ArrayLike, "C C"]) -> Float[Array, "C"]:
    """C_jj/Σ_i C_ij: of the examples predicted as class j, the share that is of class j.

    Takes a `confusion_matrix`. NaN for a class that was never predicted: average the classes with
    `jnp.nanmean`.

    >>> precision(jnp.array([[3, 1], [2, 4]]))
    Array([0.6, 0.8], dtype=float32)
    """
    confusion = _counts(confusion)
    return jnp.diagonal(confusion) / jnp.sum(confusion, axis=0)


def recall(confusion: Shaped[ArrayLike, "C C"]) -> Float[Array, "C"]:
    """C_ii/Σ_j C_ij: of the examples of class i, the share that is predicted as i.

    Takes a `confusion_matrix`. NaN for a class without examples. The mean over the classes is the
    balanced accuracy.

    >>> recall(jnp.array([[3, 1], [2, 6]]))
    Array([0.75, 0.75], dtype=float32)
    """
    confusion = _counts(confusion)
    return jnp.diagonal(confusion) / jnp.sum(confusion, axis=1)


def f1_score(confusion: Shaped[ArrayLike, "C C"]) -> Float[Array, "C"]:
    """2C_ii/Σ_j (C_ij + C_ji), the harmonic mean of `precision` and `recall` for each class.

    Takes a `confusion_matrix`. NaN for a class neither present nor predicted.

    >>> f1_score(jnp.array([[3, 1], [1, 4]]))
    Array([0.75, 0.8 ], dtype=float32)
    """
    confusion = _counts(confusion)
    marginals = jnp.sum(confusion, axis=0) + jnp.sum(confusion, axis=1)
    return 2.0 * jnp.diagonal(confusion) / marginals


def roc_auc(scores: Shaped[ArrayLike, "N"], target: Shaped[ArrayLike, "..."]) -> Float[Array, ""]:
    """P(s⁺ > s⁻) + ½P(s⁺ = s⁻) for the scores of an example of class 1 and one of class 0.

    The area under the receiver operating characteristic. NaN if a class is missing, a score is
    NaN, or a label is neither 0 nor 1. Source: Hanley & McNeil (1982).

    >>> roc_auc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1]))
    Array(0.75, dtype=float32)
    """
    require_real("roc_auc(scores)", scores)
    scores = jnp.asarray(scores)
    target = _labels("roc_auc", target, scores.shape)
    n1, n0 = jnp.sum(target == 1), jnp.sum(target == 0)
    # Mann & Whitney's count of pairs, from the ranks of class 1 about their overall mean.
    ranks = wide(rankdata(_comparable(scores))) - 0.5 * (scores.size + 1)
    pairs = n1.astype(ranks.dtype) * n0.astype(ranks.dtype)
    area = 0.5 + jnp.sum(jnp.where(target == 1, ranks, 0.0)) / pairs
    defined = jnp.all((target == 0) | (target == 1)) & ~jnp.any(jnp.isnan(scores))
    return jnp.where(defined, area, jnp.nan).astype(inexact(scores).dtype)


def mean_absolute_error(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, ""]:
    """The mean of |ŷ - y| over all examples and outputs.

    >>> mean_absolute_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0]))
    Array(1.5, dtype=float32)
    """
    prediction, target = _real_pair("mean_absolute_error", prediction, target)
    return accumulated(lambda y_hat, y: jnp.mean(jnp.abs(y_hat - y)), prediction, target)


def root_mean_squared_error(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, ""]:
    """The root of the mean of (ŷ - y)² over all examples and outputs, in the units of y.

    >>> root_mean_squared_error(jnp.array([3.0, 4.0]), jnp.array([0.0, 4.0]))
    Array(2.1213202, dtype=float32)
    """
    prediction, target = _real_pair("root_mean_squared_error", prediction, target)
    return accumulated(_root_mean_square, prediction, target)


def r_squared(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, ""]:
    """1 - Σ(y - ŷ)²/Σ(y - ȳ)², the explained share of the variance, averaged over outputs.

    1 is perfect, 0 as good as the mean ȳ, below 0 worse. -∞ where y is constant and missed, NaN
    where it is constant and hit.

    >>> r_squared(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 2.0, 3.0]))
    Array(0.5, dtype=float32)
    """
    prediction, target = _real_pair("r_squared", prediction, target)
    return accumulated(_explained_share, prediction, target)


def _root_mean_square(prediction: Array, target: Array) -> Array:
    unit = _unit(prediction - target, axis=None)
    return jnp.squeeze(unit) * jnp.sqrt(jnp.mean(jnp.square((prediction - target) / unit)))


def _explained_share(prediction: Array, target: Array) -> Array:
    # From the first example, so that a constant deviates by exactly 0.
    deviation = target - target[:1]
    unit = _unit(deviation, axis=0)
    deviation, error = deviation / unit, (target - prediction) / unit
    total = jnp.sum(jnp.square(deviation - jnp.mean(deviation, axis=0, keepdims=True)), axis=0)
    return jnp.mean(1.0 - jnp.sum(jnp.square(error), axis=0) / total)


def _unit(x: Array, axis: int | None) -> Array:
    """A power of 2 near the largest |x|, so that squares neither overflow nor vanish, or 1.

    Division by it is exact.
    """
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0)
    largest = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    exponent = jnp.frexp(jax.lax.stop_gradient(largest))[1]
    return jnp.ldexp(jnp.ones_like(largest), exponent - 1)


def _counts(confusion: ArrayLike) -> Array:
    require_real("confusion", confusion)
    shape = jnp.shape(confusion)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise invalid(
            "confusion",
            got=f"shape {shape}",
            expected="(C, C), rows of the true and columns of the predicted class",
            remedy="Pass what confusion_matrix returns.",
        )
    return jnp.asarray(confusion).astype(float)


def _classes(metric: str, prediction: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """Predicted classes and labels as integers of one shape."""
    require_real(f"{metric}: prediction", prediction)
    prediction = jnp.asarray(prediction)
    if jnp.issubdtype(prediction.dtype, jnp.floating):
        if prediction.ndim < 2 or prediction.shape[-1] < 2:
            raise invalid(
                f"{metric}: prediction",
                got=f"shape {prediction.shape} and dtype {prediction.dtype}",
                expected="scores (N, K), K ≥ 2, or classes (N,) as integers or booleans",
                remedy="For one output per example decide first: logits > 0, probabilities > 0.5.",
            )
        nan = jnp.any(jnp.isnan(prediction), axis=-1)
        prediction = jnp.argmax(prediction, axis=-1).astype(int)
        prediction = jnp.where(nan, jnp.iinfo(prediction.dtype).min, prediction)
    return prediction.astype(int), _labels(metric, target, prediction.shape)


def _labels(metric: str, target: ArrayLike, shape: tuple[int, ...]) -> Array:
    target = jnp.asarray(target)
    countable = jnp.issubdtype(target.dtype, jnp.integer) or target.dtype == bool
    if target.shape != shape or not countable:
        raise invalid(
            f"{metric}: target",
            got=f"shape {target.shape} and dtype {target.dtype}",
            expected=f"integer labels of shape {shape}, one for every prediction",
            remedy="Use target[:, 0] for (N, 1), target.argmax(-1) for one-hot vectors and "
            "target.astype(int) for 0.0, 1.0, ...",
        )
    return target.astype(int)


def _real_pair(metric: str, prediction: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """Prediction and target as arrays of one shape and dtype."""
    require_real(f"{metric}: prediction and target", prediction, target)
    prediction, target = common(prediction, target)
    if target.shape != prediction.shape:
        raise invalid(
            f"{metric}: target",
            got=f"shape {target.shape} against predictions of shape {prediction.shape}",
            expected=f"shape {prediction.shape}",
            remedy="Give both the same axes, with target[:, None] or prediction[:, 0]: "
            "broadcasting would pair every target with every prediction.",
        )
    return prediction, target


def _comparable(scores: Array) -> Array:
    """The scores in a dtype that ranks them exactly: large integers are no numbers of float32."""
    return scores if jnp.issubdtype(scores.dtype, jnp.integer) else wide(scores)

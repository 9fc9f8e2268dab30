"""Losses: `loss(prediction, target)` of shape (N,), one number per example; the risk is their mean.

The batch axis comes first. Predictions are (N,) or (N, ...), and the terms of an example's outputs
are summed. Targets have the shape of the predictions. Both may be integers or booleans, which are
exact as far as the dtype of the predictions is (to 2²⁴ in float32); predictions of half precision
meet their targets in float32, and the sum is cast at the end (see `jaxnn.precision`).
`softmax_cross_entropy`, `cross_entropy`, `zero_one` and the categorical
`negative_log_likelihood` also take integer labels, one axis fewer than the predictions: K classes
lie on the last axis.

Shapes and dtypes that do not fit raise. Values cannot be checked under `jit`: a label, target or
probability outside its set makes the loss of that example NaN, and its derivative too.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid, require_between, require_real
from jaxnn.precision import inexact_dtype, wide
from jaxnn.types import Array, ArrayLike


def half_squared_error(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, "N"]:
    """½ Σ_k (ŷ_k - y_k)², with gradient ŷ - y.

    >>> half_squared_error(jnp.array([[1.0, 2.0], [0.0, 3.0]]), jnp.array([[1, 0], [0, 0]]))
    Array([2. , 4.5], dtype=float32)
    """
    y_hat, y = _alike("half_squared_error", prediction, target)
    return _like(prediction, 0.5 * _total(jnp.square(y_hat - y)))


def mean_squared_error(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, "N"]:
    """(1/K) Σ_k (ŷ_k - y_k)², the mean over an example's outputs, without the ½.

    Its mean over the examples is the mean over all numbers.

    >>> mean_squared_error(jnp.array([[1.0, 2.0], [0.0, 3.0]]), jnp.array([[1, 0], [0, 0]]))
    Array([2. , 4.5], dtype=float32)
    """
    y_hat, y = _alike("mean_squared_error", prediction, target)
    return _like(prediction, jnp.mean(jnp.square(y_hat - y), axis=_outputs(y)))


def sigmoid_cross_entropy(
    logits: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, "N"]:
    """-y ln σ(z) - (1 - y) ln(1 - σ(z)) for logits z and y in [0, 1], with gradient σ(z) - y.

    Several outputs are several independent yes-no questions.

    >>> sigmoid_cross_entropy(jnp.array([0.0, 1e4, -1e4]), jnp.array([1, 1, 1]))
    Array([6.931472e-01, 0.000000e+00, 1.000000e+04], dtype=float32)
    """
    z, y = _alike("sigmoid_cross_entropy", logits, target)
    terms = _weighted(y, lambda z: jax.nn.softplus(-z), z) + _weighted(1.0 - y, jax.nn.softplus, z)
    return _like(logits, _total(_nan_unless(_in_unit_interval(y), terms)))


def binary_cross_entropy(
    probabilities: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, "N"]:
    """-y ln p - (1 - y) ln(1 - p) for p and y in [0, 1], where 0 ln 0 = 0.

    +∞ where an event of probability 0 happened. `sigmoid_cross_entropy` keeps digits that the
    probability has lost: σ(z) = 1 in float32 from z = 17 on.

    >>> binary_cross_entropy(jnp.array([1.0, 0.5, 0.0]), jnp.array([1, 1, 1]))
    Array([0.       , 0.6931472,       inf], dtype=float32)
    """
    p, y = _alike("binary_cross_entropy", probabilities, target)
    # log1p keeps the digits of small p, log those of p near 1.
    terms = _weighted(y, lambda p: -jnp.log(p), p) + _weighted(1.0 - y, lambda p: -jnp.log1p(-p), p)
    known = _in_unit_interval(p) & _in_unit_interval(y)
    return _like(probabilities, _total(_nan_unless(known, terms)))


def softmax_cross_entropy(
    logits: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, "N"]:
    """-Σ_k y_k ln softmax(z)_k for logits z, with gradient softmax(z) - y.

    y is an integer label or a vector of probabilities. A logit of -∞ excludes its class.

    >>> z = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    >>> softmax_cross_entropy(z, jnp.array([1, 0]))
    Array([0.6931472 , 0.12692805], dtype=float32)
    >>> softmax_cross_entropy(z, jnp.array([[0.5, 0.5], [1.0, 0.0]]))
    Array([0.6931472 , 0.12692805], dtype=float32)
    """
    z, y = _classes("softmax_cross_entropy", logits, target)
    return _like(logits, _expected_surprisal(jnp.negative, jax.nn.log_softmax(z, axis=-1), y))


def cross_entropy(
    probabilities: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, "N"]:
    """-Σ_k y_k ln p_k for probabilities p, where 0 ln 0 = 0.

    y is an integer label or a vector of probabilities. +∞ where a class of probability 0
    happened. That the p_k add up to 1 is not checked.

    >>> cross_entropy(jnp.array([[0.0, 1.0], [0.5, 0.5]]), jnp.array([[0, 1], [1, 0]]))
    Array([0.       , 0.6931472], dtype=float32)
    """
    p, y = _classes("cross_entropy", probabilities, target)
    p = _nan_unless(_in_unit_interval(p), p)
    return _like(probabilities, _expected_surprisal(lambda p: -jnp.log(p), p, y))


def hinge(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, "N"]:
    """max(0, 1 - yŷ) for y = ±1, with derivative 0 at the kink yŷ = 1.

    >>> hinge(jnp.array([2.0, 0.5, -1.0]), jnp.array([1, 1, 1]))
    Array([0. , 0.5, 2. ], dtype=float32)
    """
    y_hat, y = _alike("hinge", prediction, target)
    terms = jax.nn.relu(1.0 - y * y_hat)
    return _like(prediction, _total(_nan_unless(jnp.abs(y) == 1, terms)))


def zero_one(
    prediction: Shaped[ArrayLike, "N *K"], target: Shaped[ArrayLike, "..."]
) -> Float[Array, "N"]:
    """1 for an example predicted wrongly and 0 for one predicted rightly.

    Targets ±1 of the shape of the predictions: sign(ŷ) has to be y, and sign(0) is wrong for
    both. Integer labels with scores (N, K): the largest score has to be that of the label, the
    first among equals. Of several outputs all have to be right; NaN never is. The derivative is 0.

    >>> zero_one(jnp.array([0.3, 0.0, -2.0]), jnp.array([1, 1, 1]))
    Array([0., 1., 1.], dtype=float32)
    >>> zero_one(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
    Array([0., 1.], dtype=float32)
    """
    if jnp.shape(target) == jnp.shape(prediction):
        y_hat, y = _alike("zero_one", prediction, target)
        right, known = y_hat * y > 0, jnp.abs(y) == 1
    else:
        scores, y = _classes("zero_one", prediction, target)
        right = jnp.argmax(scores, axis=-1).astype(int) == y
        right &= ~jnp.any(jnp.isnan(scores), axis=-1)
        known = (y >= 0) & (y < scores.shape[-1])
    wrong = _nan_unless(known, (~right).astype(inexact_dtype(prediction)))
    return jnp.max(wrong, axis=_outputs(wrong))


def negative_log_likelihood(
    z: Shaped[ArrayLike, "N *K"],
    target: Shaped[ArrayLike, "..."],
    *,
    head: Literal["gaussian", "bernoulli", "categorical"] = "gaussian",
    scale: ArrayLike | None = None,
) -> Float[Array, "N"]:
    """-ln p(y | z), where z is the linear output of a network and `head` the family of p.

    "gaussian"     y_k ~ N(z_k, s²): ½ Σ_k ((y_k - z_k)/s)² + ln s + ½ ln 2π
    "bernoulli"    P(y) ∝ exp(yz), y in {0, 1}: `sigmoid_cross_entropy`
    "categorical"  P(y = k) ∝ exp(z_k): `softmax_cross_entropy`

    `scale` is the standard deviation s > 0 of the Gaussian (None is 1), one number or an array of
    the shape of z, and may be learned. With s = 1 the Gaussian is `half_squared_error` and a
    constant, so that its likelihood is largest where the squared error is smallest.

    Errors: an unknown head, a scale ≤ 0, of another shape, or for a head that has none.

    >>> negative_log_likelihood(jnp.array([1.0]), jnp.array([1.0]), scale=2.0)
    Array([1.6120857], dtype=float32)
    >>> negative_log_likelihood(jnp.array([0.0]), jnp.array([1]), head="bernoulli")
    Array([0.6931472], dtype=float32)
    """
    cross_entropies = {"bernoulli": sigmoid_cross_entropy, "categorical": softmax_cross_entropy}
    if head != "gaussian" and head not in cross_entropies:
        raise invalid(
            "negative_log_likelihood(head)",
            got=repr(head),
            expected="'gaussian', 'bernoulli' or 'categorical'",
            remedy="For another family write its -ln p(y | z) as a loss.",
        )
    if scale is not None and (head != "gaussian" or jnp.shape(scale) not in ((), jnp.shape(z))):
        raise invalid(
            "negative_log_likelihood(scale)",
            got=f"shape {jnp.shape(scale)} for head={head!r}",
            expected=f"None, or for 'gaussian' a number or shape {jnp.shape(z)}",
            remedy="It is the standard deviation of the Gaussian head; other heads have none.",
        )
    if head != "gaussian":
        return cross_entropies[head](z, target)
    mean, y = _alike("negative_log_likelihood", z, target)
    s = 1.0 if scale is None else scale
    require_between(
        "negative_log_likelihood(scale)",
        s,
        0.0,
        math.inf,
        low_open=True,
        remedy="It is a standard deviation: learn its logarithm to keep it positive.",
    )
    s = jnp.broadcast_to(jnp.asarray(s, mean.dtype), mean.shape)
    terms = 0.5 * jnp.square((y - mean) / s) + jnp.log(s) + 0.5 * math.log(2.0 * math.pi)
    return _like(z, _total(terms))


def _like(prediction: ArrayLike, loss: Array) -> Array:
    """The loss in the dtype of the prediction that the caller gave."""
    dtype = inexact_dtype(prediction)
    return loss if loss.dtype == dtype else loss.astype(dtype)


def _outputs(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _total(terms: Array) -> Array:
    return jnp.sum(terms, axis=_outputs(terms))


def _in_unit_interval(x: Array) -> Array:
    return (x >= 0) & (x <= 1)


def _nan_unless(valid: Array, terms: Array) -> Array:
    # A factor, not a choice: the derivative has to be NaN as well.
    return terms * jnp.where(valid, 1.0, jnp.nan).astype(terms.dtype)


def _weighted(weight: Array, surprisal: Callable[[Array], Array], x: Array) -> Array:
    """weight · surprisal(x) where 0·∞ = 0, also in the derivative with respect to x."""
    void = (weight == 0) & jnp.isinf(surprisal(x))
    return weight * surprisal(jnp.where(void, 0.5, x))


def _expected_surprisal(surprisal: Callable[[Array], Array], x: Array, target: Array) -> Array:
    """Σ_k y_k surprisal(x_k), or surprisal(x_y) for a label y."""
    if target.shape == x.shape:
        terms = _weighted(target, surprisal, x)
        return _total(_nan_unless(_in_unit_interval(target), terms))
    num_classes = x.shape[-1]
    # Clipped, because the derivative of an element out of bounds would be 0 and not NaN.
    index = jnp.clip(target, 0, num_classes - 1)[..., None]
    terms = surprisal(jnp.take_along_axis(x, index, axis=-1)[..., 0])
    return _total(_nan_unless((target >= 0) & (target < num_classes), terms))


def _alike(loss: str, prediction: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """Prediction and target as arrays of one shape, in the dtype in which they are accumulated."""
    prediction, target = _arrays(loss, prediction, target)
    if target.shape != prediction.shape:
        raise invalid(
            f"{loss}: target",
            got=f"shape {target.shape} against predictions of shape {prediction.shape}",
            expected=f"shape {prediction.shape}",
            remedy="Give both the same axes, with target[:, None] or prediction[:, 0]: "
            "broadcasting would pair every target with every prediction.",
        )
    return prediction, target.astype(prediction.dtype)


def _classes(loss: str, prediction: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """Prediction (..., K) with a target (..., K) of its dtype, or with integer labels (...)."""
    prediction, target = _arrays(loss, prediction, target)
    if prediction.ndim < 2 or prediction.shape[-1] < 2:
        raise invalid(
            f"{loss}: prediction",
            got=f"shape {prediction.shape} against a target of shape {target.shape}",
            expected="(N, K), K ≥ 2 classes on the last axis",
            remedy="One output per example is a yes-no question, for sigmoid_cross_entropy and "
            "its like, with a target of the same shape: target[:, None] or prediction[:, 0].",
        )
    if target.shape == prediction.shape:
        return prediction, target.astype(prediction.dtype)
    labels_shape = prediction.shape[:-1]
    if target.shape != labels_shape or not jnp.issubdtype(target.dtype, jnp.integer):
        raise invalid(
            f"{loss}: target",
            got=f"shape {target.shape} and dtype {target.dtype} "
            f"against predictions of shape {prediction.shape}",
            expected=f"integer labels of shape {labels_shape} or a vector for every prediction, "
            f"shape {prediction.shape}",
            remedy="Use target.astype(int) for labels 0.0, 1.0, ..., and target[:, 0] for (N, 1).",
        )
    return prediction, target.astype(int)


def _arrays(loss: str, prediction: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    require_real(f"{loss}: prediction", prediction)
    require_real(f"{loss}: target", target)
    prediction, target = wide(prediction), jnp.asarray(target)
    if prediction.ndim < 1:
        raise invalid(
            f"{loss}: prediction",
            got=f"shape {prediction.shape}",
            expected="the batch axis first",
            remedy="Use prediction[None] for one example.",
        )
    return prediction, target

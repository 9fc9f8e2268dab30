"""Metrics against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from jaxnn import metrics

N, K = 60, 4


def classification(seed):
    """Scores of K classes, their largest, and unbalanced labels that they agree with in part."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, N, p=[0.5, 0.3, 0.15, 0.05])
    scores = rng.normal(size=(N, K)) + 1.5 * np.eye(K)[labels] - [0.0, 0.5, 0.0, 0.2]
    return scores.astype(np.float32), scores.argmax(axis=1), labels


def assert_close(actual, desired, dtype):
    rtol = 1e-12 if dtype == jnp.float64 else 2e-6
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=rtol)


def test_classification_metrics_are_those_of_scikit_learn(dtype):
    accuracy, confusion_matrix = (
        jax.jit(metrics.accuracy),
        jax.jit(metrics.confusion_matrix, static_argnums=2),
    )
    for seed in range(4):
        scores, predicted, labels = classification(seed)
        expected = sklearn_metrics.accuracy_score(labels, predicted)
        counts = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(K))
        for prediction in (jnp.asarray(scores, dtype), jnp.asarray(predicted)):
            assert_close(accuracy(prediction, labels), expected, dtype)
            np.testing.assert_array_equal(confusion_matrix(prediction, labels, K), counts)
        per_class = sklearn_metrics.precision_recall_fscore_support(
            labels, predicted, labels=range(K), zero_division=np.nan
        )
        ours = (metrics.precision, metrics.recall, metrics.f1_score)
        for metric, desired in zip(ours, per_class, strict=False):
            value = metric(jnp.asarray(counts))
            assert value.dtype == dtype
            assert_close(value, desired, dtype)
        assert_close(
            jnp.nanmean(metrics.recall(counts)),
            sklearn_metrics.balanced_accuracy_score(labels, predicted),
            dtype,
        )


def test_what_a_class_leaves_undefined_is_nan():
    # Class 1 is never predicted, class 2 never present, class 3 neither.
    confusion = jnp.array([[3, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    nan = np.nan
    np.testing.assert_allclose(metrics.precision(confusion), [0.6, nan, 0, nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.recall(confusion), [0.75, 0, nan, nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.f1_score(confusion), [2 / 3, 0, 0, nan], rtol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_labels_of_any_countable_dtype(kind):
    labels, prediction = np.array([0, 1, 1, 0], kind), np.array([0, 1, 0, 0], kind)
    assert metrics.accuracy(prediction, labels) == 0.75
    counts = metrics.confusion_matrix(prediction, labels, 2)
    np.testing.assert_array_equal(counts, [[2, 0], [1, 1]])


def test_examples_outside_the_classes_are_in_no_cell():
    labels = jnp.array([0, -1, 3, 1, 1, 0])
    prediction = jnp.array([0, 1, 1, -2, 3, 2])
    counts = metrics.confusion_matrix(prediction, labels, 3)
    np.testing.assert_array_equal(counts, [[1, 0, 1], [0, 0, 0], [0, 0, 0]])


def test_scores_with_nan_name_no_class():
    scores = jnp.array([[jnp.nan, 0.0], [0.0, 1.0], [0.0, jnp.nan]])
    labels = jnp.array([0, 1, 1])
    assert metrics.accuracy(scores, labels) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(scores, labels, 2) == pytest.approx(1 / 3)
    np.testing.assert_array_equal(metrics.confusion_matrix(scores, labels, 2), [[0, 0], [0, 1]])


def test_accuracy_of_pixels_is_over_all_of_them():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(2, 3, 5, K)), rng.integers(0, K, (2, 3, 5))
    expected = (scores.argmax(-1) == labels).mean()
    assert metrics.accuracy(scores, labels) == pytest.approx(expected)
    assert metrics.confusion_matrix(scores, labels, K).sum() == 30


@pytest.mark.parametrize("k", range(1, K + 1))
def test_top_k_accuracy_is_that_of_scikit_learn(k):
    top_k_accuracy = jax.jit(metrics.top_k_accuracy, static_argnums=2)
    for seed in range(3):
        scores, _, labels = classification(seed)
        expected = (np.argsort(-scores, axis=1)[:, :k] == labels[:, None]).any(axis=1).mean()
        assert_close(top_k_accuracy(scores, labels, k), expected, jnp.float32)
        if k < K:
            theirs = sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(K))
            assert expected == theirs


def test_of_equal_scores_the_first_is_larger():
    scores, labels = jnp.zeros((4, 4)), jnp.arange(4)
    for k in (1, 2, 3):
        assert metrics.top_k_accuracy(scores, labels, k) == k / 4
    assert metrics.accuracy(scores, labels) == 0.25


def test_roc_auc_is_that_of_scikit_learn_and_the_share_of_pairs(dtype):
    roc_auc = jax.jit(metrics.roc_auc)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        labels = rng.random(N) < 0.2
        scores = np.round(rng.normal(size=N) + 0.8 * labels + 5.0, 1).astype(np.float32)
        value = roc_auc(jnp.asarray(scores, dtype), labels)
        assert value.dtype == dtype
        assert_close(value, sklearn_metrics.roc_auc_score(labels, scores), dtype)
        gaps = scores[labels][:, None] - scores[~labels][None, :]
        assert (gaps == 0).any()
        assert_close(value, np.mean((gaps > 0) + 0.5 * (gaps == 0)), dtype)


def test_roc_auc_is_nan_where_it_is_undefined():
    roc_auc = jax.jit(metrics.roc_auc)
    scores = np.array([0.1, 0.2, 0.3])
    assert roc_auc(scores, np.array([0, 1, 1])) == 1.0
    for labels in ([0, 0, 0], [1, 1, 1], [-1, 1, 1], [0, 1, 2]):
        assert np.isnan(roc_auc(scores, np.array(labels)))
    assert np.isnan(roc_auc(scores * [np.nan, 1, 1], np.array([0, 1, 1])))


@pytest.mark.parametrize("shape", [(11,), (11, 3)])
def test_regression_metrics_are_those_of_scikit_learn(shape, dtype):
    ours = {
        metrics.mean_absolute_error: sklearn_metrics.mean_absolute_error,
        metrics.r_squared: sklearn_metrics.r2_score,
        metrics.root_mean_squared_error: lambda y, p: np.sqrt(
            sklearn_metrics.mean_squared_error(y, p)
        ),
    }
    for metric, oracle in ours.items():
        compiled = jax.jit(metric)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            y = (4.0 * rng.normal(size=shape) + 3.0).astype(np.float32).astype(np.float64)
            p = (y + rng.normal(size=shape)).astype(np.float32).astype(np.float64)
            value = compiled(jnp.asarray(p, dtype), jnp.asarray(y, dtype))
            assert value.shape == ()
            assert value.dtype == dtype
            assert_close(value, oracle(y, p), dtype)


def test_r_squared_of_the_mean_is_zero_and_of_a_constant_not_a_number():
    y = jnp.array([1.0, 2.0, 6.0])
    assert metrics.r_squared(y, y) == 1.0
    assert metrics.r_squared(jnp.full(3, 3.0), y) == 0.0
    constant = jnp.full(1001, 0.1)  # its mean is rounded
    assert jnp.isnan(metrics.r_squared(constant, constant))
    assert metrics.r_squared(constant + 1.0, constant) == -jnp.inf


@pytest.mark.parametrize(
    "metric", [metrics.mean_absolute_error, metrics.root_mean_squared_error, metrics.r_squared]
)
def test_regression_targets_of_another_shape_are_refused(metric):
    message = (
        rf"{metric.__name__}: target: got shape \(5,\) against predictions of shape \(5, 1\), "
        r"expected shape \(5, 1\). .*target\[:, None\] or prediction\[:, 0\]"
    )
    with pytest.raises(ValueError, match=message):
        metric(jnp.ones((5, 1)), jnp.ones(5))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (jnp.ones(5), jnp.ones(5, int), r"prediction: got shape \(5,\) .* logits > 0"),
        (jnp.ones((5, 1)), jnp.ones(5, int), r"prediction: got shape \(5, 1\) .* logits > 0"),
        (jnp.ones((5, 3)), jnp.ones((5, 3)), r"target: got shape \(5, 3\) .*argmax\(-1\)"),
        (jnp.ones((5, 3)), jnp.ones(5), r"target: got shape \(5,\) and dtype float32"),
        (jnp.ones((5, 3)), jnp.ones((5, 1), int), r"target: got .* labels of shape \(5,\)"),
        (jnp.ones(5, int), jnp.ones(4, int), r"target: got shape \(4,\)"),
    ],
)
def test_unfit_classes_are_refused(prediction, target, message):
    with pytest.raises(ValueError, match=f"accuracy: {message}"):
        metrics.accuracy(prediction, target)


def test_unfit_numbers_of_classes_are_refused():
    scores, labels = jnp.ones((5, 3)), jnp.zeros(5, int)
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"top_k_accuracy\(k\): got {k}, expected .* 3\."):
            metrics.top_k_accuracy(scores, labels, k)
    with pytest.raises(ValueError, match=r"\(num_classes\): got 4, expected 3, the number of sco"):
        metrics.confusion_matrix(scores, labels, 4)
    with pytest.raises(ValueError, match=r"\(num_classes\): got 0, expected an integer ≥ 1"):
        metrics.confusion_matrix(labels, labels, 0)

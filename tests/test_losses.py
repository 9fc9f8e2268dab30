"""Losses against float64 formulas in NumPy and SciPy, optax, and the identities between them."""

import inspect
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from jaxnn import losses

SHAPES = [(5,), (4, 2, 3)]
EXTREMES = [0.0, 1e-30, 1.0, 20.0, 88.0, 1e4, 1e30]
EXTREMES = np.array([*EXTREMES, *(-x for x in EXTREMES)])


def draw(seed, kind, shape):
    """Predictions and targets in float64, off-center and exact in float32."""
    rng = np.random.default_rng(seed)
    real = (3.0 * rng.normal(size=shape) + 0.7).astype(np.float32).astype(np.float64)
    probability = rng.uniform(0.01, 0.99, shape).astype(np.float32).astype(np.float64)
    return {
        "real": (real, rng.normal(size=shape).astype(np.float32).astype(np.float64)),
        "logits": (real, probability),
        "hard logits": (real, rng.integers(0, 2, shape)),
        "probabilities": (special.expit(real).astype(np.float32).astype(np.float64), probability),
        "signs": (real, rng.choice([-1, 1], shape)),
    }[kind]


def simplex(seed, shape):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32).astype(np.float64)


def total(terms):
    return terms.reshape(len(terms), -1).sum(axis=1)


def np_sigmoid(z, y):
    return y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)


# loss: kind of data, its terms, their derivative with respect to the prediction
ELEMENTWISE = {
    "half_squared_error": ("real", lambda p, y: (p - y) ** 2 / 2, lambda p, y: p - y),
    "sigmoid_cross_entropy": ("logits", np_sigmoid, lambda z, y: special.expit(z) - y),
    "binary_cross_entropy": (
        "probabilities",
        lambda p, y: -special.xlogy(y, p) - special.xlog1py(1 - y, -p),
        lambda p, y: (p - y) / (p * (1 - p)),
    ),
    "hinge": (
        "signs",
        lambda p, y: np.maximum(0, 1 - y * p),
        lambda p, y: np.where(y * p < 1, -y, 0),
    ),
}


@lru_cache
def compiled(loss):
    """(prediction, target) ↦ the loss and its gradient with respect to the predictions."""

    def value_and_gradient(prediction, target):
        value, pullback = jax.vjp(lambda p: loss(p, target), prediction)
        return value, pullback(jnp.ones_like(value))[0]

    return jax.jit(value_and_gradient)


def evaluate(loss, prediction, target):
    return compiled(loss)(prediction, target)[0]


def gradient(loss, prediction, target):
    return compiled(loss)(prediction, target)[1]


def assert_close(actual, desired, dtype, scale=1.0):
    rtol = (1e-12 if dtype == jnp.float64 else 2e-6) * scale
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise_losses_follow_their_formula(name, shape, dtype):
    kind, formula, derivative = ELEMENTWISE[name]
    loss = getattr(losses, name)
    for seed in range(3):
        prediction, target = draw(seed, kind, shape)
        p, y = jnp.asarray(prediction, dtype), jnp.asarray(target, dtype)
        value, slope = compiled(loss)(p, y)
        assert value.shape == shape[:1]
        assert value.dtype == dtype
        assert_close(value, total(formula(prediction, target)), dtype)
        assert_close(slope, derivative(prediction, target), dtype, scale=4.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_squared_error_is_the_mean_without_the_half(shape, dtype):
    prediction, target = draw(0, "real", shape)
    p, y = jnp.asarray(prediction, dtype), jnp.asarray(target, dtype)
    value, slope = compiled(losses.mean_squared_error)(p, y)
    assert value.shape == shape[:1]
    assert_close(value.mean(), np.mean((prediction - target) ** 2), dtype)
    outputs = np.prod(shape[1:])
    half = evaluate(losses.half_squared_error, p, y)
    assert_close(value, 2.0 / outputs * np.asarray(half), dtype)
    assert_close(slope, 2.0 / outputs * (prediction - target), dtype)


@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 6)])
def test_multi_class_cross_entropies_follow_their_formula(shape, dtype):
    for seed in range(3):
        z, _ = draw(seed, "real", shape)
        y = simplex(seed, shape)
        labels = np.random.default_rng(seed).integers(0, shape[-1], shape[:-1])
        p = special.softmax(z, axis=-1)
        logits, probabilities = jnp.asarray(z, dtype), jnp.asarray(p, dtype)
        for target, vector in ((jnp.asarray(y, dtype), y), (labels, np.eye(shape[-1])[labels])):
            expected = total(-vector * special.log_softmax(z, axis=-1))
            value, slope = compiled(losses.softmax_cross_entropy)(logits, target)
            assert_close(value, expected, dtype)
            # The rounding of the float32 targets: they add up to 1 only nearly.
            assert_close(slope, vector.sum(-1, keepdims=True) * p - vector, dtype)
            value, slope = compiled(losses.cross_entropy)(probabilities, target)
            assert_close(value, expected, dtype, scale=4.0)
            assert_close(slope, -vector / p, dtype, scale=4.0)


@pytest.mark.parametrize(
    ("loss", "oracle", "kind"),
    [
        (losses.half_squared_error, optax.losses.l2_loss, "real"),
        (losses.mean_squared_error, optax.losses.squared_error, "real"),
        (losses.sigmoid_cross_entropy, optax.losses.sigmoid_binary_cross_entropy, "hard logits"),
        (losses.hinge, optax.losses.hinge_loss, "signs"),
    ],
)
def test_elementwise_losses_are_those_of_optax(loss, oracle, kind, float64, standard_promotion):
    prediction, target = (jnp.asarray(a, float64) for a in draw(1, kind, (7,)))
    assert_close(evaluate(loss, prediction, target), oracle(prediction, target), float64)
    assert_close(gradient(loss, prediction, target), gradient(oracle, prediction, target), float64)


def test_softmax_cross_entropy_is_that_of_optax(float64, standard_promotion):
    logits = jnp.asarray(draw(1, "real", (6, 4))[0], float64)
    labels = jnp.array([0, 3, 2, 2, 1, 0])
    y = jnp.asarray(simplex(0, (6, 4)), float64)
    ours = evaluate(losses.softmax_cross_entropy, logits, labels)
    theirs = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert_close(ours, theirs, float64)
    theirs = optax.losses.softmax_cross_entropy(logits, y)
    assert_close(evaluate(losses.softmax_cross_entropy, logits, y), theirs, float64)


def test_cross_entropies_agree_with_each_other(dtype):
    z, _ = draw(2, "real", (9,))
    z = jnp.asarray(z, dtype)
    labels = jnp.arange(9) % 2
    from_logits = evaluate(losses.sigmoid_cross_entropy, z, labels)
    assert_close(
        evaluate(losses.binary_cross_entropy, jax.nn.sigmoid(z), labels), from_logits, dtype, 50.0
    )
    two_classes = jnp.stack([jnp.zeros_like(z), z], axis=-1)
    assert_close(evaluate(losses.softmax_cross_entropy, two_classes, labels), from_logits, dtype)


@pytest.mark.parametrize("label", [0, 1])
def test_sigmoid_cross_entropy_is_exact_at_any_logit(label):
    z = jnp.asarray(EXTREMES, jnp.float32)
    y = jnp.full(z.shape, label)
    value, slope = compiled(losses.sigmoid_cross_entropy)(z, y)
    exact = np_sigmoid(np.asarray(z, np.float64), label)
    # Relatively, without an absolute part: nothing cancels. Below float32's range it is 0.
    np.testing.assert_allclose(value, np.where(exact < 1e-37, 0, exact), rtol=5e-7)
    exact = special.expit(np.asarray(z, np.float64)) - label
    np.testing.assert_allclose(slope, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("label", [0, 2])
def test_softmax_cross_entropy_is_exact_at_any_logit(label):
    pairs = np.array([[a, 0.3, b] for a in EXTREMES for b in EXTREMES]).astype(np.float32)
    y = jnp.full(len(pairs), label)
    exact = -special.log_softmax(pairs.astype(np.float64), axis=-1)[:, label]
    slope = special.softmax(pairs.astype(np.float64), axis=-1) - np.eye(3)[label]
    for target in (y, jax.nn.one_hot(y, 3)):
        value, actual = compiled(losses.softmax_cross_entropy)(pairs, target)
        np.testing.assert_allclose(value, exact, rtol=1e-6, atol=3e-7)
        np.testing.assert_allclose(actual, slope, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("name", ["half_squared_error", "mean_squared_error", "hinge"])
def test_other_losses_are_finite_where_float32_can_hold_them(name):
    loss = getattr(losses, name)
    z = jnp.asarray([x for x in EXTREMES if name == "hinge" or abs(x) < 1e18], jnp.float32)
    for y in (jnp.ones_like(z), -jnp.ones_like(z)):
        assert all(np.isfinite(result).all() for result in compiled(loss)(z, y))


def test_small_probabilities_keep_their_digits():
    p = jnp.array([1e-10, 3e-20, 1e-30], jnp.float32)
    np.testing.assert_allclose(evaluate(losses.binary_cross_entropy, p, jnp.zeros(3)), p, rtol=1e-6)


def test_zero_times_the_logarithm_of_zero_is_zero():
    p = jnp.array([0.0, 1.0, 0.0, 1.0])
    y = jnp.array([0.0, 1.0, 1.0, 0.0])
    inf = np.inf
    np.testing.assert_array_equal(evaluate(losses.binary_cross_entropy, p, y), [0, 0, inf, inf])
    slope = gradient(losses.binary_cross_entropy, p, y)
    np.testing.assert_array_equal(slope, [1, -1, -inf, inf])

    p = jnp.array([[0.0, 0.25, 0.75], [0.0, 0.25, 0.75]])
    y = jnp.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    np.testing.assert_allclose(evaluate(losses.cross_entropy, p, y), [np.log(4), inf], rtol=1e-6)
    slope = gradient(losses.cross_entropy, p, y)
    np.testing.assert_allclose(slope, [[0, -4, 0], [-inf, 0, -2 / 3]], rtol=1e-6)
    of_label = evaluate(losses.cross_entropy, p, jnp.array([1, 0]))
    np.testing.assert_allclose(of_label, [np.log(4), inf], rtol=1e-6)


def test_a_logit_of_minus_infinity_excludes_its_class():
    z = jnp.array([[-jnp.inf, 0.5, 2.0], [1.0, -jnp.inf, 0.0]])
    y = jnp.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
    open_classes = np.array([[0.5, 2.0], [1.0, 0.0]])
    rest = np.array([[0.25, 0.75], [1.0, 0.0]])
    expected = -(rest * special.log_softmax(open_classes, axis=-1)).sum(-1)
    np.testing.assert_allclose(evaluate(losses.softmax_cross_entropy, z, y), expected, rtol=1e-6)
    slope = gradient(losses.softmax_cross_entropy, z, y)
    np.testing.assert_allclose(slope, special.softmax(z, axis=-1) - y, rtol=1e-6, atol=1e-7)
    of_label = evaluate(losses.softmax_cross_entropy, z, jnp.array([1, 1]))
    assert of_label[0] == pytest.approx(1.5 + np.log1p(np.exp(-1.5)), rel=1e-6)
    assert of_label[1] == jnp.inf
    certain = evaluate(
        losses.sigmoid_cross_entropy, jnp.array([jnp.inf, -jnp.inf]), jnp.array([1, 0])
    )
    np.testing.assert_array_equal(certain, 0)


SCORES = np.array([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]], np.float32)


@pytest.mark.parametrize(
    ("loss", "prediction", "target"),
    [
        (losses.softmax_cross_entropy, SCORES, np.array([3, 0])),
        (losses.softmax_cross_entropy, SCORES, np.array([-1, 0])),
        (losses.softmax_cross_entropy, SCORES, np.array([255, 0], np.uint8)),
        (losses.softmax_cross_entropy, SCORES, np.array([[-1, 1, -1], [1, 0, 0]])),
        (losses.cross_entropy, SCORES, np.array([-3, 0])),
        (losses.cross_entropy, SCORES, np.array([[2, 0, 0], [1, 0, 0]])),
        (losses.cross_entropy, np.add(SCORES, [[0, 1, 0], [0, 0, 0]]), np.array([1, 0])),
        (
            losses.cross_entropy,
            np.subtract(SCORES, [[0, 1, 0], [0, 0, 0]]),
            np.array([[0, 1, 0], [1, 0, 0]]),
        ),
        (losses.binary_cross_entropy, np.array([1.5, 0.5]), np.array([1, 0])),
        (losses.binary_cross_entropy, np.array([-0.5, 0.5]), np.array([0, 0])),
        (losses.binary_cross_entropy, np.array([0.5, 0.5]), np.array([-1, 0])),
        (losses.sigmoid_cross_entropy, np.array([0.5, 0.5]), np.array([-1, 1])),
        (losses.hinge, np.array([0.5, 0.5]), np.array([0, 1])),
        (losses.zero_one, np.array([0.5, 0.5]), np.array([0, 1])),
        (losses.zero_one, SCORES, np.array([3, 0])),
        (losses.zero_one, SCORES, np.array([-1, 2])),
    ],
)
def test_values_outside_their_set_give_nan_for_that_example_alone(loss, prediction, target):
    prediction = np.asarray(prediction, np.float32)
    value, slope = compiled(loss)(prediction, target)
    np.testing.assert_array_equal(np.isnan(value), [True, False])
    if loss is not losses.zero_one:
        assert np.isnan(slope[0]).any()
        assert np.isfinite(slope[1]).all()


def test_zero_one_counts_the_sign_of_zero_as_an_error():
    prediction = jnp.array([0.3, 0.0, 0.0, -0.0, -2.0, jnp.nan, 1e-30])
    target = jnp.array([1, 1, -1, 1, 1, 1, 1])
    np.testing.assert_array_equal(
        evaluate(losses.zero_one, prediction, target), [0, 1, 1, 1, 1, 1, 0]
    )
    both = evaluate(
        losses.zero_one, jnp.array([[1.0, -1.0], [1.0, 1.0]]), jnp.array([[1, -1], [1, -1]])
    )
    np.testing.assert_array_equal(both, [0, 1])


def test_zero_one_of_scores_is_the_error_of_the_largest(dtype):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    wrong = evaluate(losses.zero_one, jnp.asarray(scores, dtype), labels)
    np.testing.assert_array_equal(wrong, scores.argmax(1) != labels)
    assert 0 < wrong.mean() < 1
    with_nan = jnp.array([[jnp.nan, 1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(evaluate(losses.zero_one, with_nan, jnp.array([0, 0])), [1, 0])


def test_the_hinge_lies_above_the_zero_one_loss_and_is_flat_from_its_kink_on(dtype):
    prediction, target = draw(0, "signs", (40,))
    p, y = jnp.asarray(prediction, dtype), jnp.asarray(target)
    assert (evaluate(losses.hinge, p, y) >= evaluate(losses.zero_one, p, y)).all()
    slope = gradient(losses.hinge, jnp.array([1.0, -1.0, 2.0], dtype), jnp.array([1, -1, 1]))
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("scale", [None, 0.3, 2])
def test_gaussian_likelihood_is_that_of_scipy(scale, dtype):
    for shape in SHAPES:
        mean, y = draw(3, "real", shape)
        loss = partial(losses.negative_log_likelihood, scale=scale)
        actual = evaluate(loss, jnp.asarray(mean, dtype), jnp.asarray(y, dtype))
        expected = total(-stats.norm.logpdf(y, mean, 1.0 if scale is None else scale))
        assert_close(actual, expected, dtype)


def test_gaussian_likelihood_takes_and_learns_a_scale_per_output(dtype):
    mean, y = draw(4, "real", (6, 3))
    scale = np.random.default_rng(0).uniform(0.5, 2.0, (6, 3))
    arguments = [jnp.asarray(a, dtype) for a in (mean, y)]
    loss = losses.negative_log_likelihood(*arguments, scale=jnp.asarray(scale, dtype))
    assert_close(loss, total(-stats.norm.logpdf(y, mean, scale)), dtype)

    # The likelihood of one shared scale is largest at the root mean squared residual.
    def risk(s):
        return losses.negative_log_likelihood(*arguments, scale=s).mean()

    best = np.sqrt(np.mean((mean - y) ** 2))
    slope = jax.jit(jax.grad(risk))
    low, zero, high = (slope(jnp.asarray(share * best, dtype)) for share in (0.9, 1.0, 1.1))
    assert abs(zero) < (1e-12 if dtype == jnp.float64 else 2e-6)
    assert low < -0.1
    assert high > 0.1


def test_the_unit_gaussian_is_the_squared_error_and_a_constant(dtype):
    mean, y = (jnp.asarray(a, dtype) for a in draw(5, "real", (6, 3)))
    gap = evaluate(losses.negative_log_likelihood, mean, y)
    gap -= evaluate(losses.half_squared_error, mean, y)
    assert_close(gap, np.full(6, 1.5 * np.log(2 * np.pi)), dtype, scale=10.0)


def test_bernoulli_and_categorical_heads_normalize_exp_yz(dtype):
    z, _ = draw(6, "real", (8,))
    y = np.arange(8) % 2
    head = partial(losses.negative_log_likelihood, head="bernoulli")
    value = evaluate(head, jnp.asarray(z, dtype), y)
    assert_close(value, -np.log(np.exp(y * z) / (1.0 + np.exp(z))), dtype)
    assert_close(value, -stats.bernoulli.logpmf(y, special.expit(z)), dtype)

    z, _ = draw(7, "real", (6, 4))
    labels = np.array([0, 3, 2, 1, 1, 0])
    head = partial(losses.negative_log_likelihood, head="categorical")
    probability = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    value = evaluate(head, jnp.asarray(z, dtype), labels)
    assert_close(value, -np.log(probability[range(6), labels]), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept_and_finite(dtype):
    z = jnp.asarray([-1e4, -1.0, 0.0, 1e4], dtype)
    y = jnp.array([1, 0, 1, 0])
    for loss, target in (
        (losses.sigmoid_cross_entropy, y),
        (losses.hinge, 2 * y - 1),
        (partial(losses.negative_log_likelihood, head="bernoulli"), y),
        (lambda z, y: evaluate(losses.softmax_cross_entropy, jnp.stack([z, -z], -1), y), y),
    ):
        for result in compiled(loss)(z, target):
            assert result.dtype == dtype
            assert np.isfinite(result.astype("float32")).all()


@pytest.mark.parametrize("kind", [np.int64, np.uint8, bool, np.float64])
def test_targets_of_other_dtypes_are_converted_exactly(kind, float64):
    y = np.array([0, 1, 1, 0])
    p = np.array([0.1, 2.0, -1.0, 0.5], np.float32)
    for loss in (losses.half_squared_error, losses.sigmoid_cross_entropy):
        value = evaluate(loss, p, y.astype(kind))
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, evaluate(loss, p, y.astype(np.float32)))


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (losses.half_squared_error, SCORES[::-1]),
        (losses.mean_squared_error, SCORES[::-1]),
        (losses.sigmoid_cross_entropy, SCORES[::-1]),
        (losses.softmax_cross_entropy, np.array([2, 0])),
        (losses.cross_entropy, np.array([2, 0])),
        (losses.zero_one, np.array([2, 0])),
        (losses.hinge, np.array([[1, -1, 1], [-1, -1, 1]])),
    ],
)
def test_losses_are_the_same_under_vmap(loss, target):
    one_by_one = jax.jit(jax.vmap(lambda p, y: loss(p[None], y[None])[0]))(SCORES, target)
    np.testing.assert_allclose(one_by_one, evaluate(loss, SCORES, target), rtol=1e-6)


ALIKE = ["half_squared_error", "mean_squared_error", "sigmoid_cross_entropy"]
ALIKE += ["binary_cross_entropy", "hinge", "negative_log_likelihood"]


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("shapes", [((5, 1), (5,)), ((5,), (5, 1)), ((5,), (4,)), ((5, 2), (5, 3))])
def test_targets_of_another_shape_are_refused(name, shapes):
    prediction, target = (jnp.full(shape, 0.5) for shape in shapes)
    with pytest.raises(ValueError, match="broadcasting") as error:
        getattr(losses, name)(prediction, target)
    message = str(error.value)
    assert f"{name}: target: got shape {shapes[1]}" in message
    assert f"predictions of shape {shapes[0]}" in message
    assert "target[:, None] or prediction[:, 0]" in message


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "cross_entropy", "zero_one"])
@pytest.mark.parametrize(
    ("shape", "target", "argument", "expected"),
    [
        ((5, 1), jnp.zeros(5), "prediction", "K ≥ 2 classes"),
        ((5, 1), jnp.zeros(5, int), "prediction", "K ≥ 2 classes"),
        ((5,), jnp.zeros(4, int), "prediction", "K ≥ 2 classes"),
        ((5, 3), jnp.zeros(5), "target", "integer labels of shape (5,)"),
        ((5, 3), jnp.zeros((5, 1), int), "target", "integer labels of shape (5,)"),
        ((5, 3), jnp.zeros((5, 2)), "target", "integer labels of shape (5,)"),
        ((5, 3), jnp.zeros(4, int), "target", "integer labels of shape (5,)"),
    ],
)
def test_unfit_class_targets_are_refused(name, shape, target, argument, expected):
    with pytest.raises(ValueError, match=f"{name}: {argument}: got") as error:
        getattr(losses, name)(jnp.full(shape, 0.5), target)
    for part in (str(shape), str(target.shape), expected):
        assert part in str(error.value)


def unchecked(function):
    """The function as a user calls it, without the type checks of the tests."""
    return inspect.unwrap(function)


def test_predictions_have_a_batch_axis_and_are_real():
    for name in ALIKE:
        loss = unchecked(getattr(losses, name))
        with pytest.raises(
            ValueError, match=r"prediction: got shape \(\), expected the batch axis"
        ):
            loss(jnp.float32(1.0), jnp.float32(1.0))
        with pytest.raises(ValueError, match=r"prediction: got dtype complex64, expected real"):
            loss(jnp.ones(3, complex), jnp.ones(3))


def test_complex_targets_are_refused():
    with pytest.raises(ValueError, match="target: got dtype complex64, expected real numbers"):
        losses.half_squared_error(jnp.ones(3), jnp.ones(3, complex))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "poisson"}, r"\(head\): got 'poisson', expected 'gaussian'"),
        ({"scale": 0.0}, r"\(scale\): got 0.0, expected a number in \(0, inf\)"),
        ({"scale": -1.0}, r"\(scale\): got -1.0, expected a number in \(0, inf\)"),
        ({"scale": jnp.ones(2)}, r"\(scale\): got shape \(2,\) .*, expected .* shape \(3,\)"),
        ({"head": "bernoulli", "scale": 1.0}, r"\(scale\): got shape \(\) for head='bernoulli'"),
    ],
)
def test_likelihoods_refuse_bad_options(options, message):
    with pytest.raises(ValueError, match=f"negative_log_likelihood{message}"):
        unchecked(losses.negative_log_likelihood)(jnp.zeros(3), jnp.zeros(3), **options)

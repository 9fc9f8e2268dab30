"""Splits, standardization and mini-batches: set identities, scikit-learn and NumPy float64."""

import inspect
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from jaxnn import data


@lru_cache
def splitter(n, stratified, **options):
    if stratified:
        options["stratify"] = np.arange(n) % 3
    return jax.jit(lambda key: data.split(key, np.arange(n), **options))


def parts_of(n, seed=0, stratified=False, **options):
    """The indices that a split of n examples puts into each part, as lists."""
    split = splitter(n, stratified, **options)(jax.random.key(seed))
    return tuple(part[0].tolist() for part in split)


def sizes_of(n, fractions):
    key = jax.random.key(0)
    split = jax.eval_shape(lambda key: data.split(key, np.arange(n), fractions=fractions), key)
    return [part[0].size for part in split]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("n", [10, 37])
def test_parts_are_disjoint_and_leave_nobody_out(n, stratified):
    orders = set()
    for seed in range(3):
        train, validation, test = parts_of(n, seed, stratified, fractions=(0.5, 0.2, 0.3))
        assert sorted(train + validation + test) == list(range(n))
        assert abs(len(train) - 0.5 * n) <= 1
        assert abs(len(validation) - 0.2 * n) <= 1
        assert len(test) == round(0.3 * n)
        orders.add(tuple(train))
    assert len(orders) == 3
    assert tuple(range(len(train))) not in orders


def test_arrays_are_cut_alike_and_keep_dtype_and_axes(dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (13, 2, 3), dtype=np.uint8)
    x = jnp.asarray(rng.normal(size=(13, 4)), dtype)
    cut = jax.jit(partial(data.split, sizes=(5, 3, 4)))
    split = cut(jax.random.key(1), images, x, np.arange(13))
    assert [part[2].size for part in split] == [5, 3, 4]
    for part_images, part_x, index in split:
        assert part_images.dtype == np.uint8
        assert part_x.dtype == dtype
        np.testing.assert_array_equal(part_images, images[index])
        np.testing.assert_array_equal(part_x, x[index])


@pytest.mark.parametrize("stratified", [False, True])
def test_the_test_part_depends_on_its_own_size_alone(stratified):
    cut = partial(parts_of, 40, 5, stratified)
    train, validation, test = cut(sizes=(20, 10, 10))
    assert cut(sizes=(1, 19, 10))[2] == test
    smaller_train, same_validation, same_test = cut(sizes=(5, 10, 10))
    assert same_test == test
    assert same_validation == validation
    assert smaller_train == train[:5]


def test_fractions_are_rounded_without_losing_an_example():
    rng = np.random.default_rng(0)
    for n in (7, 50, 101):
        for shares in rng.dirichlet([3.0, 2.0, 2.0], 4):
            shares = tuple(float(share) for share in shares)
            if min(shares) * n < 1:
                continue
            sizes = sizes_of(n, shares)
            assert sum(sizes) == n
            assert np.abs(np.array(sizes) - n * np.array(shares)).max() <= 1
    assert sizes_of(3, (1.0, 0.0, 0.0)) == [3, 0, 0]
    assert sizes_of(20, (0.25, 0.0, 0.25)) == [5, 0, 5]
    assert sizes_of(30, (0.1, 0.2, 0.7)) == [3, 6, 21]


def test_stratified_parts_have_the_proportions_of_the_whole():
    rng = np.random.default_rng(0)
    counts = np.array([90, 45, 12, 3])
    labels = rng.permutation(np.repeat([7, -2, 4, 100], counts))
    classes = np.array([7, -2, 4, 100])
    rare_in_test = set()
    cut = jax.jit(partial(data.split, fractions=(0.6, 0.15, 0.25), stratify=labels))
    for seed in range(8):
        split = cut(jax.random.key(seed), labels)
        for (part,) in split:
            found = (np.asarray(part)[:, None] == classes).sum(axis=0)
            # Evenly spaced positions of C classes: within 1 of what the window holds of each, and
            # the window's length is within C of its share.
            bound = 1 + len(classes) * counts / labels.size
            assert (np.abs(found - part.size * counts / labels.size) <= bound).all()
        rare_in_test.add(int((split.test[0] == 100).sum()))
    assert len(rare_in_test) > 1


def test_every_example_is_as_likely_to_be_tested():
    def tested(key, stratify=None):
        test = data.split(key, np.arange(20), sizes=(10, 5, 5), stratify=stratify).test[0]
        return jnp.zeros(20).at[test].add(1.0)

    keys = jax.random.split(jax.random.key(0), 2000)
    for stratify in (None, np.array([0] * 12 + [1] * 7 + [2])):
        share = jax.jit(jax.vmap(partial(tested, stratify=stratify)))(keys).mean(axis=0)
        # 0.25 with a standard error of 0.01; 20 examples.
        np.testing.assert_allclose(share, 0.25, atol=0.04)


def test_splits_are_the_same_under_jit():
    x = jnp.arange(12.0)
    labels = jnp.arange(12) % 3
    for options in ({}, {"stratify": labels}):
        split = partial(data.split, fractions=(0.5, 0.25, 0.25), **options)
        eager, compiled = split(jax.random.key(3), x), jax.jit(split)(jax.random.key(3), x)
        jax.tree.map(np.testing.assert_array_equal, eager, compiled)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((), {"sizes": (1, 1, 1)}, r"\(arrays\): got no array, expected at least one"),
        ((np.ones(4), np.ones((3, 4))), {"sizes": (1, 1, 1)}, r"got shapes \(4,\), \(3, 4\), exp"),
        ((np.ones(()),), {"sizes": (1, 1, 1)}, r"\(arrays\): got shapes \(\)"),
        ((np.ones(4),), {}, r"\(fractions, sizes\): got fractions=None, sizes=None, expected exa"),
        ((np.ones(4),), {"sizes": (1, 1, 1), "fractions": (0.5, 0.2, 0.2)}, "expected exactly one"),
        ((np.ones(4),), {"sizes": (2, 2, 1)}, r"\(sizes\): got \(2, 2, 1\), expected .* sum ≤ 4"),
        ((np.ones(4),), {"sizes": (2, -1, 1)}, r"\(sizes\): got \(2, -1, 1\), expected three"),
        ((np.ones(4),), {"sizes": (0.5, 0.2, 0.2)}, r"\(sizes\): .*, expected three integers"),
        ((np.ones(4),), {"sizes": (2, 2)}, r"\(sizes\): got \(2, 2\), expected three"),
        ((np.ones(9),), {"fractions": (0.8, 0.2, 0.1)}, r"\(fractions\): .*, expected .* sum ≤ 1"),
        ((np.ones(9),), {"fractions": (1.2, -0.2, 0.0)}, r"\(fractions\): .*, expected three numb"),
        ((np.ones(9),), {"fractions": (0.8, 0.2)}, r"\(fractions\): .*, expected three numbers"),
        ((np.ones(9),), {"fractions": (0.9, 0.05, 0.05)}, "expected at least one example for eve"),
        ((np.ones(9),), {"sizes": (3, 3, 3), "stratify": np.ones(8)}, r"split\(stratify\): got sh"),
    ],
)
def test_unfit_splits_are_refused(arrays, options, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(data.split)(jax.random.key(0), *arrays, **options)


def features(seed, n=23):
    """Three features of very different location and scale."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)) * [1e-3, 2.0, 30.0] + [0.0, -5.0, 1e3]


def test_standardize_is_that_of_scikit_learn(dtype):
    for seed in range(3):
        train, test = (features(s).astype(dtype) for s in (seed, seed + 10))
        scaled, scaling = jax.jit(data.standardize)(jnp.asarray(train))
        oracle = StandardScaler().fit(train.astype(np.float64))
        tolerance = {"rtol": 1e-11, "atol": 1e-11} if dtype == jnp.float64 else {"atol": 1e-4}
        assert scaled.dtype == dtype
        np.testing.assert_allclose(scaled, oracle.transform(train.astype(float)), **tolerance)
        transformed = scaling.transform(test)
        np.testing.assert_allclose(transformed, oracle.transform(test.astype(float)), **tolerance)
        np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=tolerance["atol"])
        np.testing.assert_allclose(scaled.std(axis=0), 1, atol=tolerance["atol"])
        np.testing.assert_allclose(scaling.mean[0], oracle.mean_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(scaling.std[0], oracle.scale_, rtol=1e-5)
        assert scaling.finite.all()
        np.testing.assert_allclose(scaling.inverse(transformed), test, rtol=1e-5, atol=1e-9)


def test_channels_are_standardized_over_examples_and_pixels():
    images = np.random.default_rng(0).integers(0, 255, (6, 4, 5, 3), dtype=np.uint8)
    images[..., 1] //= 8
    for axis in ((0, 1, 2), (0, -2, -3)):
        scaled, scaling = jax.jit(partial(data.standardize, axis=axis))(images)
        assert scaling.mean.shape == (1, 1, 1, 3)
        mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
        np.testing.assert_allclose(scaling.mean.ravel(), mean, rtol=1e-5)
        np.testing.assert_allclose(scaled, (images - mean) / std, atol=1e-5)
    np.testing.assert_allclose(scaling.inverse(scaled), images, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.3, -1e-30])
def test_constant_features_become_zero(value, dtype):
    x = np.stack([np.full(1001, value), np.arange(1001.0)], axis=1)
    scaled, scaling = jax.tree.map(np.asarray, jax.jit(data.standardize)(jnp.asarray(x, dtype)))
    np.testing.assert_array_equal(scaled[:, 0], 0)
    assert scaling.std[0, 0] == 1
    assert scaling.mean[0, 0] == dtype.type(value)
    np.testing.assert_allclose(scaled[:, 1].std(), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_standardize_at_scales_whose_squares_leave_float32(size):
    x = features(0)[:, 1:2] * 0.3
    scaled, _ = data.standardize(jnp.asarray(size * x, jnp.float32))
    np.testing.assert_allclose(scaled, (x - x.mean()) / x.std(), atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_reported_and_stay_visible(bad):
    for row in (0, 5):
        x = features(0).astype(np.float32)
        x[row, 1] = bad
        scaled, scaling = data.standardize(x)
        np.testing.assert_array_equal(scaling.finite, [[True, False, True]])
        assert jnp.isnan(scaled[:, 1]).all()
        assert jnp.isfinite(scaled[:, [0, 2]]).all()


@pytest.mark.parametrize(("shape", "axis"), [((0, 3), 0), ((4, 3), 1), ((4, 3), (0, 2)), ((), 0)])
def test_standardize_needs_examples_to_average_over(shape, axis):
    with pytest.raises(ValueError, match=r"standardize: x, axis: got shape .*at least one example"):
        inspect.unwrap(data.standardize)(jnp.ones(shape), axis=axis)


@pytest.mark.parametrize("shape", [(5, 1), (5, 4), (3,), (5, 3, 1)])
def test_a_standardization_refuses_other_features(shape):
    _, scaling = data.standardize(features(0))
    for map in (scaling.transform, scaling.inverse):
        with pytest.raises(ValueError, match=r"x: got shape .*, expected .* has shape \(1, 3\)"):
            map(jnp.ones(shape))


@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (7, 5)])
def test_batches_draw_without_replacement(n, size):
    draw = jax.jit(data.batches, static_argnums=(1, 2), static_argnames="remainder")
    epochs = set()
    for seed in range(3):
        key = jax.random.key(seed)
        rows = np.asarray(draw(key, n, size))
        assert rows.shape == (n // size, size)
        assert len(set(rows.ravel())) == rows.size
        assert rows.min() >= 0
        assert rows.max() < n
        epochs.add(tuple(rows.ravel()))

        wrapped = np.asarray(draw(key, n, size, remainder="wrap"))
        assert wrapped.shape == (-(-n // size), size)
        np.testing.assert_array_equal(wrapped.ravel()[:n][: rows.size], rows.ravel())
        assert sorted(wrapped.ravel()[:n]) == list(range(n))
        np.testing.assert_array_equal(wrapped.ravel()[n:], wrapped.ravel()[: wrapped.size - n])
        if n % size == 0:
            np.testing.assert_array_equal(draw(key, n, size, remainder="raise"), rows)
    assert len(epochs) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"\(batch_size\): got 0, expected an integer from 1 to .*, 10\."),
        ({"batch_size": 11}, r"\(batch_size\): got 11, expected an integer from 1 to .*, 10\."),
        (
            {"batch_size": 4, "remainder": "raise"},
            r"got 4 for 10 examples, expected a divisor .*2 l",
        ),
        ({"batch_size": 4, "remainder": "pad"}, r"\(remainder\): got 'pad', expected 'drop', 'w"),
    ],
)
def test_unfit_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(data.batches)(jax.random.key(0), 10, **arguments)


def test_one_hot_vectors(dtype):
    labels = np.array([[2, 0], [1, 2]], np.uint8)
    vectors = data.one_hot(labels, 3)
    assert vectors.dtype == dtype
    np.testing.assert_array_equal(vectors, np.eye(3)[labels])
    outside = jax.jit(data.one_hot, static_argnums=1)(jnp.array([-1, 0, 3]), 3)
    np.testing.assert_array_equal(jnp.isnan(outside).all(axis=1), [True, False, True])

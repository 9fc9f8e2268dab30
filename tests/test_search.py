"""Grid and random search: held to loops, and to the distributions they draw from."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from least_squares import DATA, KEY, PARAMS, half_squares, linear

from jaxnn import optimizers, search, training


def test_a_grid_is_every_combination_once():
    trials = search.grid(rate=[0.1, 0.2], width=[8, 16, 32], name=["a", "b"])
    rows = list(zip(*(trials[n].tolist() for n in ("rate", "width", "name")), strict=True))
    assert rows == [(r, w, n) for r in (0.1, 0.2) for w in (8, 16, 32) for n in ("a", "b")]


def test_random_trials_are_drawn_from_their_distributions():
    trials = search.random(
        jax.random.key(0),
        4000,
        rate=search.log_uniform(1e-4, 1e-1),
        keep=search.uniform(-1.0, 3.0),
        width=search.choice(8, 16, 64),
    )
    logs = np.log10(trials["rate"])
    for draws, low, high in ((logs, -4, -1), (trials["keep"], -1, 3)):
        assert low <= draws.min() < draws.max() < high
        assert abs(draws.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 4000)
        assert abs(draws.std() * np.sqrt(12) / (high - low) - 1) < 0.05
    assert abs(np.corrcoef(logs, trials["keep"])[0, 1]) < 4 / np.sqrt(4000)
    counts = [np.sum(trials["width"] == w) for w in (8, 16, 64)]
    assert np.abs(np.array(counts) - 4000 / 3).max() < 4 * np.sqrt(4000 * 2 / 9)


def test_random_search_hits_the_best_share_as_often_as_predicted():
    trials = search.random(jax.random.key(1), 60 * 500, x=search.uniform(0.0, 1.0))
    hit = (trials["x"].reshape(500, 60) < 0.05).any(axis=1).mean()
    predicted = search.hit_probability(60, 0.05)
    np.testing.assert_allclose(predicted, 1 - 0.95**60, rtol=1e-12)
    assert abs(hit - predicted) < 4 * np.sqrt(predicted * (1 - predicted) / 500)
    assert search.hit_probability(3, 1.0) == 1.0
    assert search.hit_probability(0, 1.0) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 2])
def test_every_run_is_the_one_of_a_loop(batch_size):
    def measure(key, rate, batch, penalty):
        _, losses = training.descend(
            *(linear, PARAMS, half_squares, DATA, optimizers.gradient_descent(rate)),
            **{"steps": 6, "batch_size": batch, "key": key},
        )
        return losses[-1] + penalty

    trials = search.grid(rate=[0.01, 0.1], batch=[5, 7], penalty=[0.5])
    found = search.evaluate(measure, trials, KEY, seeds=3, static=["batch"], batch_size=batch_size)
    assert found.values.shape == (4, 3)
    keys = jax.random.split(KEY, 3)
    for i in (0, 3):
        rate, batch = jnp.float32(trials["rate"][i]), int(trials["batch"][i])
        run = training.fit(
            *(linear, PARAMS, half_squares, DATA, optimizers.gradient_descent(rate)),
            **{"steps": 6, "batch_size": batch, "key": keys[2]},
        )
        np.testing.assert_allclose(found.values[i, 2], run.history["loss"][-1] + 0.5, rtol=1e-5)
    assert len(set(found.values.ravel().tolist())) == 12


def results():
    values = np.array([[0.5, 0.7], [0.1, np.nan], [0.2, 0.3], [0.25, 0.25]])
    return search.Results({"rate": np.array([1.0, 10.0, 0.1, 0.01])}, values)


def test_the_best_trial_is_that_of_the_best_mean_and_never_a_nan():
    assert results().best() == {"rate": 0.1}  # the first of equals
    assert results().best(larger_is_better=True) == {"rate": 1.0}
    with pytest.raises(ValueError, match=r"Results\.best: got a NaN in every trial"):
        search.Results({"rate": np.ones(1)}, np.array([[np.nan, 1.0]])).best()


def test_the_table_is_sorted_and_aligned():
    lines = results().table().splitlines()
    assert [line.split() for line in lines] == [
        ["rate", "mean", "±"],
        ["0.1", "0.25", "0.05"],
        ["0.01", "0.25", "0"],
        ["1", "0.6", "0.1"],
        ["10", "nan", "nan"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert len(results().table(rows=2).splitlines()) == 3


def twice(x):
    return 2.0 * x


def test_values_are_kept_as_they_are_given():
    values = [(64, 64), (128,), None, twice, "tanh", 3, 0.5, [1, 2]]
    trials = search.grid(value=values, seed=[0, 1])
    assert [v for v in trials["value"][::2]] == values
    assert [type(v) for v in trials["value"][::2]] == [type(v) for v in values]
    drawn = search.random(KEY, 50, value=search.choice(*values))["value"]
    assert {id(v) for v in drawn} <= {id(v) for v in values}


def test_static_values_of_any_type_reach_the_measure():
    calls = []

    def measure(key, sizes, f, rate):
        calls.append((sizes, f))
        return f(rate) + float(sum(sizes))

    trials = search.grid(sizes=[(1, 2), (4,), [4, 4]], f=[twice, jnp.sin], rate=[0.5, 0.25])
    found = search.evaluate(measure, trials, KEY, static=["sizes", "f"])
    assert len(calls) == 6  # the rates are mapped over
    expected = [
        f(rate) + sum(sizes)
        for sizes, f, rate in zip(trials["sizes"], trials["f"], trials["rate"], strict=True)
    ]
    np.testing.assert_allclose(found.mean, expected, rtol=1e-6)
    assert found.best() == {"sizes": (1, 2), "f": jnp.sin, "rate": 0.25}
    assert "twice" in found.table()


def test_numbers_of_mixed_types_are_mapped_over():
    found = search.evaluate(lambda key, x: x**2, search.grid(x=[1, 0.5, np.float32(2)]), KEY)
    np.testing.assert_allclose(found.mean, [1.0, 0.25, 4.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: search.evaluate(lambda key, a: 0.0, search.grid(a=[(1, 2), (3,)]), KEY),
            r"evaluate\(trials\): a: got \(1, 2\), which is no number.*static=\['a'\]",
        ),
        (
            lambda: search.evaluate(lambda key, a: 0.0, search.grid(a=["x"]), KEY),
            r"a: got x, which",
        ),
        (
            lambda: search.evaluate(lambda key, a: a, search.grid(a=[2**40]), KEY),
            "got 1099511627776",
        ),
        (lambda: search.grid(), r"grid\(axes\): got"),
        (lambda: search.grid(rate=[]), r"grid\(axes\): got"),
        (lambda: search.random(KEY, 0, x=search.uniform(0.0, 1.0)), r"random\(num_trials, samp"),
        (lambda: search.random(KEY, 3), r"random\(num_trials, samplers\)"),
        (lambda: search.uniform(1.0, 0.0), r"uniform\(low\): got 1.0"),
        (lambda: search.log_uniform(0.0, 1.0), r"log_uniform\(low\): got 0.0"),
        (lambda: search.choice(), r"choice\(values\): got none"),
        (lambda: search.evaluate(None, {"a": [1], "b": [1, 2]}, KEY), r"evaluate\(trials, static"),
        (lambda: search.evaluate(None, {"a": [1]}, KEY, static=["b"]), r"evaluate\(trials, static"),
        (
            lambda: search.evaluate(lambda key, a: jnp.ones(2), {"a": [1.0]}, KEY),
            r"got shape \(2,\)",
        ),
    ],
)
def test_unfit_searches_are_refused(call, message):
    patch = pytest.MonkeyPatch()
    with patch.context() as unchecked:
        unchecked.setattr(search, "evaluate", inspect.unwrap(search.evaluate))
        with pytest.raises(ValueError, match=message):
            call()

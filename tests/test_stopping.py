"""Early stopping, several callbacks, and `descend`: `fit` inside jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from least_squares import (
    DATA,
    KEY,
    PARAMS,
    X,
    Y,
    assert_close,
    assert_same,
    descent,
    fit,
    linear,
    regression,
)

from jaxnn import losses, nn, optimizers, training
from jaxnn.training import EarlyStopping


def stopped_at(values, **options):
    """Where a run that sees these validation values stops, and the step that it takes for best."""
    stopping = EarlyStopping(**options)
    for step, value in enumerate(values, 1):
        state = training.State(None, None, jnp.int32(step))
        if stopping(training.Progress(step, 9, 0.0, {"loss": value, "score": value}, step, state)):
            return step, stopping.best.step
    return None, stopping.best.step


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([3.0, 2.0, 2.0, 1.0, 5.0], {"patience": 1}, (3, 2)),
        ([3.0, 2.0, 2.5, 1.0, 5.0], {"patience": 2}, (None, 4)),
        ([3.0, 2.0, 2.5, 2.2, 0.0], {"patience": 2}, (4, 2)),
        ([3.0, 2.0, 1.8, 1.6, 1.5], {"patience": 2, "min_delta": 0.3}, (None, 4)),
        ([3.0, 2.9, 2.8, 2.6], {"patience": 2, "min_delta": 0.3}, (3, 1)),
        ([1.0, np.nan, 0.5, np.nan, np.nan], {"patience": 2}, (5, 3)),
        ([np.nan, 1.0, 0.5, np.nan, np.nan], {"patience": 2}, (5, 3)),
        ([np.nan, np.nan, np.nan], {"patience": 2}, (3, 1)),
        ([np.inf, 3.0, -np.inf, 2.0, 1.0], {"patience": 2}, (5, 3)),
        (
            [1.0, 2.0, 1.5, 1.2],
            {"patience": 2, "metric": "score", "larger_is_better": True},
            (4, 2),
        ),
    ],
)
def test_a_run_stops_once_patience_is_over(values, options, expected):
    assert stopped_at(values, **options) == expected


def overfitting(**options):
    """A line whose validation loss falls at first and rises later."""
    shifted = (X, Y + 4.0 * X[:, 0] + 1.0)
    return fit(optimizer=descent(0.1), validation=shifted, chunk=3, **options)


def test_the_best_parameters_are_those_of_the_least_validation_loss():
    stopping = EarlyStopping(2)
    run = overfitting(steps=300, callback=stopping)
    whole = overfitting(steps=300)
    looks = np.asarray(whole.history["validation_loss"])
    best = int(np.argmin(looks))
    assert 0 < best < len(looks) - 5
    assert (run.stopped, run.steps) == (True, 3 * (best + 3))
    assert not whole.stopped
    assert stopping.best.step == 3 * (best + 1)
    assert stopping.best.value == looks[best]
    exact = overfitting(steps=3 * (best + 1))
    assert_same((stopping.best.params, stopping.best.state), (exact.params, exact.state))
    assert run.history["validation_step"][-1] == run.steps


def test_early_stopping_goes_on_from_a_checkpoint(tmp_path):
    path, whole = tmp_path / "run.npz", EarlyStopping(2)
    stop = overfitting(steps=300, callback=whole).steps
    first = EarlyStopping(2)

    def save(progress):
        training.save(path, (progress.params, progress.state, first.best))

    overfitting(steps=stop - 3, callback=training.each(first, save))
    assert first.best.waited == 1
    start = training.initial_state(PARAMS, descent(0.1))
    params, state, best = training.load(
        path, (PARAMS, start, training.Best(0.0, 0, PARAMS, start, 0))
    )
    second = EarlyStopping(2, best=best)
    run = fit(
        params,
        optimizer=descent(0.1),
        state=state,
        validation=(X, Y + 4.0 * X[:, 0] + 1.0),
        **{"steps": 300, "chunk": 3, "callback": second},
    )
    assert (run.stopped, int(run.state.step)) == (True, stop)
    assert_same(second.best, whole.best)


def test_every_callback_is_called_and_any_may_stop():
    seen = []
    calls = [lambda p: p.step == 8, lambda p: seen.append(p.step)]
    run = fit(steps=20, chunk=4, callback=training.each(*calls))
    assert (run.stopped, run.steps, seen) == (True, 8, [4, 8])
    # What is true but not True, as a number returned by chance, does not stop a run.
    assert not fit(steps=8, chunk=4, callback=lambda p: 1).stopped


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EarlyStopping(0), r"EarlyStopping\(patience, min_delta\): got 0, 0.0"),
        (lambda: EarlyStopping(1, min_delta=-1.0), r"EarlyStopping\(patience, min_delta\)"),
        (lambda: fit(steps=3, callback=EarlyStopping(1)), r"\(metric\): got 'loss', of \[\]"),
        (
            lambda: fit(steps=3, validation=DATA, callback=EarlyStopping(1, metric="x")),
            r"\(metric\): got 'x', of \['loss'\]",
        ),
    ],
)
def test_unfit_stopping_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


NET = nn.serial(nn.dense(5), nn.tanh(), nn.dropout(0.3), nn.dense(1))


@pytest.mark.slow
def test_a_descent_is_the_fit_and_maps_over_rates_and_keys():
    params, _ = NET.init(jax.random.key(0), (3,))
    problem = (NET.apply, params, losses.half_squared_error, (X, Y[:, None]))
    usual = {"steps": 14, "batch_size": 5, "stochastic": True}

    @jax.jit
    @jax.vmap
    def trained(rate, key):
        return training.descend(*problem, optimizers.adam(rate), key=key, **usual)

    keys = jax.random.split(KEY, 2)
    ends, curves = trained(jnp.array([0.01, 0.1]), keys)
    run = training.fit(*problem, optimizers.adam(0.1), key=keys[1], **usual)
    assert_close(jax.tree.map(lambda leaf: leaf[1], ends), run.params, "float32")
    assert_close(curves[1], run.history["loss"], "float32")
    assert not np.allclose(curves[0], curves[1])


def test_a_descent_can_be_differentiated(float64):
    params, data = regression(float64)

    def end(rate):
        usual = (linear, params, losses.half_squared_error, data, descent(rate))
        return training.descend(*usual, steps=5)[0]["w"][0]

    rate, h = 0.05, 1e-6
    slope = (end(rate + h) - end(rate - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(end)(rate), slope, rtol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"descend\(steps\): got 0"),
        ({"steps": 2, "batch_size": 24}, r"descend\(batch_size\): got 24"),
        ({"steps": 2, "batch_size": 4}, r"descend\(key\): got none"),
        ({"steps": 2, "optimizer": None}, r"optimizer"),
    ],
)
def test_unfit_descents_are_refused(options, message):
    usual = {"optimizer": descent(0.1)} | options
    optimizer = usual.pop("optimizer")
    with pytest.raises(ValueError, match=message):
        training.descend(linear, PARAMS, losses.half_squared_error, DATA, optimizer, **usual)

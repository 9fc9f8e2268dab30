"""How runs of `training.fit` end before their last step."""

import signal
import subprocess
import sys
from typing import NamedTuple

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
    descend,
    descent,
    drawn_rows,
    fit,
    linear,
    regression,
    worst,
)

from jaxnn import optimizers, tree

# Divergence


def overflowing(dtype, **options):
    """Minimize 4.5·θ² from 1.5 with learning rate 1: θ ← -8θ, exactly."""
    return fit(
        jnp.array(1.5, dtype),
        (jnp.ones(1, dtype), None),
        f=lambda w, x: w * x,
        loss=lambda prediction, _: jnp.asarray(4.5, dtype) * prediction**2,
        optimizer=descent(1.0),
        **options,
    )


@pytest.mark.parametrize(("chunk", "beyond"), [(1, 60), (3, 1), (None, 1), (50, 60)])
def test_divergence_returns_the_last_parameters_of_finite_loss(dtype, chunk, beyond):
    theta, powers = np.array(1.5, dtype), []
    with np.errstate(over="ignore"):
        while np.isfinite(np.array(4.5, dtype) * theta**2):
            powers.append(theta)
            theta = np.array(-8.0, dtype) * theta
    last = len(powers) - 1
    validation = (jnp.ones(1, dtype), None)
    run = overflowing(dtype, steps=last + beyond, chunk=chunk, validation=validation)
    assert run.diverged
    assert (run.steps, int(run.state.step), run.history["loss"].shape) == (last, last, (last,))
    assert run.params == powers[last]
    np.testing.assert_allclose(run.history["loss"], 4.5 * np.array(powers[:last]) ** 2, rtol=1e-6)
    assert np.all(run.history["validation_step"] <= last)


def test_a_run_that_stops_before_the_overflow_has_not_diverged():
    run = overflowing(jnp.float32, steps=20)
    assert (run.diverged, run.params) == (False, 1.5 * 8.0**20)


class Count(NamedTuple):
    step: jax.Array


def spoiling(at):
    """Gradient descent whose update number `at` of the leaf "unused" is NaN."""

    def update(grads, state, params=None):
        updates = tree.scale(-0.1, grads)
        spoiled = jnp.where(state.step == at, jnp.nan, 0.0)
        return updates | {"unused": updates["unused"] + spoiled}, Count(state.step + 1)

    return optimizers.Optimizer(lambda params: Count(jnp.zeros((), jnp.int32)), update)


def without_unused(params, x):
    return linear({"w": params["w"], "b": params["b"]}, x)


@pytest.mark.parametrize("chunk", [1, 20])
def test_an_unused_parameter_that_becomes_nan_stops_the_run_too(chunk):
    params, data = regression()
    params["unused"] = jnp.array(0.25)
    run = fit(params, data, f=without_unused, optimizer=spoiling(at=13), steps=20, chunk=chunk)
    assert (run.diverged, run.steps, run.params["unused"]) == (True, 13, 0.25)
    del params["unused"]
    expected, expected_losses = descend(params, data, 0.1, [np.arange(23)] * 13)
    assert_close([run.params["w"], run.params["b"]], [expected["w"], expected["b"]], "float32")
    assert_close(run.history["loss"], expected_losses, "float32")


def test_a_loss_that_is_never_finite_returns_the_initial_parameters():
    run = fit(data=(X, Y.at[3].set(jnp.nan)), steps=20, metrics={"worst": worst})
    assert_same(run.params, PARAMS)
    assert (run.diverged, run.steps, int(run.state.step)) == (True, 0, 0)
    assert [(n, v.shape) for n, v in run.history.items()] == [("loss", (0,)), ("worst", (0,))]


def test_a_bad_example_stops_the_run_before_its_batch():
    rows = drawn_rows(23, 4, 10, KEY)
    data = (X, Y.at[rows[3][0]].set(jnp.nan))  # it is in the batch of step 3
    run = fit(data=data, optimizer=descent(0.05), steps=10, batch_size=4, key=KEY)
    # θ₃ is finite, but the loss there is not: θ₂ it is.
    assert (run.diverged, run.steps) == (True, 2)
    assert_close(run.params, descend(PARAMS, data, 0.05, rows[:2])[0], "float32")


def test_a_regularizer_can_diverge_as_well():
    run = fit(steps=5, regularizer=lambda p: jnp.inf * jnp.sum(p["w"]))
    assert (run.diverged, run.steps) == (True, 0)


# Ctrl-C


def test_ctrl_c_in_the_callback_returns_what_was_reached(default_sigint):
    def callback(progress):
        if progress.step == 8:
            signal.raise_signal(signal.SIGINT)

    options = {"batch_size": 5, "key": KEY, "chunk": 4, "validation": DATA}
    run, expected = fit(steps=20, callback=callback, **options), fit(steps=8, **options)
    assert (run.interrupted, run.diverged) == (True, False)
    assert_same(run._replace(interrupted=False), expected)


def test_ctrl_c_in_the_first_chunk_returns_the_start():
    def f(params, x):
        raise KeyboardInterrupt

    run = fit(f=f, steps=20, validation=DATA, metrics={"worst": worst})
    assert (run.interrupted, run.steps, int(run.state.step)) == (True, 0, 0)
    assert_same(run.params, PARAMS)
    assert [values.shape for values in run.history.values()] == [(0,)] * 5


def test_a_signal_amid_a_chunk_returns_the_chunk_before(default_sigint):
    program = """
import jax.numpy as jnp
from jaxnn import optimizers, training

run = training.fit(
    lambda w, x: x @ w,
    jnp.zeros(50),
    lambda prediction, target: (prediction - target) ** 2,
    (jnp.ones((400, 50)), jnp.ones(400)),
    optimizers.gradient_descent(1e-6),
    steps=10**9,
    chunk=1000,
    callback=lambda progress: print(progress.step, flush=True),
)
print(run.interrupted, run.steps % 1000, run.steps == run.history["loss"].size, run.steps)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1000\n"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    *told, last = ["1000", *out.splitlines()]
    *fine, steps = last.split()
    # The signal may come between the end of a chunk and the callback.
    assert fine == ["True", "0", "True"]
    assert int(steps) - int(told[-1]) in (0, 1000)

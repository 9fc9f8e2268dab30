import logging
import re
import signal
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import losses, metrics, nn, optimizers, regularizers, training, tree


def linear(params, x):
    return x @ params["w"] + jnp.broadcast_to(params["b"], x.shape[:1])


def half_squares(prediction, target):
    return 0.5 * (prediction - target) ** 2


def regression(dtype=jnp.float32, examples=23, seed=0):
    """Off-centre inputs of unequal scales, noisy targets, and parameters to start from."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.7, [0.5, 1.0, 1.5], (examples, 3))
    y = x @ [1.0, -2.0, 0.5] + 3.0 + rng.normal(0.0, 0.3, examples)
    params = {"w": jnp.array([0.3, 0.1, -0.2], dtype), "b": jnp.array(0.5, dtype)}
    return params, (jnp.array(x, dtype), jnp.array(y, dtype))


def descend(params, data, learning_rate, batches):
    """Gradient descent on half squares in NumPy float64: parameters and losses of every step."""
    w, b = np.float64(params["w"]), np.float64(params["b"])
    x, y = (np.asarray(a, np.float64) for a in data)
    losses = []
    for rows in batches:
        residual = x[rows] @ w + b - y[rows]
        losses.append(0.5 * np.mean(residual**2))
        w = w - learning_rate * x[rows].T @ residual / len(residual)
        b = b - learning_rate * np.mean(residual)
    return {"w": w, "b": b}, np.array(losses)


def assert_close(actual, expected, dtype, float32=2e-5, float64=1e-12):
    tolerance = {"float32": float32, "float64": float64}[str(dtype)]
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def drawn_rows(examples, batch_size, steps, key):
    """The rows in the batch of every step, seen from outside: each leaves a mark on its weight."""
    before, rows = np.zeros(examples), []

    def note(progress):
        nonlocal before
        now = np.asarray(progress.params)
        rows.append(np.flatnonzero(np.round(before - now)))
        assert np.all(np.isin(np.round(before - now), [0.0, 1.0]))  # none twice in a batch
        before = now

    training.fit(
        lambda w, i: w[i],
        jnp.zeros(examples),
        lambda prediction, _: prediction,
        (np.arange(examples), None),
        optimizers.gradient_descent(float(batch_size)),
        steps=steps,
        batch_size=batch_size,
        key=key,
        chunk=1,
        callback=note,
    )
    return rows


# The trajectory


def test_full_batches_are_gradient_descent(dtype):
    params, data = regression(dtype)
    run = training.fit(
        linear, params, half_squares, data, optimizers.gradient_descent(0.1), steps=40
    )
    expected, expected_losses = descend(params, data, 0.1, [np.arange(23)] * 40)
    assert_close(run.params, expected, dtype)
    assert_close(run.history["loss"], expected_losses, dtype)
    assert run.history["loss"].dtype == dtype
    assert (run.steps, int(run.state.step), run.diverged, run.interrupted) == (40, 40, False, False)


@pytest.mark.parametrize(("examples", "batch_size"), [(23, 5), (7, 7), (5, 1)])
def test_an_epoch_takes_every_example_at_most_once(examples, batch_size):
    epoch = examples // batch_size
    rows = drawn_rows(examples, batch_size, 3 * epoch, jax.random.key(4))
    assert all(len(r) == batch_size for r in rows)
    epochs = [np.concatenate(rows[i * epoch : (i + 1) * epoch]) for i in range(3)]
    for order in epochs:
        assert len(set(order)) == epoch * batch_size
    if batch_size < examples:
        assert any(not np.array_equal(epochs[0], order) for order in epochs[1:])
    if examples == 23:  # the remainder is not always the same
        assert len({tuple(sorted(order)) for order in epochs}) > 1


def test_mini_batches_are_stochastic_gradient_descent(float64):
    params, data = regression(float64)
    key, steps = jax.random.key(8), 22
    run = training.fit(
        linear,
        params,
        half_squares,
        data,
        optimizers.gradient_descent(0.05),
        steps=steps,
        batch_size=5,
        key=key,
    )
    expected, expected_losses = descend(params, data, 0.05, drawn_rows(23, 5, steps, key))
    assert_close(run.params, expected, float64)
    assert_close(run.history["loss"], expected_losses, float64)
    other = training.fit(
        linear,
        params,
        half_squares,
        data,
        optimizers.gradient_descent(0.05),
        steps=steps,
        batch_size=5,
        key=jax.random.key(9),
    )
    assert not np.allclose(other.history["loss"], run.history["loss"])


OURS: Any = optimizers.momentum(0.1)
OPTIMIZERS = {
    "optax.adam": lambda: optax.adam(0.05),
    "optax.chain": lambda: optax.chain(
        optax.clip_by_global_norm(0.3), optax.sgd(0.1, momentum=0.9)
    ),
    "optax.polyak_sgd": lambda: optax.polyak_sgd(0.3),  # asks for the value
    "optax around ours": lambda: optax.chain(optax.clip_by_global_norm(0.3), OURS),
    "adam": lambda: optimizers.adam(0.05),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_run_as_in_a_loop_of_their_own(name, float64):
    optimizer, steps = OPTIMIZERS[name](), 12
    params, data = regression(float64)
    run = training.fit(linear, params, half_squares, data, optimizer, steps=steps, chunk=5)

    def objective(params):
        return jnp.mean(half_squares(linear(params, data[0]), data[1]))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(objective)(params)
        extra = {"value": value} if name == "optax.polyak_sgd" else {}
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    expected, state = params, optimizer.init(params)
    for _ in range(steps):
        expected, state = step(expected, state)
    assert_close((run.params, run.state.optimizer), (expected, state), float64)
    assert not np.allclose(run.params["w"], params["w"], atol=0.1)
    assert jax.tree.structure(run.state.optimizer) == jax.tree.structure(state)


@pytest.mark.usefixtures("standard_promotion")
def test_a_line_search_may_evaluate_the_objective():
    params, (x, y) = regression()
    run = training.fit(linear, params, half_squares, (x, y), optax.lbfgs(), steps=12)
    affine = np.column_stack([x, np.ones(23)]).astype(float)
    solution = np.linalg.lstsq(affine, np.asarray(y, float), rcond=None)[0]
    assert_close([run.params["w"], run.params["b"]], [solution[:3], solution[3]], "float32", 1e-4)


def test_a_mean_and_numbers_per_example_are_the_same_loss():
    params, data = regression()
    fit = partial(training.fit, linear, params, data=data, optimizer=optimizers.adam(0.1), steps=9)
    mean = fit(loss=lambda prediction, target: jnp.mean(half_squares(prediction, target)))
    assert_close(mean, fit(loss=half_squares), "float32")


def test_chunks_do_not_change_a_bit():
    params, data = regression()
    fit = partial(
        training.fit,
        linear,
        params,
        half_squares,
        data,
        optimizers.adam(0.1),
        steps=10,
        batch_size=6,
        key=jax.random.key(0),
    )
    whole = fit(chunk=10)
    for chunk in (1, 5, 100):
        assert_same(fit(chunk=chunk), whole)


def test_chunk_length_divides_the_steps_into_whole_epochs_where_it_can():
    for steps in [1, 99, 100, 150, 468, 1000, 1009, 1680, 2807, 10**6]:
        for epoch in [1, 3, 28, 468, 5000]:
            chunk = training.chunk_length(steps, epoch)
            candidates = [n for n in range(100, 1001) if steps % n == 0]
            assert 1 <= chunk <= min(steps, 1000)
            assert steps % chunk == 0 or not candidates
            assert chunk % epoch == 0 or not any(n % epoch == 0 for n in candidates)
    assert training.chunk_length(4680, 468) == 468


def test_a_continued_run_is_the_run_without_the_stop():
    net = nn.serial(nn.dense(6), nn.dropout(0.3), nn.dense(1))
    params, _ = net.init(jax.random.key(1), (3,))
    _, (x, y) = regression()
    fit = partial(
        training.fit,
        net.apply,
        loss=losses.half_squared_error,
        data=(x, y[:, None]),
        optimizer=optimizers.adam(0.05),
        batch_size=5,
        stochastic=True,
        chunk=6,
    )
    whole = fit(params, steps=12, key=jax.random.key(2))
    first = fit(params, steps=6, key=jax.random.key(2))
    second = fit(first.params, steps=6, state=first.state)
    assert_same((second.params, second.state), (whole.params, whole.state))
    joined = np.concatenate([first.history["loss"], second.history["loss"]])
    np.testing.assert_array_equal(joined, whole.history["loss"])
    assert (second.steps, int(second.state.step)) == (6, 12)


def test_a_stochastic_network_gets_a_new_key_every_step_and_none_in_validation():
    def f(params, x, key=None):
        noise = jnp.zeros(x.shape) if key is None else jax.random.normal(key, x.shape)
        return params + noise

    run = training.fit(
        f,
        jnp.array(1.0),
        lambda prediction, target: prediction - target,
        (jnp.ones(4), jnp.zeros(4)),
        optimizers.gradient_descent(0.0),
        steps=30,
        key=jax.random.key(0),
        stochastic=True,
        validation=(jnp.ones(3), jnp.zeros(3)),
        chunk=10,
    )
    assert len(np.unique(run.history["loss"])) == 30
    np.testing.assert_array_equal(run.history["validation_loss"], np.ones(3))


def test_any_pytree_is_data_and_targets_may_be_missing():
    x = {"a": np.arange(6.0).reshape(6, 1), "b": [jnp.ones((6, 2)), jnp.arange(6)]}

    def f(w, x):
        return w * x["a"][:, 0] + jnp.asarray(x["b"][1], x["a"].dtype)

    run = training.fit(
        f,
        jnp.array(0.0),
        lambda prediction, _: prediction**2,
        (x, None),
        optimizers.gradient_descent(0.05),
        steps=50,
        batch_size=6,
        key=jax.random.key(0),
    )
    assert_close(run.params, -1.0, "float32")


def test_parameters_keep_their_precision():
    params, data = regression(jnp.bfloat16)
    params["b"] = jnp.array(0.5, jnp.float32)
    run = training.fit(
        lambda p, x: x @ p["w"] + jnp.broadcast_to(p["b"].astype(x.dtype), x.shape[:1]),
        params,
        half_squares,
        data,
        optimizers.gradient_descent(0.1),
        steps=20,
    )
    assert (run.params["w"].dtype, run.params["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert run.history["loss"].dtype == jnp.bfloat16
    assert run.history["loss"][-1] < 0.3 * run.history["loss"][0]


# The history


def test_history_is_of_the_parameters_before_each_update_and_after_each_chunk(dtype):
    params, data = regression(dtype)
    seen = []
    run = training.fit(
        linear,
        params,
        half_squares,
        data,
        optimizers.gradient_descent(0.1),
        steps=10,
        chunk=1,
        regularizer=lambda p: 0.1 * regularizers.l2(p),
        metrics={"mean": lambda prediction, _: prediction, "worst": worst},
        validation=(data[0][:4], data[1][:4]),
        callback=seen.append,
    )
    assert set(run.history) == {"loss", "objective", "mean", "worst"} | {
        "validation_step",
        "validation_loss",
        "validation_mean",
        "validation_worst",
    }

    def direct(params, x, y):
        prediction = linear(params, x)
        loss = jnp.mean(half_squares(prediction, y))
        return {"loss": loss, "mean": jnp.mean(prediction), "worst": worst(prediction, y)}

    for step, progress in enumerate(seen):
        before = params if step == 0 else seen[step - 1].params
        expected = direct(before, *data)
        assert_close({name: run.history[name][step] for name in expected}, expected, dtype)
        objective = expected["loss"] + 0.1 * regularizers.l2(before)
        assert_close(run.history["objective"][step], objective, dtype)
        assert progress.loss == run.history["loss"][step]
        expected = direct(progress.params, data[0][:4], data[1][:4])
        actual = {name: run.history[f"validation_{name}"][step] for name in expected}
        assert_close(actual, expected, dtype)
        assert_close(progress.validation, expected, dtype)
    np.testing.assert_array_equal(run.history["validation_step"], np.arange(1, 11))


def worst(prediction, target):
    return jnp.max(jnp.abs(prediction - target))


def test_the_regularizer_is_minimized_too(float64):
    params, (x, y) = regression(float64)
    run = training.fit(
        lambda w, x: x @ w,
        params["w"],
        half_squares,
        (x, y),
        optimizers.gradient_descent(0.1),
        steps=3000,
        regularizer=lambda w: 0.5 * 0.7 * jnp.sum(w**2),
    )
    ridge = np.linalg.solve(x.T @ x / 23 + 0.7 * np.eye(3), x.T @ y / 23)
    assert_close(run.params, ridge, float64)


def test_the_callback_hears_of_every_chunk():
    params, data = regression()
    seen = []
    training.fit(
        linear, params, half_squares, data, optimizers.adam(0.1), steps=10, chunk=4,
        callback=seen.append,
    )  # fmt: skip
    assert [(p.step, p.steps, int(p.state.step)) for p in seen] == [
        (4, 10, 4),
        (8, 10, 8),
        (10, 10, 10),
    ]
    assert [p.validation for p in seen] == [{}, {}, {}]


def test_a_network_learns_its_classes():
    key = jax.random.key(3)
    x = jax.random.normal(key, (200, 2)) + 0.3
    y = jnp.asarray(x[:, 0] * x[:, 1] > 0, jnp.int32)
    net = nn.mlp((16, 2))
    params, _ = net.init(jax.random.key(4), (2,))
    run = training.fit(
        net.apply,
        params,
        losses.softmax_cross_entropy,
        (x[:150], y[:150]),
        optimizers.adam(0.03),
        steps=200,
        batch_size=32,
        key=key,
        metrics={"accuracy": metrics.accuracy},
        validation=(x[150:], y[150:]),
    )
    assert run.history["accuracy"][-20:].mean() > 0.95
    assert run.history["validation_accuracy"][-1] > 0.9


# Divergence


@pytest.mark.parametrize(("chunk", "beyond"), [(1, 60), (3, 1), (None, 1), (50, 60)])
def test_divergence_returns_the_last_parameters_of_finite_loss(dtype, chunk, beyond):
    # θ ← (1 - 2a)θ, exact in binary: a = 4.5 multiplies by -8.
    theta, powers = np.array(1.5, dtype), []
    with np.errstate(over="ignore"):
        while np.isfinite(np.array(4.5, dtype) * theta**2):
            powers.append(theta)
            theta = np.array(-8.0, dtype) * theta
    last = len(powers) - 1
    run = training.fit(
        lambda w, x: w * x,
        jnp.array(1.5, dtype),
        lambda prediction, _: jnp.asarray(4.5, dtype) * prediction**2,
        (jnp.ones((1,), dtype), None),
        optimizers.gradient_descent(1.0),
        steps=last + beyond,
        chunk=chunk,
        validation=(jnp.ones((1,), dtype), None),
    )
    assert run.diverged
    assert (run.steps, int(run.state.step), run.history["loss"].shape) == (last, last, (last,))
    assert run.params == powers[last]
    np.testing.assert_allclose(run.history["loss"], 4.5 * np.array(powers[:last]) ** 2, rtol=1e-6)
    assert np.all(run.history["validation_step"] <= last)


def test_a_run_that_stops_before_the_overflow_has_not_diverged():
    run = training.fit(
        lambda w, x: w * x,
        jnp.array(1.5),
        lambda prediction, _: 4.5 * prediction**2,
        (jnp.ones(1), None),
        optimizers.gradient_descent(1.0),
        steps=20,
    )
    assert not run.diverged
    assert run.params == 1.5 * 8.0**20


class Count(NamedTuple):
    step: jax.Array


def spoiling(at):
    """Gradient descent whose update number `at` of the leaf "unused" is NaN."""

    def update(grads, state, params=None):
        updates = tree.scale(-0.1, grads)
        spoiled = jnp.where(state.step == at, jnp.nan, 0.0)
        return updates | {"unused": updates["unused"] + spoiled}, Count(state.step + 1)

    return optimizers.Optimizer(lambda params: Count(jnp.zeros((), jnp.int32)), update)


@pytest.mark.parametrize("chunk", [1, 20])
def test_an_unused_parameter_that_becomes_nan_stops_the_run_too(chunk):
    params, data = regression()
    params["unused"] = jnp.array(0.25)
    run = training.fit(
        lambda p, x: linear({"w": p["w"], "b": p["b"]}, x),
        params,
        half_squares,
        data,
        spoiling(at=13),
        steps=20,
        chunk=chunk,
    )
    assert (run.diverged, run.steps, run.params["unused"]) == (True, 13, 0.25)
    del params["unused"]
    expected, expected_losses = descend(params, data, 0.1, [np.arange(23)] * 13)
    assert_close([run.params["w"], run.params["b"]], [expected["w"], expected["b"]], "float32")
    assert_close(run.history["loss"], expected_losses, "float32")


def test_a_loss_that_is_never_finite_returns_the_initial_parameters():
    params, (x, y) = regression()
    run = training.fit(
        linear,
        params,
        half_squares,
        (x, y.at[3].set(jnp.nan)),
        optimizers.adam(0.1),
        steps=20,
        metrics={"worst": worst},
    )
    assert_same(run.params, params)
    assert (run.diverged, run.steps, int(run.state.step)) == (True, 0, 0)
    assert {name: values.shape for name, values in run.history.items()} == {
        "loss": (0,),
        "worst": (0,),
    }


def test_a_bad_example_stops_the_run_before_its_batch():
    params, (x, y) = regression()
    key = jax.random.key(5)
    rows = drawn_rows(23, 4, 10, key)
    first, example = 3, rows[3][0]  # the fourth batch of the first epoch
    run = training.fit(
        linear,
        params,
        half_squares,
        (x, y.at[example].set(jnp.nan)),
        optimizers.gradient_descent(0.05),
        steps=10,
        batch_size=4,
        key=key,
    )
    # θ_first is finite, but its loss is not.
    assert (run.diverged, run.steps) == (True, first - 1)
    expected, _ = descend(params, (x, y), 0.05, rows[: first - 1])
    assert_close(run.params, expected, "float32")


def test_a_regularizer_can_diverge_as_well():
    params, data = regression()
    run = training.fit(
        linear, params, half_squares, data, optimizers.adam(0.1), steps=5,
        regularizer=lambda p: jnp.inf * jnp.sum(p["w"]),
    )  # fmt: skip
    assert (run.diverged, run.steps) == (True, 0)


# Ctrl-C


def test_ctrl_c_in_the_callback_returns_what_was_reached():
    params, data = regression()

    def callback(progress):
        if progress.step == 8:
            signal.raise_signal(signal.SIGINT)

    fit = partial(
        training.fit,
        linear,
        params,
        half_squares,
        data,
        optimizers.adam(0.1),
        batch_size=5,
        key=jax.random.key(0),
        chunk=4,
        validation=data,
    )
    run, expected = fit(steps=20, callback=callback), fit(steps=8)
    assert run.interrupted
    assert not run.diverged
    assert_same(run._replace(interrupted=False), expected)


def test_ctrl_c_in_the_first_chunk_returns_the_start():
    params, data = regression()

    def f(params, x):
        raise KeyboardInterrupt

    run = training.fit(
        f, params, half_squares, data, optimizers.adam(0.1), steps=20, validation=data,
        metrics={"worst": worst},
    )  # fmt: skip
    assert (run.interrupted, run.steps, int(run.state.step)) == (True, 0, 0)
    assert_same(run.params, params)
    assert {values.shape for values in run.history.values()} == {(0,)}
    assert len(run.history) == 5


def test_a_signal_amid_a_chunk_returns_the_chunk_before():
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


# Compilation


def test_the_same_functions_and_shapes_compile_once(caplog):
    traces = []

    def f(params, x):
        traces.append(x.shape)
        return linear(params, x)

    # Python numbers and weak types must not make a second program.
    params, data = {"w": jnp.zeros(3), "b": 0.5}, regression()[1]
    optimizer = optimizers.adam(0.1)
    fit = partial(
        training.fit, f, loss=half_squares, data=data, optimizer=optimizer, batch_size=5, chunk=10,
        validation=data,
    )  # fmt: skip
    fit(params, steps=10, key=jax.random.key(0))
    once = len(traces)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run = fit(params, steps=40, key=jax.random.key(1))
        fit(run.params, steps=20, state=run.state)
    assert len(traces) == once
    assert not [r.message for r in caplog.records if "ompil" in r.message]


# Bad input


PARAMS, DATA = regression()
X, Y = DATA
KEY = jax.random.key(0)


def fit_with(**changes):
    arguments = {
        "f": linear,
        "params": PARAMS,
        "loss": half_squares,
        "data": DATA,
        "optimizer": optimizers.adam(0.1),
        "steps": 3,
    }
    return training.fit(**(arguments | changes))


def column(params, x):
    return linear(params, x)[:, None]


def all_pairs(prediction, target):
    return half_squares(prediction, target[None])


BAD = {
    "integer params": (
        {"params": {"w": jnp.arange(3), "b": 0.0}},
        "fit(params)['w']: got dtype int32, expected real floating point",
    ),
    "x and y of different length": (
        {"data": (X, Y[1:])},
        "fit(data): got shapes (23, 3), (22,), expected the same number of examples",
    ),
    "a scalar for y": ({"data": (X, 1.0)}, "fit(data): got shapes (23, 3), (), expected the same"),
    "no examples": ({"data": (X[:0], Y[:0])}, "fit(data): got shapes (0, 3), (0,), expected"),
    "no pair": ({"data": (X,)}, "fit(data): got tuple, expected a pair (x, y)"),
    "validation": ({"validation": (X, Y[1:])}, "fit(validation): got shapes (23, 3), (22,), exp"),
    "a batch too large": (
        {"batch_size": 24, "key": KEY},
        "fit(batch_size): got 24, expected an integer from 1 to the number of examples, 23",
    ),
    "an empty batch": ({"batch_size": 0, "key": KEY}, "fit(batch_size): got 0, expected"),
    "no steps": ({"steps": 0}, "fit(steps): got 0, expected an integer ≥ 1"),
    "no chunk": ({"chunk": 0}, "fit(chunk): got 0, expected an integer ≥ 1"),
    "no key for batches": ({"batch_size": 4}, "fit(key): got none, expected a key"),
    "no key for noise": ({"stochastic": True}, "fit(key): got none, expected a key"),
    "a loss of shape (N, N)": (
        {"f": column, "loss": all_pairs},
        "fit(loss): its value: got shape (23, 23), expected (23,), a number per example, or ()",
    ),
    "a loss of integers": (
        {"loss": lambda prediction, target: jnp.argmax(prediction)},
        "fit(loss): its value: got dtype int32, expected real floating point",
    ),
    "a metric of another shape": (
        {"metrics": {"both": lambda prediction, target: jnp.stack([prediction, target])}},
        "fit(metrics['both']): its value: got shape (2, 23), expected (23,)",
    ),
    "a metric's name": ({"metrics": {"loss": worst}}, "fit(metrics): got the name 'loss', exp"),
    "a regularizer of another shape": (
        {"regularizer": lambda params: params["w"]},
        "fit(regularizer): its value: got shape (3,), expected a scalar",
    ),
    "a constructor for an optimizer": (
        {"optimizer": optimizers.adam},
        "fit(optimizer): got function without init and update, expected a pair of functions",
    ),
    "targets (N,) to predictions (N, 1)": (
        {"f": column, "loss": losses.half_squared_error},
        "half_squared_error: target: got shape (23,) against predictions of shape (23, 1)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_with(**changes)


def test_a_state_must_fit():
    run = fit_with()
    with pytest.raises(ValueError, match=r"fit\(key\): got a key and a state"):
        fit_with(state=run.state, key=KEY)
    with pytest.raises(ValueError, match=r"fit\(state\): got a state that this optimizer"):
        fit_with(state=run.state, optimizer=optimizers.momentum(0.1))
    with pytest.raises(ValueError, match=r"fit\(state\): got a state that this optimizer"):
        fit_with(state=run.state, params={"w": jnp.zeros(4), "b": 0.0})
    with pytest.raises(ValueError, match=r"fit\(key\): got none, expected a key"):
        fit_with(state=run.state, batch_size=4)

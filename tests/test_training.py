import logging
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from least_squares import (
    ADAM,
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
    half_squares,
    linear,
    regression,
    worst,
)

from jaxnn import losses, metrics, nn, optimizers, regularizers, training

# The trajectory


def test_full_batches_are_gradient_descent(dtype):
    params, data = regression(dtype)
    run = fit(params, data, optimizer=descent(0.1), steps=40)
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
    options = {"optimizer": descent(0.05), "steps": 22, "batch_size": 5}
    run = fit(params, data, key=KEY, **options)
    expected, expected_losses = descend(params, data, 0.05, drawn_rows(23, 5, 22, KEY))
    assert_close(run.params, expected, float64)
    assert_close(run.history["loss"], expected_losses, float64)
    other = fit(params, data, key=jax.random.key(9), **options)
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
    run = fit(params, data, optimizer=optimizer, steps=steps, chunk=5)

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
    run = fit(optimizer=optax.lbfgs(), steps=12)
    affine = np.column_stack([X, np.ones(23)]).astype(float)
    solution = np.linalg.lstsq(affine, np.asarray(Y, float), rcond=None)[0]
    assert_close([run.params["w"], run.params["b"]], [solution[:3], solution[3]], "float32", 1e-4)


def test_a_mean_and_numbers_per_example_are_the_same_loss():
    mean = fit(steps=9, loss=lambda *pair: jnp.mean(half_squares(*pair)))
    assert_close(mean, fit(steps=9), "float32")


def test_chunks_do_not_change_a_bit():
    whole, *others = (fit(steps=10, batch_size=6, key=KEY, chunk=c) for c in (10, 1, 5, 100))
    for run in others:
        assert_same(run, whole)


def test_unrolled_steps_are_the_same_up_to_rounding():
    options = {"steps": 7, "batch_size": 6, "key": KEY, "chunk": 3}
    unrolled, looped = (fit(**options, unroll=u) for u in (3, 1))
    assert_close((unrolled.params, unrolled.history), (looped.params, looped.history), "float32")


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
    options = {
        **{"f": net.apply, "loss": losses.half_squared_error, "data": (X, Y[:, None])},
        **{"batch_size": 5, "stochastic": True, "chunk": 6},
    }
    whole = fit(params, steps=12, key=KEY, **options)
    first = fit(params, steps=6, key=KEY, **options)
    second = fit(first.params, steps=6, state=first.state, **options)
    assert_same((second.params, second.state), (whole.params, whole.state))
    joined = np.concatenate([first.history["loss"], second.history["loss"]])
    np.testing.assert_array_equal(joined, whole.history["loss"])
    assert (second.steps, int(second.state.step)) == (6, 12)


def test_a_stochastic_network_gets_a_new_key_every_step_and_none_in_validation():
    def f(params, x, key=None):
        noise = jnp.zeros(x.shape) if key is None else jax.random.normal(key, x.shape)
        return params + noise

    run = fit(
        jnp.array(1.0),
        (jnp.ones(4), jnp.zeros(4)),
        f=f,
        loss=lambda prediction, target: prediction - target,
        optimizer=descent(0.0),
        validation=(jnp.ones(3), jnp.zeros(3)),
        **{"steps": 30, "chunk": 10, "key": KEY, "stochastic": True},
    )
    assert len(np.unique(run.history["loss"])) == 30
    np.testing.assert_array_equal(run.history["validation_loss"], np.ones(3))


def test_any_pytree_is_data_and_targets_may_be_missing():
    x = {"a": np.arange(6.0).reshape(6, 1), "b": [jnp.ones((6, 2)), jnp.arange(6)]}

    def f(w, x):
        return w * x["a"][:, 0] + jnp.asarray(x["b"][1], x["a"].dtype)

    run = fit(
        jnp.array(0.0),
        (x, None),
        f=f,
        loss=lambda prediction, _: prediction**2,
        optimizer=descent(0.05),
        **{"steps": 50, "batch_size": 6, "key": KEY},
    )
    assert_close(run.params, -1.0, "float32")


def test_parameters_keep_their_precision():
    params, data = regression(jnp.bfloat16)
    params["b"] = jnp.array(0.5, jnp.float32)

    def f(params, x):
        return linear(params | {"b": params["b"].astype(x.dtype)}, x)

    run = fit(params, data, f=f, optimizer=descent(0.1), steps=20)
    assert (run.params["w"].dtype, run.params["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert run.history["loss"].dtype == jnp.bfloat16
    assert run.history["loss"][-1] < 0.3 * run.history["loss"][0]


# The history


def test_history_is_of_the_parameters_before_each_update_and_after_each_chunk(dtype):
    params, data = regression(dtype)
    seen = []
    run = fit(
        params,
        data,
        optimizer=descent(0.1),
        **{"steps": 10, "chunk": 1, "callback": seen.append},
        regularizer=lambda p: 0.1 * regularizers.l2(p),
        metrics={"mean": lambda prediction, _: prediction, "worst": worst},
        validation=(data[0][:4], data[1][:4]),
    )
    per_chunk = {f"validation_{name}" for name in ("step", "loss", "mean", "worst")}
    assert set(run.history) == {"loss", "objective", "mean", "worst"} | per_chunk

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


def test_the_regularizer_is_minimized_too(float64):
    params, (x, y) = regression(float64)
    run = fit(
        params["w"],
        (x, y),
        f=lambda w, x: x @ w,
        optimizer=descent(0.1),
        steps=3000,
        regularizer=lambda w: 0.5 * 0.7 * jnp.sum(w**2),
    )
    ridge = np.linalg.solve(x.T @ x / 23 + 0.7 * np.eye(3), x.T @ y / 23)
    assert_close(run.params, ridge, float64)


def test_the_callback_hears_of_every_chunk():
    seen = []
    fit(steps=10, chunk=4, callback=seen.append)
    assert [(p.step, p.steps, p.validation) for p in seen] == [(n, 10, {}) for n in (4, 8, 10)]
    assert [int(p.state.step) for p in seen] == [4, 8, 10]


@pytest.mark.slow
def test_a_network_learns_its_classes():
    key = jax.random.key(3)
    x = jax.random.normal(key, (200, 2)) + 0.3
    y = jnp.asarray(x[:, 0] * x[:, 1] > 0, jnp.int32)
    net = nn.mlp((16, 2))
    params, _ = net.init(jax.random.key(4), (2,))
    run = fit(
        params,
        (x[:150], y[:150]),
        f=net.apply,
        loss=losses.softmax_cross_entropy,
        optimizer=optimizers.adam(0.03),
        metrics={"accuracy": metrics.accuracy},
        validation=(x[150:], y[150:]),
        **{"steps": 200, "batch_size": 32, "key": key},
    )
    assert run.history["accuracy"][-20:].mean() > 0.95
    assert run.history["validation_accuracy"][-1] > 0.9


# Compilation


def programs_compiled(caplog, run):
    """How many programs `run` compiles that the process has not compiled before."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run()
    return len([r for r in caplog.records if r.message.startswith("Compiling")])


def test_the_same_functions_and_shapes_compile_once(caplog):
    # Python numbers and weak types must not make a second program.
    params = {"w": jnp.zeros(3), "b": 0.5}
    options = {"batch_size": 5, "chunk": 10, "validation": DATA}
    made = lambda: lambda params, x: linear(params, x)
    run = fit(params, steps=10, key=KEY, f=made(), **options)

    def again():
        # Other objects, that compute the same.
        fit(params, steps=40, key=jax.random.key(1), f=made(), **options)
        fit(run.params, steps=20, state=run.state, f=made(), **options)

    assert programs_compiled(caplog, again) == 0


class Scaled:
    """A line times an attribute, and a loss times another: objects that can change."""

    def __init__(self):
        self.scale, self.weight, self.rate = 1.0, 1.0, 0.05

    def apply(self, params, x):
        return self.scale * linear(params, x)

    def loss(self, prediction, target):
        return self.weight * half_squares(prediction, target)

    def update(self, grads, state, params):
        return jax.tree.map(lambda g: -self.rate * g, grads), state

    init = staticmethod(lambda params: ())


@pytest.mark.parametrize("changed", ["scale", "weight", "rate"])
def test_an_object_that_has_changed_is_no_old_program(changed):
    thing = Scaled()
    options = {"f": thing.apply, "loss": thing.loss, "optimizer": thing, "steps": 5}
    fit(validation=DATA, **options)
    setattr(thing, changed, 2.0 * getattr(thing, changed))
    run = fit(validation=DATA, **options)
    fresh = Scaled()
    setattr(fresh, changed, getattr(thing, changed))
    other = fit(
        **(options | {"f": fresh.apply, "loss": fresh.loss, "optimizer": fresh}), validation=DATA
    )
    assert_same(run.params, other.params)
    assert_same(run.history, other.history)
    w, x, y = run.params, *DATA  # by NumPy: what was measured belongs to the object as it is now
    residual = thing.scale * (np.asarray(x) @ np.asarray(w["w"]) + np.asarray(w["b"])) - y
    expected = thing.weight * 0.5 * np.mean(np.square(residual))
    np.testing.assert_allclose(run.history["validation_loss"][-1], expected, rtol=1e-5)


# Meshes


@pytest.mark.parametrize("batch_size", [None, 5])
def test_data_on_a_mesh_with_explicit_axes(batch_size):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    options = {"steps": 12, "batch_size": batch_size, "key": KEY}
    expected = fit(**options)
    with jax.set_mesh(mesh):
        run = fit(data=jax.device_put(DATA, sharding), **options)
    assert_close(run.params, expected.params, "float32")


# Bad input


def column(params, x):
    return linear(params, x)[:, None]


def all_pairs(prediction, target):
    return half_squares(prediction, target[None])


BAD = {
    "more steps than int32 counts": ({"steps": 2**31}, "fit(steps): got 2147483648"),
    "tokens beyond int32": (
        {"data": (np.full((23, 3), 2**40), Y)},
        "an array[1][0]: got 1099511627776 in int64",
    ),
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
    "no steps": ({"steps": 0}, "fit(steps): got 0, expected an integer from 1"),
    "no loop's body": ({"unroll": 0}, "fit(unroll): got 0, expected an integer ≥ 1"),
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
        fit(**({"steps": 3} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": KEY}, "fit(key): got a key and a state, expected one of them"),
        ({"optimizer": optimizers.momentum(0.1)}, "fit(state): got a state that this optimizer"),
        ({"params": {"w": jnp.zeros(4), "b": 0.0}}, "fit(state): got a state that this optimizer"),
        ({"batch_size": 4}, "fit(key): got none, expected a key"),
    ],
)
def test_a_state_must_fit(changes, message):
    state = training.State(ADAM.init(PARAMS), None, jnp.array(3, jnp.int32))
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(steps=3, state=state, **changes)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exhaustive import binary, rbm_energy, rbm_joint, rbm_params, sigmoid

from jaxnn import optimizers, tree
from jaxnn.generative import partition, rbm, units

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 6)]


def on_device(params):
    return jax.tree.map(jnp.asarray, params)


def close(actual, exact, dtype="float64", factor=100):
    atol = factor * np.finfo(dtype).eps * max(1.0, np.max(np.abs(exact)))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
def test_energies_conditionals_and_partition_equal_enumeration(shape, dtype):
    for seed in range(2):
        params = rbm_params(seed, *shape, dtype)
        ours = on_device(params)
        v, h, table = rbm_joint(params)
        z = table.sum()
        log_z = partition.log_partition(ours)
        assert log_z.dtype == dtype
        close(log_z, np.log(z), dtype)
        vs, hs = jnp.asarray(v, dtype), jnp.asarray(h, dtype)
        some = np.arange(3) % len(h)
        energies = [rbm_energy(params, v[r], h[r]) for r in some % len(v)]
        close(rbm.energy(ours, vs[some % len(v)], hs[some % len(v)]), energies, dtype)
        close(rbm.free_energy(ours, vs), -np.log(table.sum(1)), dtype)
        close(rbm.log_likelihood(ours, vs, log_z), np.log(table.sum(1) / z), dtype)
        given_v = table / table.sum(1, keepdims=True)
        given_h = table / table.sum(0)
        close(rbm.hidden_mean(ours, vs), given_v @ h, dtype)
        close(rbm.visible_mean(ours, hs), given_h.T @ v, dtype)
        # The conditional is a product over units, not only right in its means.
        m = sigmoid(v @ params["W"].astype(float) + params["c"])
        product = np.prod(np.where(h[None] == 1, m[:, None], 1 - m[:, None]), axis=-1)
        close(product, given_v, "float64")


def test_units_are_on_the_last_axis_of_any_batch():
    params = on_device(rbm_params(0, 4, 3, "float32"))
    v = units.states(4).reshape(2, 8, 4)
    flat = rbm.free_energy(params, v.reshape(16, 4))
    np.testing.assert_allclose(rbm.free_energy(params, v), flat.reshape(2, 8), rtol=1e-6)
    np.testing.assert_allclose(rbm.free_energy(params, v[0, 3]), flat[3], rtol=1e-6)
    with pytest.raises(ValueError, match=r"got shape \(2, 5\), expected \(\.\.\., 4\)"):
        rbm.free_energy(params, jnp.ones((2, 5)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_a_difference_of_statistics(shape, float64):
    params = on_device(rbm_params(3, *shape))
    v, h, table = rbm_joint(params)
    p = table / table.sum()
    expectations = {"W": v.T @ p @ h, "b": p.sum(1) @ v, "c": p.sum(0) @ h}
    model = partition.model_statistics(params)
    data = jnp.asarray(np.random.default_rng(0).integers(0, 2, (7, shape[0])).astype(float))

    def mean_log_likelihood(params):
        return jnp.mean(rbm.log_likelihood(params, data, partition.log_partition(params)))

    exact = jax.grad(mean_log_likelihood)(params)
    difference = tree.sub(rbm.statistics(params, data), model)
    for name in params:
        close(model[name], expectations[name])
        close(difference[name], exact[name])
    # All states, each as often as the model has it, stand for the model.
    other = rbm.log_likelihood_gradient(params, data, data[:2])
    free = lambda params: jnp.mean(rbm.free_energy(params, data[:2]))
    free_data = lambda params: jnp.mean(rbm.free_energy(params, data))
    by_grad = tree.sub(jax.grad(free)(params), jax.grad(free_data)(params))
    for name in params:
        close(other[name], by_grad[name])


@pytest.mark.slow
def test_enumeration_in_blocks(float64):
    params = on_device(rbm_params(1, 30, 14, std=0.3))
    h = jnp.asarray(binary(14))
    exact = np.log(np.sum(np.exp(-np.asarray(rbm.free_energy(rbm.transposed(params), h)))))
    close(partition.log_partition(params), exact, factor=1e3)
    gradient = jax.grad(partition.log_partition)(params)
    flipped = rbm.transposed(partition.model_statistics(rbm.transposed(params)))
    for name in params:
        close(partition.model_statistics(params)[name], gradient[name], factor=1e3)
        close(flipped[name], gradient[name], factor=1e3)
    with pytest.raises(ValueError, match="got 21, expected at most 20"):
        partition.log_partition(rbm.init(jax.random.key(0), 21, 22))


def transition(params):
    """p(v → v') of one Gibbs step, from the joint table."""
    _, _, table = rbm_joint(params)
    return (table / table.sum(1, keepdims=True)) @ (table / table.sum(0)).T


def frequencies(v, count):
    rows = np.asarray(v).astype(int) @ 2 ** np.arange(v.shape[1])[::-1]
    return np.bincount(rows, minlength=count) / len(rows)


@pytest.mark.parametrize("steps", [1, 3, 60])
def test_gibbs_steps_follow_the_transition_matrix(steps):
    params = rbm_params(2, 3, 2, std=1.5)
    n = 40_000
    start = jnp.broadcast_to(jnp.array([1.0, 0.0, 1.0]), (n, 3))
    ours = on_device({name: a.astype("float32") for name, a in params.items()})
    found = frequencies(rbm.gibbs(jax.random.key(5), ours, start, steps), 8)
    exact = np.linalg.matrix_power(transition(params), steps)[5]
    error = np.sqrt(exact * (1 - exact) / n)
    assert np.all(np.abs(found - exact) < 4.5 * error + 1e-9)
    joint = rbm_joint(params)[2]
    stationary = joint.sum(1) / joint.sum()
    if steps == 60:
        np.testing.assert_allclose(exact, stationary, atol=1e-6)
    if steps == 1:  # the test has power: one step has not forgotten its start
        assert np.any(np.abs(found - stationary) > 4.5 * error)


def test_one_step_keeps_the_joint_distribution():
    params = rbm_params(4, 3, 2)
    _, _, table = rbm_joint(params)
    p = table / table.sum()
    n = 40_000
    rows = np.random.default_rng(0).choice(8, size=n, p=p.sum(1))
    start = jnp.asarray(binary(3)[rows], "float32")
    ours = on_device({name: a.astype("float32") for name, a in params.items()})
    v, h = rbm.gibbs_step(jax.random.key(0), ours, start)
    found = frequencies(jnp.concatenate([v, h], axis=1), 32).reshape(8, 4)
    assert np.all(np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / n))


def test_contrastive_divergence_has_the_mean_of_the_chain(float64):
    params = rbm_params(6, 3, 4)
    ours = on_device(params)
    v = binary(3)
    hidden = sigmoid(v @ params["W"] + params["c"])
    start = np.repeat(v[[1, 6]], 20_000, axis=0)
    for steps in (1, 4):
        after = np.linalg.matrix_power(transition(params), steps)[[1, 6]].mean(0)
        exact = v[[1, 6]].T @ hidden[[1, 6]] / 2 - v.T @ (after[:, None] * hidden)
        found = rbm.contrastive_divergence(
            jax.random.key(steps), ours, jnp.asarray(start), steps=steps
        )
        np.testing.assert_allclose(found["W"], exact, atol=0.5 / np.sqrt(len(start)) * 4.5)


@pytest.mark.slow
def test_annealing_is_unbiased_and_knows_its_error(float64):
    params = on_device(rbm_params(0, 9, 6))
    exact = float(partition.log_partition(params))
    runs = [
        partition.annealed_log_partition(
            jax.random.key(seed), params, chains=2000, betas=jnp.linspace(0, 1, steps), base=base
        )
        for seed, (steps, base) in enumerate([(60, None), (60, jnp.linspace(-1.0, 1.0, 9))])
    ]
    for run in runs:
        assert abs(run.log_partition - exact) < 4 * run.standard_error
        ratio = np.exp(np.asarray(run.log_weights) - exact)
        np.testing.assert_allclose(run.standard_error, ratio.std() / np.sqrt(2000), rtol=0.1)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(2000)
        assert 0.001 < run.standard_error < 0.05
        # Power: the mean logarithm, which is biased downward, is off by more than that.
        assert exact - np.mean(run.log_weights) > 4 * run.standard_error
    with pytest.raises(ValueError, match=r"annealed_log_partition\(chains\): got 1"):
        partition.annealed_log_partition(jax.random.key(0), params, chains=1)


def test_two_independent_layers_anneal_exactly(float64):
    params = on_device(rbm_params(0, 5, 4) | {"W": np.zeros((5, 4)), "c": np.zeros(4)})
    run = partition.annealed_log_partition(
        jax.random.key(0), params, chains=3, betas=jnp.array([0.0, 0.5, 1.0])
    )
    close(run.log_weights, np.full(3, np.log(rbm_joint(params)[2].sum())))


# --------------------------------------------------------------------------------- training


def stripes(n=200):
    """Two of four stripes are on, the same in both halves: far from independent units."""
    rng = np.random.default_rng(0)
    return np.tile(np.eye(3)[rng.integers(3, size=n)], (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("chains", [None, 50])
def test_fit_climbs_the_exact_log_likelihood(chains):
    x = jnp.asarray(stripes(), "float32")
    start = rbm.init(jax.random.key(0), 6, 4, mean=x.mean(0), weight_std=0.1)
    # Persistent chains have to keep up with the parameters.
    adam = optimizers.adam(0.02 if chains is None else 0.005)
    options = {"batch_size": 40, "gibbs_steps": 2 if chains is None else 10, "chains": chains}
    whole = rbm.fit(start, x, adam, steps=600, key=jax.random.key(1), **options)
    score = lambda p: float(jnp.mean(rbm.log_likelihood(p, x, partition.log_partition(p))))
    independent = float(
        jnp.mean(jnp.sum(jnp.log(jnp.where(x == 1, x.mean(0)[None], 1 - x.mean(0)[None])), axis=1))
    )
    np.testing.assert_allclose(score(start), independent, atol=0.3)
    assert score(whole.params) > (-1.6 if chains is None else -2.2)  # the best is -ln 3 = -1.10
    assert score(whole.params) <= -np.log(3) + 0.02
    assert not whole.diverged
    assert all(a.shape == (600,) for a in whole.history.values())
    error = whole.history["reconstruction_error"]
    assert error[-50:].mean() < 0.3 * error[0]
    # In two parts, with the state handed on in mid-epoch, the run is the same.
    first = rbm.fit(start, x, adam, steps=303, key=jax.random.key(1), **options)
    second = rbm.fit(first.params, x, adam, steps=297, state=first.state, **options)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert second.state.step == 600


@pytest.mark.slow
def test_a_step_of_fit_is_the_gradient_that_is_promised(float64):
    params = on_device(rbm_params(0, 4, 3, std=0.5))
    x = jnp.asarray(np.random.default_rng(1).integers(0, 2, (6, 4)).astype(float))
    # At k = 0 the samples of CD are the data: nothing moves.
    still = rbm.fit(
        params, x, optimizers.gradient_descent(1.0), steps=1, key=jax.random.key(0), gibbs_steps=0
    )
    np.testing.assert_allclose(still.params["W"], params["W"], atol=1e-15)
    # With scales, the statistics are those of the scaled machine.
    moved = rbm.fit(
        params,
        x,
        optimizers.gradient_descent(1.0),
        steps=1,
        key=jax.random.key(0),
        gibbs_steps=0,
        chains=5,
        up=2.0,
        down=3.0,
    )
    chains = moved.state.chains
    doubled = {**params, "W": 2.0 * params["W"]}
    expected = tree.add(params, rbm.log_likelihood_gradient(doubled, x, chains))
    np.testing.assert_allclose(moved.params["W"], expected["W"], rtol=1e-12)
    v, h = np.asarray(x), sigmoid(x @ params["W"] * 2 + params["c"][None])
    error = np.mean((v - sigmoid(h @ params["W"].T * 3 + params["b"][None])) ** 2)
    np.testing.assert_allclose(moved.history["reconstruction_error"], [error])


@pytest.mark.slow
def test_divergence_stops_at_the_last_finite_parameters_and_runs_are_vmapped():
    x = jnp.asarray(stripes(20), "float32")
    start = rbm.init(jax.random.key(0), 6, 2)
    rates = jnp.array([0.1, 1e38])

    def run(rate):
        growing = optimizers.gradient_descent(lambda t: rate * (1.0 + t.astype(jnp.float32)))
        return rbm.fit(start, x, growing, steps=20, key=jax.random.key(1))

    both = jax.vmap(run)(rates)
    assert both.diverged.tolist() == [False, True]
    assert bool(tree.all_finite(both.params))
    error = np.asarray(both.history["free_energy_gap"])
    assert np.isfinite(error[0]).all()
    assert np.isnan(error[1, -1])
    stopped = int(both.state.step[1])
    assert stopped == int(np.argmax(np.isnan(np.asarray(both.history["reconstruction_error"][1]))))
    assert stopped < 20 == int(both.state.step[0])
    alone = run(rates[0])
    np.testing.assert_allclose(both.params["W"][0], alone.params["W"], rtol=1e-5, atol=1e-6)


def test_fit_refuses_what_it_cannot_do():
    x, start = jnp.ones((4, 3)), rbm.init(jax.random.key(0), 3, 2)
    descent = optimizers.gradient_descent(0.1)
    for options, message in (
        ({"steps": 1}, r"rbm.fit\(key\): got neither"),
        ({"steps": 0, "key": jax.random.key(0)}, r"fit\(steps\): got 0"),
        ({"steps": 1, "key": jax.random.key(0), "batch_size": 5}, r"fit\(batch_size\): got 5"),
        ({"steps": 1, "key": jax.random.key(0), "chains": 0}, r"rbm.fit\(chains\): got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            rbm.fit(start, x, descent, **options)


class Descent:
    """An optimizer that can change between two fits."""

    rate = 0.1

    def init(self, params):
        return ()

    def update(self, grads, state, params=None):
        return jax.tree.map(lambda g: -self.rate * g, grads), state


def test_an_optimizer_that_has_changed_is_no_old_program():
    descent, v = Descent(), jnp.eye(3)
    start = rbm.init(jax.random.key(0), 3, 2)
    fitted = lambda: rbm.fit(start, v, descent, steps=2, key=jax.random.key(1)).params["W"]
    assert float(jnp.max(jnp.abs(fitted() - start["W"]))) > 1e-3
    descent.rate = 0.0
    np.testing.assert_array_equal(fitted(), start["W"])

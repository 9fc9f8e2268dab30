"""Deep Boltzmann machines, deep belief networks and the stacks that both begin with."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exhaustive import binary, dbm_params, dbm_table, rbm_joint, rbm_params, sigmoid

from jaxnn import optimizers, tree
from jaxnn.generative import dbm, dbn, greedy, partition, rbm

SIZES = [(3, 2), (3, 4, 2), (2, 3, 2, 2)]


def on_device(params):
    return jax.tree.map(jnp.asarray, params)


def cut(params, x):
    """The layers that lie side by side in x."""
    return tuple(
        jnp.asarray(a) for a in np.split(x, np.cumsum([b.size for b in params["b"]])[:-1], axis=1)
    )


def close(actual, exact, dtype="float64"):
    atol = 200 * np.finfo(dtype).eps * max(1.0, np.max(np.abs(exact)))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=atol)


@pytest.mark.parametrize("sizes", SIZES)
def test_deep_machines_equal_enumeration(sizes, dtype):
    params = dbm_params(sum(sizes), sizes, dtype)
    ours = on_device(params)
    v, h, table = dbm_table(jax.tree.map(lambda a: a.astype(float), params))
    joint = np.concatenate([np.repeat(v, len(h), 0), np.tile(h, (len(v), 1))], axis=1)
    layers = cut(params, joint.astype(dtype))
    close(dbm.energy(ours, layers), -np.log(table.ravel()), dtype)
    log_z = partition.log_partition(dbm.as_rbm(ours))
    close(log_z, np.log(table.sum()), dtype)
    vs = jnp.asarray(v, dtype)
    close(dbm.log_likelihood(ours, vs, log_z), np.log(table.sum(1) / table.sum()), dtype)
    p = table.ravel()
    start = 0
    for index, size in enumerate(sizes):
        # p(x = 1 | the rest): weigh each state against the one with the unit flipped.
        mean = np.asarray(dbm.layer_mean(ours, layers, index), float)
        for unit in range(start, start + size):
            flipped = joint.copy()
            flipped[:, unit] = 1 - flipped[:, unit]
            code = 2 ** np.arange(joint.shape[1])[::-1]
            other = p[np.searchsorted(joint @ code, flipped @ code)]
            on = np.where(joint[:, unit] == 1, p, other)
            close(mean[:, unit - start], on / (p + other), dtype)
        start += size


@pytest.mark.parametrize("sizes", SIZES)
def test_the_mean_field_is_a_fixed_point_and_a_lower_bound(sizes, float64):
    params = dbm_params(7, sizes, std=0.8)
    ours = on_device(params)
    v, h, table = dbm_table(params)
    log_p, log_z = np.log(table.sum(1) / table.sum()), np.log(table.sum())
    field = dbm.mean_field(ours, jnp.asarray(v))
    assert field.converged
    assert field.residual < 1e-12
    means = [v, *map(np.asarray, field.means)]
    for i in range(1, len(sizes)):
        z = params["b"][i] + means[i - 1] @ params["W"][i - 1]
        if i + 1 < len(sizes):
            z = z + means[i + 1] @ params["W"][i].T
        np.testing.assert_allclose(means[i], sigmoid(z), atol=1e-12)
    bound = np.asarray(dbm.bound(ours, jnp.asarray(v), field.means, log_z))
    m = np.concatenate(means[1:], axis=1)
    q = np.prod(np.where(h[None] == 1, m[:, None], 1 - m[:, None]), axis=-1)
    posterior = table / table.sum(1, keepdims=True)
    gap = np.sum(q * np.log(q / posterior), axis=1)
    np.testing.assert_allclose(log_p - bound, gap, atol=1e-12)
    assert np.all(bound <= log_p + 1e-12)
    assert (gap.max() < 1e-12) == (len(sizes) == 2)
    # Sweeps never lower the bound, and few of them are told from convergence.
    few = [dbm.mean_field(ours, jnp.asarray(v), tolerance=0.0, max_sweeps=n) for n in (1, 2, 4)]
    bounds = [np.asarray(dbm.bound(ours, jnp.asarray(v), f.means, log_z)) for f in few]
    if len(sizes) > 2:  # with one hidden layer the first sweep is exact
        assert [int(f.sweeps) for f in few] == [1, 2, 4]
    assert np.all(np.diff([*bounds, bound], axis=0) >= -1e-12)
    assert bool(few[0].converged) == (len(sizes) == 2 and few[0].residual == 0)


def test_the_gradient_of_the_bound_is_a_difference_of_statistics(float64):
    params = dbm_params(1, (3, 4, 2))
    ours = on_device(params)
    v = jnp.asarray(binary(3)[[1, 2, 7, 7]])
    means = dbm.mean_field(ours, v).means

    def bound(params):
        log_z = partition.log_partition(dbm.as_rbm(params))
        # The means are held: at the maximum over them, their change adds nothing.
        return jnp.mean(dbm.bound(params, v, means, log_z))

    visible, hidden, table = dbm_table(params)
    p = (table / table.sum()).ravel()
    joint = np.concatenate([np.repeat(visible, len(hidden), 0), np.tile(hidden, (8, 1))], axis=1)
    layers = [np.asarray(x) for x in cut(params, joint)]
    model = {
        "W": tuple(a.T @ (p[:, None] * b) for a, b in pairwise(layers)),
        "b": tuple(p @ x for x in layers),
    }
    difference = tree.sub(dbm.statistics(ours, (v, *means)), on_device(model))
    jax.tree.map(close, difference, jax.grad(bound)(ours))


def test_gibbs_steps_reach_the_joint_distribution():
    params = dbm_params(3, (2, 2, 1))
    _, _, table = dbm_table(params)
    p = table.ravel() / table.sum()
    n = 40_000
    ours = on_device(jax.tree.map(lambda a: a.astype("float32"), params))
    start = tuple(jnp.ones((n, size)) for size in (2, 2, 1))
    layers = dbm.gibbs(jax.random.key(0), ours, start, 60)
    rows = np.concatenate(layers, axis=1).astype(int) @ 2 ** np.arange(5)[::-1]
    found = np.bincount(rows, minlength=32) / n
    assert np.all(np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / n))


@pytest.mark.slow
def test_training_a_deep_machine_raises_its_likelihood():
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.tile(np.eye(3)[rng.integers(3, size=120)], (1, 2)), "float32")
    stack = greedy.init(jax.random.key(0), (6, 5, 3), mean=x.mean(0), weight_std=0.1)
    pretrained = greedy.fit(
        stack,
        x,
        optimizers.adam(0.01),
        steps=400,
        batch_size=40,
        key=jax.random.key(1),
        doubled=True,
    )
    assert pretrained.diverged.tolist() == [False, False]
    params = dbm.from_stack(pretrained.params)
    lower, upper = pretrained.params
    np.testing.assert_allclose(params["b"][1], (lower["c"] + upper["b"]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(params["W"][1], upper["W"])
    fit = dbm.fit(
        params,
        x,
        optimizers.adam(0.003),
        steps=600,
        batch_size=40,
        key=jax.random.key(2),
        gibbs_steps=10,
    )

    def score(p):
        log_z = partition.log_partition(dbm.as_rbm(p))
        return float(jnp.mean(dbm.log_likelihood(p, x, log_z)))

    scores = [score(p) for p in (dbm.from_stack(stack), params, fit.params)]
    assert scores[0] < scores[1] < scores[2] - 0.1, scores
    assert scores[2] > -2.2  # the best is -ln 3 = -1.1, independent units have -3.8
    assert fit.history["residual"].shape == (600,)
    assert not fit.diverged


# ------------------------------------------------------------------------------ belief networks


def network(seed, sizes, dtype="float64"):
    return tuple(rbm_params(seed + i, m, n, dtype) for i, (m, n) in enumerate(pairwise(sizes)))


def visible_distribution(machines):
    """p(v), downward from the top machine's table."""
    _, _, table = rbm_joint(machines[-1])
    p = table.sum(1) / table.sum()
    for machine in machines[-2::-1]:
        below, above = binary(machine["b"].size), binary(machine["c"].size)
        mean = sigmoid(above @ machine["W"].T + machine["b"])
        given = np.prod(np.where(below[:, None] == 1, mean[None], 1 - mean[None]), axis=-1)
        p = given @ p
    return binary(machines[0]["b"].size), p


@pytest.mark.parametrize("sizes", [(4, 3), (4, 3, 2), (3, 2, 4, 2)])
def test_belief_networks_equal_enumeration(sizes, dtype):
    machines = network(2, sizes, dtype)
    ours = on_device(machines)
    v, p = visible_distribution(machines)
    log_z = partition.log_partition(ours[-1])
    close(dbn.log_likelihood(ours, jnp.asarray(v, dtype), log_z), np.log(p), dtype)
    # The joint distribution sums to the same.
    states = binary(sum(sizes))
    layers = tuple(jnp.asarray(a, dtype) for a in np.split(states, np.cumsum(sizes)[:-1], axis=1))
    log_joint = np.asarray(dbn.log_joint(ours, layers, log_z), float)
    close(np.exp(log_joint).reshape(len(v), -1).sum(1), p, dtype)


def test_tied_weights_unroll_a_restricted_machine(float64):
    params = on_device(rbm_params(5, 4, 3))
    v = jnp.asarray(binary(4))
    log_z = partition.log_partition(params)
    exact = rbm.log_likelihood(params, v, log_z)
    for layers in (1, 2, 3, 4):
        tied = dbn.unrolled(params, layers)
        close(dbn.log_likelihood(tied, v, log_z), exact)
    untied = (params, {**tied[1], "W": 1.1 * tied[1]["W"]})
    off = dbn.log_likelihood(untied, v, partition.log_partition(untied[1]))
    assert np.abs(off - exact).max() > 1e-3


def test_ancestral_samples_have_the_distribution():
    machines = network(4, (3, 2, 2))
    ours = on_device(jax.tree.map(lambda a: a.astype("float32"), machines))
    n = 40_000
    v, h = dbn.sample(jax.random.key(0), ours, n, gibbs_steps=50)
    assert h.shape == (n, 2)
    _, p = visible_distribution(machines)
    found = np.bincount(np.asarray(v).astype(int) @ [4, 2, 1], minlength=8) / n
    assert np.all(np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / n))


def test_the_classifier_is_the_recognition_pass(dtype):
    machines = on_device(network(3, (5, 4, 3), dtype))
    net = dbn.classifier(machines, 7, weight_std=2.0)
    params, out_shape = net.init(jax.random.key(0), (5,))
    assert out_shape == (7,)
    x = jnp.asarray(np.random.default_rng(0).random((6, 5)), dtype)
    h = np.asarray(x, float)
    for i, machine in enumerate(machines):
        h = sigmoid(h @ np.asarray(machine["W"], float) + np.asarray(machine["c"], float))
        close(dbn.recognition_means(machines, x)[i], h, dtype)
    head = params[-1]
    close(net.apply(params, x), h @ np.asarray(head["W"], float) + np.asarray(head["b"]), dtype)
    assert 0.3 < float(jnp.std(head["W"])) / (2.0 / np.sqrt(3)) < 2.0
    with pytest.raises(ValueError, match=r"in_shape: got \(6,\), expected \(5,\)"):
        net.init(jax.random.key(0), (6,))


def test_wrong_layers_are_named():
    params = dbm.init(jax.random.key(0), (3, 2, 2))
    for action, message in (
        (lambda: dbm.energy(params, (jnp.ones((1, 3)),) * 3), "layers of a deep Boltzmann machine"),
        (lambda: dbm.mean_field(params, jnp.ones((1, 2))), "visible units of a deep"),
        (lambda: dbm.init(jax.random.key(0), (3,)), "sizes of layers"),
        (lambda: dbn.unrolled(rbm.init(jax.random.key(0), 3, 2), 0), r"unrolled\(layers\)"),
    ):
        with pytest.raises(ValueError, match=message):
            action()

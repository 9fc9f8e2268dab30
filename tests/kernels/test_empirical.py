"""Kernels at given parameters: outputs, methods, groups, metrics, tiles, operators and errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import kernels, losses, nn, optimizers, training

N, M, D, K = 7, 5, 4, 3


@pytest.fixture
def problem(float64):
    net = nn.mlp((6, K), activation=nn.tanh(), bias_std=0.4)
    params, _ = net.init(jax.random.key(0), (D,))
    x1 = jax.random.normal(jax.random.key(1), (N, D))
    x2 = 1.7 * jax.random.normal(jax.random.key(2), (M, D)) + 0.3
    return net.apply, params, x1, x2


def jacobians(f, params, x):
    """Leaves (N, K, size), in order."""
    leaves = jax.tree.leaves(jax.jacrev(lambda p: f(p, x))(params))
    return [np.asarray(j).reshape(len(x), K, -1) for j in leaves]


def expected(f, params, x1, x2, weights=None):
    pairs = zip(jacobians(f, params, x1), jacobians(f, params, x2), strict=True)
    weights = [1.0] * 4 if weights is None else weights
    return [
        np.einsum("nax,x,mbx->nmab", a, np.broadcast_to(np.ravel(w), a.shape[-1]), b)
        for (a, b), w in zip(pairs, weights, strict=True)
    ]


@pytest.mark.parametrize("method", ["auto", "structured", "jacobian", "vector_products"])
def test_outputs_of_every_method(problem, method):
    f, params, x1, x2 = problem
    full = sum(expected(f, params, x1, x2))
    wanted = {
        "full": full,
        "diagonal": np.einsum("nmaa->nma", full),
        "mean": np.einsum("nmaa->nm", full) / K,
    }
    for outputs, kernel in wanted.items():
        found = kernels.ntk(f, params, x1, x2, outputs=outputs, method=method)
        np.testing.assert_allclose(found, kernel, rtol=1e-12, atol=1e-12)


def test_the_kernel_of_a_batch_with_itself_is_that_with_a_copy(problem):
    f, params, x1, _ = problem
    for outputs in ("mean", "full"):
        alone = kernels.ntk(f, params, x1, outputs=outputs)
        pair = kernels.ntk(f, params, x1, jnp.array(x1), outputs=outputs)
        np.testing.assert_allclose(alone, pair, rtol=1e-12, atol=1e-12)


def test_a_coupled_function_is_refused_or_taken_whole(problem):
    _, params, x1, x2 = problem
    net = nn.mlp((6, K), activation=nn.tanh(), bias_std=0.4)

    def f(params, x):
        y = net.apply(params, x)
        return y - jnp.broadcast_to(y.mean(0, keepdims=True), y.shape)

    with pytest.raises(ValueError, match=r"coupled=True"):
        kernels.ntk(f, params, x1)
    found = kernels.ntk(f, params, x1, x2, outputs="full", coupled=True)
    np.testing.assert_allclose(found, sum(expected(f, params, x1, x2)), rtol=1e-12, atol=1e-12)


def test_groups_are_parts_of_the_kernel(problem):
    f, params, x1, x2 = problem
    # In the order of the leaves: W and b of each of the two layers.
    w0, b0, w1, b1 = expected(f, params, x1, x2)
    for method in ("structured", "vector_products"):
        by_layer = kernels.ntk(
            f, params, x1, x2, outputs="full", groups=lambda path: path[:3], method=method
        )
        assert sorted(by_layer) == ["[0]", "[2]"]
        np.testing.assert_allclose(by_layer["[0]"], w0 + b0, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(by_layer["[2]"], w1 + b1, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["structured", "jacobian", "vector_products"])
def test_a_metric_weighs_parameters_by_leaf_and_by_entry(problem, method):
    f, params, x1, x2 = problem
    keys = jax.random.split(jax.random.key(5), 4)
    leaves, structure = jax.tree.flatten(params)
    weights = [jnp.asarray(0.3), jax.random.uniform(keys[1], (6,)), jnp.asarray(2.0)]
    weights.append(jax.random.uniform(keys[3], leaves[3].shape))
    metric = jax.tree.unflatten(structure, weights)
    kernel = sum(expected(f, params, x1, x2, weights))
    found = kernels.ntk(f, params, x1, x2, outputs="full", metric=metric, method=method)
    np.testing.assert_allclose(found, kernel, rtol=1e-12, atol=1e-12)


def test_a_metric_is_a_preconditioned_step(problem):
    """df/dt of gradient descent with a rate per parameter is -Θ_M times the loss's gradient."""
    f, params, x1, _ = problem
    rates = jax.tree.map(lambda p: 0.1 + jnp.abs(p), params)
    y = jnp.ones((N, K))
    objective = lambda p: jnp.sum(losses.half_squared_error(f(p, x1), y))
    direction = jax.tree.map(lambda g, r: -r * g, jax.grad(objective)(params), rates)
    velocity = jax.jvp(lambda p: f(p, x1), (params,), (direction,))[1]
    theta = kernels.ntk(f, params, x1, outputs="full", metric=rates)
    predicted = -jnp.einsum("nmab,mb->na", theta, f(params, x1) - y)
    np.testing.assert_allclose(velocity, predicted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
@pytest.mark.parametrize("budget", [10_000, 4_000])
def test_tiles_of_ragged_sizes_make_the_same_kernel(problem, outputs, budget):
    f, params, x1, x2 = problem
    assert kernels.plan(f, params, x1, x2, outputs=outputs, max_bytes=budget).tile < N
    for second in (None, x2):
        whole = kernels.ntk(f, params, x1, second, outputs=outputs)
        tiled = kernels.ntk(f, params, x1, second, outputs=outputs, max_bytes=budget)
        np.testing.assert_allclose(tiled, whole, rtol=1e-11, atol=1e-12)


def test_the_operator_applies_the_full_kernel_and_its_transpose(problem):
    f, params, x1, x2 = problem
    operator = kernels.ntk_operator(f, params, x1, x2)
    full = sum(expected(f, params, x1, x2))
    v = jax.random.normal(jax.random.key(6), (M, K))
    np.testing.assert_allclose(operator @ v, np.einsum("nmab,mb->na", full, v), rtol=1e-11)
    u = jax.random.normal(jax.random.key(7), (N, K))
    np.testing.assert_allclose(operator.T @ u, np.einsum("nmab,na->mb", full, u), rtol=1e-11)


def test_under_jit_and_for_gradients(problem):
    f, params, x1, x2 = problem
    kernel = lambda p, x: kernels.ntk(f, p, x, x2).sum()
    value, slope = jax.jit(jax.value_and_grad(kernel))(params, x1)
    np.testing.assert_allclose(value, kernel(params, x1), rtol=1e-12)
    step = 1e-6
    direction = jax.tree.map(lambda p: jnp.ones_like(p), params)
    shifted = [jax.tree.map(lambda p, s=s: p + s * step, params) for s in (1, -1)]
    difference = (kernel(shifted[0], x1) - kernel(shifted[1], x1)) / (2 * step)
    total = sum(
        jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (slope, direction)), strict=True)
    )
    np.testing.assert_allclose(total, difference, rtol=1e-6)


def test_trajectory_and_drift(problem):
    f, params, x1, _ = problem
    points = [jax.tree.map(lambda p, s=s: s * p, params) for s in (1.0, 1.1, 0.7)]
    trajectory = jax.tree.map(lambda *p: jnp.stack(p), *points)
    found = kernels.ntk_trajectory(f, trajectory, x1)
    for at, kernel in zip(points, found, strict=True):
        np.testing.assert_allclose(kernel, kernels.ntk(f, at, x1), rtol=1e-12)
    drift = kernels.relative_change(found)
    change = np.linalg.norm(found[2] - found[0]) / np.linalg.norm(found[0])
    np.testing.assert_allclose(drift, [0.0, drift[1], change], rtol=1e-12)
    with pytest.raises(ValueError, match="trajectory: got"):
        kernels.ntk_trajectory(f, params, x1)


def test_alignment_and_rank_against_their_definitions(float64):
    a, b = (jax.random.normal(jax.random.key(s), (6, 6)) for s in (0, 1))
    k1, k2 = np.asarray(a @ a.T), np.asarray(b @ b.T) + 3.0
    cosine = np.vdot(k1, k2) / np.sqrt(np.vdot(k1, k1) * np.vdot(k2, k2))
    np.testing.assert_allclose(
        kernels.alignment(jnp.asarray(k1), jnp.asarray(k2)), cosine, rtol=1e-12
    )
    h = np.eye(6) - 1 / 6
    c1, c2 = h @ k1 @ h, h @ k2 @ h
    centered = np.vdot(c1, c2) / np.sqrt(np.vdot(c1, c1) * np.vdot(c2, c2))
    np.testing.assert_allclose(
        kernels.centered_alignment(jnp.asarray(k1), jnp.asarray(k2)), centered, rtol=1e-12
    )
    p = np.linalg.eigvalsh(k1) / np.trace(k1)
    np.testing.assert_allclose(
        kernels.effective_rank(jnp.asarray(k1)), np.exp(-p @ np.log(p)), rtol=1e-9
    )
    assert kernels.alignment(jnp.zeros((2, 2)), jnp.eye(2)) == 0.0
    with pytest.raises(ValueError, match=r"alignment\(kernel1, kernel2\): got shapes"):
        kernels.alignment(jnp.eye(2), jnp.eye(3))


def test_nngp_is_the_gram_matrix_of_the_outputs(problem):
    f, params, x1, x2 = problem
    y1, y2 = np.asarray(f(params, x1)), np.asarray(f(params, x2))
    np.testing.assert_allclose(kernels.nngp(f, params, x1, x2), y1 @ y2.T / K, rtol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_error_of_an_expansion_falls_with_its_degree(problem, degree):
    f, params, x1, _ = problem
    expansion = kernels.taylor(f, params, degree)
    errors = []
    for size in (0.1, 0.05):
        other = jax.tree.map(lambda p, s=size: p + s * jnp.cos(17.0 * p), params)
        errors.append(np.abs(expansion(other, x1) - f(other, x1)).max())
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), degree + 1, atol=0.35)
    np.testing.assert_allclose(expansion(params, x1), f(params, x1), rtol=1e-14)


def test_the_linear_model_has_a_constant_kernel_and_trains_by_it(problem):
    f, params, x1, x2 = problem
    linear = kernels.linearize(f, params)
    elsewhere = jax.tree.map(lambda p: p + 1.0, params)
    np.testing.assert_allclose(
        kernels.ntk(linear, elsewhere, x1, x2), kernels.ntk(f, params, x1, x2), rtol=1e-12
    )
    y = jnp.sin(x1[:, :K])
    rate = 0.05
    fit = training.fit(
        linear, params, losses.half_squared_error, (x1, y),
        optimizers.gradient_descent(rate), steps=40,
    )  # fmt: skip
    theta = kernels.ntk(f, params, x1, outputs="full").transpose(0, 2, 1, 3).reshape(N * K, N * K)
    step = np.eye(N * K) - rate * np.asarray(theta) / N
    start = np.asarray(f(params, x1) - y).ravel()
    predicted = np.linalg.matrix_power(step, 40) @ start
    found = np.asarray(linear(fit.params, x1) - y).ravel()
    np.testing.assert_allclose(found, predicted, atol=1e-10)


def test_plans_say_what_is_done_and_why():
    net = nn.mlp((256, 10))
    params, _ = net.init(jax.random.key(0), (784,))
    x = jax.ShapeDtypeStruct((512, 784), "float32")
    plan = kernels.plan(net.apply, params, x, outputs="full")
    chosen = {row.parameter: row.contraction for row in plan.rows}
    assert chosen["[0]['W']"] == chosen["[2]['W']"] == "gram"
    assert set(chosen) == {"[0]['W']", "[2]['W']", "[0]['b']", "[2]['b']"}
    text = str(plan)
    assert "method structured" in text
    assert all(row.parameter in text and row.reason in text for row in plan.rows)
    jacobian = kernels.plan(net.apply, params, x, outputs="full", method="jacobian")
    assert {row.contraction for row in jacobian.rows} == {"direct"}
    assert jacobian.costs["jacobian"].flops > 100 * plan.costs["structured"].flops
    assert jacobian.tile < 512 <= plan.tile


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_look_ups_compare_tokens(outputs):
    """A large table is neither formed nor pushed forward, whatever the batch."""
    f = lambda p, x: jnp.tanh(p["table"][x].mean(1) @ p["W"])
    params = {"table": jnp.zeros((30_000, 64)), "W": jnp.zeros((64, 10))}
    tied = lambda p, x: jnp.tanh(p["table"][x].mean(1) @ p["W"]) @ p["table"].T
    weights = {"table": jnp.zeros((3_000, 8)), "W": jnp.zeros((8, 8))}
    for n in (2, 64):
        x = jax.ShapeDtypeStruct((n, 20), "int32")
        plan = kernels.plan(f, params, x, outputs=outputs)
        assert plan.method == "structured"
        assert plan.rows[0].contraction == "gram"
    if outputs == "mean":
        assert kernels.plan(tied, weights, x).rows[0].contraction == "gram"


def test_bad_input_is_named(problem):
    f, params, x1, x2 = problem
    with pytest.raises(ValueError, match=r"params\['n'\]: got dtype int"):
        kernels.ntk(lambda p, x: x * p["n"], {"n": jnp.arange(4)}, x1)
    with pytest.raises(ValueError, match="outputs: got 'trace', expected one of 'mean'"):
        inspect.unwrap(kernels.ntk)(f, params, x1, outputs="trace")
    with pytest.raises(ValueError, match=r"x2: got examples of shape \(3,\)"):
        kernels.ntk(f, params, x1, x2[:, :3])
    with pytest.raises(ValueError, match=r"f\(params, x1\): got shape \(3, 7\) for 7 examples"):
        kernels.ntk(lambda p, x: f(p, x).T, params, x1)
    with pytest.raises(ValueError, match="metric: got"):
        kernels.ntk(f, params, x1, metric=(1.0, 2.0))
    bad = jax.tree.map(lambda p: jnp.ones(2), params)
    with pytest.raises(ValueError, match=r"metric\[0\]\['W'\]: got shape \(2,\)"):
        kernels.ntk(f, params, x1, metric=bad)
    with pytest.raises(ValueError, match=r"taylor\(degree\): got -1"):
        kernels.taylor(f, params, -1)

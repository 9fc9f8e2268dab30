"""Gauss-Newton and Fisher matrices against sums over examples and labels in NumPy float64."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import flat, random_tree, unchecked

from jaxnn import curvature, losses
from jaxnn.curvature.heads import HEADS, drawn_labels
from jaxnn.linalg import LinearOperator

N, D, HIDDEN, K = 7, 3, 4, 3
PARAMS = {"V": (HIDDEN, K), "W": (D, HIDDEN), "b": (HIDDEN,)}
LOSSES = {
    "categorical": losses.softmax_cross_entropy,
    "bernoulli": losses.sigmoid_cross_entropy,
    "gaussian": losses.half_squared_error,
}
HEAD_NAMES = tuple(LOSSES)
KEY = jax.random.key(0)
dense = jax.jit(LinearOperator.to_dense)


def net(params, x):
    h = jnp.tanh(x @ params["W"] + jnp.broadcast_to(params["b"], (x.shape[0], HIDDEN)))
    return h @ params["V"]


def problem(seed, dtype):
    params = random_tree(seed, PARAMS, dtype)
    rng = np.random.default_rng(seed + 50)
    y = {
        "categorical": rng.integers(0, K, N),
        "bernoulli": rng.integers(0, 2, (N, K)),
        "gaussian": rng.normal(size=(N, K)),
    }
    return params, random_tree(seed + 100, (N, D), dtype), y


def outputs_and_jacobians(params, x):
    """z (N, K) and J (N, K, P) of the network, derived by hand."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    x = np.asarray(x, np.float64)
    h = np.tanh(x @ p["W"] + p["b"])
    rows = []
    for xn, hn in zip(x, h, strict=True):
        slope = (1 - hn**2)[:, None] * p["V"]  # (HIDDEN, K): ∂z/∂(pre-activation)
        dV = np.einsum("h,kl->khl", hn, np.eye(K))
        dW = np.einsum("d,hk->kdh", xn, slope)
        rows.append(np.concatenate([a.reshape(K, -1) for a in (dV, dW, slope.T)], axis=1))
    return h @ p["V"], np.stack(rows)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def score(head, z, y):
    """∇_z of -ln p(y | z)."""
    if head == "categorical":
        return softmax(z) - np.eye(K)[y]
    return (sigmoid(z) if head == "bernoulli" else z) - y


def outcomes(head, z):
    """All (probability, label) of one example; of a Gaussian two that have its moments."""
    if head == "categorical":
        return list(zip(softmax(z), range(K), strict=True))
    signs = np.array(list(product((0.0, 1.0), repeat=K)))
    if head == "gaussian":
        return [(0.5**K, z + 2 * s - 1) for s in signs]
    p = sigmoid(z)
    return [(np.prod(np.where(s == 1, p, 1 - p)), s) for s in signs]


def mean_outer(gradients):
    return np.einsum("np,nq->pq", gradients, gradients) / len(gradients)


def exact_fisher(head, params, x):
    z, J = outputs_and_jacobians(params, x)
    total = 0.0
    for zn, Jn in zip(z, J, strict=True):
        for probability, label in outcomes(head, zn):
            g = score(head, zn, label) @ Jn
            total = total + probability * np.outer(g, g)
    return total / N


def close(actual, exact, dtype, factor=100):
    scale = max(1.0, np.max(np.abs(exact)))
    np.testing.assert_allclose(actual, exact, atol=factor * np.finfo(dtype).eps * scale, rtol=0)


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_both_are_the_sum_over_examples_and_labels(head, dtype):
    params, x, y = problem(1, dtype)
    exact = exact_fisher(head, params, x)
    v = random_tree(8, PARAMS, dtype)
    y = jnp.asarray(y[head])
    of_loss, of_head = (None, 3) if head == "bernoulli" else (3, None)
    for operator in (
        curvature.gauss_newton(net, LOSSES[head], params, x, y, batch_size=of_loss),
        curvature.fisher(net, params, x, head=head, batch_size=of_head),
    ):
        assert operator.structure == "positive_semidefinite"
        close(dense(operator), exact, dtype)
        form = jax.jit(LinearOperator.quadratic_form)(operator, v)
        close(form, flat(v) @ exact @ flat(v), dtype)
        assert form.dtype == dtype


def test_the_mean_squared_error_and_means_of_losses(dtype):
    params, x, y = problem(2, dtype)
    y = jnp.asarray(y["gaussian"], dtype)
    J = outputs_and_jacobians(params, x)[1].reshape(N * K, -1)
    exact = 2 * J.T @ J / (N * K)
    for loss in (losses.mean_squared_error, lambda z, y: jnp.mean(jnp.square(z - y))):
        close(dense(curvature.gauss_newton(net, loss, params, x, y)), exact, dtype)


def test_linear_networks_have_their_hessian_and_others_at_zero_residual(float64):
    params, x, y = problem(3, "float64")
    linear = lambda params, x: x @ params["W"][:, :K] + jnp.broadcast_to(params["b"][:K], (N, K))

    def difference(f, loss, y):
        H = curvature.hessian(lambda p: jnp.mean(loss(f(p, x), y)), params, check=False)
        return dense(curvature.gauss_newton(f, loss, params, x, y) - H)

    labels, fitted = jnp.asarray(y["categorical"]), net(params, x)
    close(difference(linear, losses.softmax_cross_entropy, labels), 0.0, "float64")
    assert np.max(np.abs(difference(net, losses.softmax_cross_entropy, labels))) > 1e-2
    close(difference(net, losses.half_squared_error, fitted), 0.0, "float64")


def test_trees_of_outputs_and_losses_that_couple_them(float64):
    params, x, _ = problem(4, "float64")
    two = lambda p, x: {"a": net(p, x["x"]), "b": jnp.sum(x["x"] @ p["W"], axis=1)}

    def loss(z, y):
        stacked = jnp.concatenate([z["a"], z["b"][:, None]], axis=1)
        return jax.nn.logsumexp(stacked, axis=1) - y[0] * z["b"]

    y = (jnp.arange(1.0, N + 1),)
    theta, unravel = ravel_pytree(params)
    as_vector = lambda t: ravel_pytree(two(unravel(t), {"x": x}))[0]
    z, back = ravel_pytree(two(params, {"x": x}))
    J = np.asarray(jax.jit(jax.jacobian(as_vector))(theta))
    H = np.asarray(jax.jit(jax.hessian(lambda z: jnp.mean(loss(back(z), y))))(z))
    G = curvature.gauss_newton(two, loss, params, {"x": x}, y, batch_size=2)
    close(dense(G), J.T @ H @ J, "float64")


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_the_empirical_matrix_has_the_gradients_of_the_data(head, dtype):
    params, x, y = problem(5, dtype)
    z, J = outputs_and_jacobians(params, x)
    exact = mean_outer(np.einsum("nk,nkp->np", score(head, z, y[head]), J))
    batch_size = 4 if head == "categorical" else None
    options = {"head": head, "y": y[head], "batch_size": batch_size}
    close(dense(curvature.fisher(net, params, x, kind="empirical", **options)), exact, dtype)


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_the_drawn_matrix_is_that_of_its_labels_and_estimates_the_exact(head, float64):
    params, x, _ = problem(6, "float64")
    z, J = outputs_and_jacobians(params, x)
    v, samples = flat(random_tree(7, PARAMS, "float64")), 3000
    as_tree, forms = ravel_pytree(params)[1], []
    for seed in range(2):
        key = jax.random.key(seed)
        options = {"head": head, "samples": samples}
        labels = np.asarray(drawn_labels(net, params, x, key, **options))
        slopes = np.stack(
            [np.einsum("nk,nkp,p->n", score(head, z, y), J, v) for y in labels.swapaxes(0, 1)]
        )
        draws = np.mean(slopes**2, axis=1)  # vᵀ g gᵀ v, a mean over the examples for each sample
        F = curvature.fisher(net, params, x, kind="monte_carlo", key=key, **options)
        form = F.quadratic_form(as_tree(jnp.asarray(v)))
        np.testing.assert_allclose(form, draws.mean(), rtol=1e-11)
        exact = v @ exact_fisher(head, params, x) @ v
        error = draws.std(ddof=1) / np.sqrt(samples)
        assert abs(form - exact) < 4 * error
        assert error < 0.1 * exact
        forms.append(float(form))
    assert abs(forms[0] - forms[1]) > 1e-6  # the labels depend on the key


def test_few_drawn_labels_and_batches(dtype):
    params, x, _ = problem(7, dtype)
    z, J = outputs_and_jacobians(params, x)
    key = jax.random.key(3)
    labels = np.asarray(drawn_labels(net, params, x, key, samples=2))
    gradients = [np.einsum("nk,nkp->np", score("categorical", z, labels[:, s]), J) for s in (0, 1)]
    options = {"kind": "monte_carlo", "key": key, "samples": 2, "batch_size": 3}
    F = curvature.fisher(net, params, x, **options)
    close(dense(F), mean_outer(np.concatenate(gradients)), dtype, factor=300)


def test_outputs_with_other_axes(float64):
    params, x, _ = problem(8, "float64")
    single = lambda p, x: net(p, x)[:, 0]
    several = lambda p, x: jnp.stack([net(p, x), jnp.sin(net(p, x))], axis=1)  # (N, 2, K)
    rng = np.random.default_rng(0)
    cases = [
        (single, "bernoulli", rng.integers(0, 2, N)),
        (several, "categorical", rng.integers(0, K, (N, 2))),
    ]
    for f, head, y in cases:
        nll, y = partial(losses.negative_log_likelihood, head=head), jnp.asarray(y)
        F = dense(curvature.fisher(f, params, x, head=head))
        close(F, dense(curvature.gauss_newton(f, nll, params, x, y)), "float64")
        per_example = jax.jit(jax.jacobian(lambda p, f=f, nll=nll, y=y: nll(f(p, x), y)))(params)
        rows = np.concatenate(
            [np.reshape(per_example[name], (N, -1)) for name in sorted(PARAMS)], axis=1
        )
        empirical = curvature.fisher(f, params, x, kind="empirical", head=head, y=y)
        close(dense(empirical), mean_outer(rows), "float64")


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_roots_are_roots(head, float64):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, K)) * 3)
    columns = lambda function: np.stack(
        [function(z, jnp.broadcast_to(e, z.shape)) for e in jnp.eye(K)], axis=-1
    )
    L, F = columns(HEADS[head].root), columns(HEADS[head].information)
    close(np.einsum("nik,njk->nij", L, L), F, "float64")


def test_extreme_logits(dtype):
    x = jnp.asarray([[1e4, -1e4, 0.0], [0.0, 0.0, -np.inf]], dtype)
    shifted = lambda params, x: x + jnp.broadcast_to(params, x.shape)
    params = jnp.zeros(K, dtype)
    F = dense(curvature.fisher(shifted, params, x))
    exact = [[0.125, -0.125, 0.0], [-0.125, 0.125, 0.0], [0.0, 0.0, 0.0]]  # ½(diag(p) - ppᵀ)
    np.testing.assert_allclose(F, exact, atol=1e-6)
    F = dense(curvature.fisher(shifted, params, x[:1], head="bernoulli"))
    np.testing.assert_allclose(F, np.diag([0.0, 0.0, 0.25]), atol=1e-6)


def test_one_program_for_operators_alike_and_no_constants(dtype):
    traces = []

    @jax.jit
    def apply(operator, v):
        traces.append(1)
        return operator @ v, operator.quadratic_form(v)

    for seed in range(2):
        params, x, y = problem(seed, dtype)
        key = jax.random.key(seed)
        labels = jnp.asarray(y["categorical"])
        for operator in (
            curvature.gauss_newton(net, losses.softmax_cross_entropy, params, x, labels),
            curvature.fisher(net, params, x, batch_size=2),
            curvature.fisher(net, params, x, kind="monte_carlo", key=key),
        ):
            apply(operator, params)
            assert jax.make_jaxpr(lambda F, v: F @ v)(operator, params).consts == []
    assert len(traces) == 3


def test_created_under_jit(dtype):
    params, x, _ = problem(9, dtype)
    v = random_tree(1, PARAMS, dtype)

    @partial(jax.jit, static_argnums=0)
    def product(kind, params, x, key):
        options = {} if kind == "exact" else {"key": key, "samples": 2}
        return curvature.fisher(net, params, x, kind=kind, **options) @ v

    key = jax.random.key(0)
    close(flat(product("exact", params, x, key)), exact_fisher("categorical", params, x) @ flat(v),
          dtype)  # fmt: skip
    outside = curvature.fisher(net, params, x, kind="monte_carlo", key=key, samples=2) @ v
    close(flat(product("monte_carlo", params, x, key)), flat(outside), dtype)


def test_bad_input():
    params, x, y = problem(0, "float32")
    fisher, gauss_newton = curvature.fisher, curvature.gauss_newton
    unreduced = lambda z, y: jnp.square(z - y)
    cases = [
        (partial(fisher, net, params, x, kind="true"), r"fisher\(kind\): got 'true', expected one"),
        (partial(fisher, net, params, x, head="poisson"), r"fisher\(head\): got 'poisson'"),
        (partial(fisher, net, params, x, kind="empirical"), r"fisher\(y\): got None"),
        (partial(fisher, net, params, x, y=y["categorical"]), r"fisher\(y\): got a value"),
        (partial(fisher, net, params, x, kind="monte_carlo"), r"fisher\(key\): got None"),
        (partial(fisher, net, params, x, key=KEY), r"fisher\(key\): got a value"),
        (partial(fisher, net, params, x, samples=2), r"fisher\(samples\): got 2, expected 1"),
        (partial(fisher, net, params, x, samples=0), r"fisher\(samples\): got 0"),
        (
            partial(fisher, net, params, x, kind="empirical", head="gaussian", y=jnp.ones(N)),
            r"half_squared_error: target: got shape \(7,\)",
        ),
        (partial(fisher, lambda p, x: net(p, x)[:, 0], params, x), r"fisher\(f\).*\(N, ..., K\)"),
        (partial(fisher, lambda p, x: (net(p, x),), params, x), r"fisher\(f\).*one array"),
        (partial(fisher, lambda p, x: net(p, x) > 0, params, x), "its outputs: got dtype bool"),
        (partial(fisher, net, (), x), r"fisher\(params\): got no parameters"),
        (partial(drawn_labels, net, params, x, KEY, samples=0), r"drawn_labels\(samples\): got 0"),
        (
            partial(drawn_labels, lambda p, x: x[:, 0], (), x, KEY),
            r"drawn_labels\(f\): its outputs: got \(7,\), expected one array \(N, ..., K\)",
        ),
        (
            partial(drawn_labels, lambda p, x: {"a": x}, (), x, KEY, head="gaussian"),
            r"drawn_labels\(f\): its outputs: got \{'a': \(7, 3\)\}, expected one array \(N, ...\)",
        ),
        (partial(drawn_labels, lambda p, x: x > 0, (), x, KEY), "its outputs: got dtype bool"),
        (partial(fisher, net, params, x[:0]), r"fisher\(f\): its outputs: got \(0, 3\)"),
        (
            partial(gauss_newton, net, unreduced, params, x, jnp.ones((N, K))),
            r"\(loss\): got shape",
        ),
        (
            partial(gauss_newton, net, unreduced, {"W": jnp.ones(2, int)}, x, x),
            r"gauss_newton\(params\)\['W'\]: got dtype int32",
        ),
    ]
    for call, message in cases:
        with unchecked(), pytest.raises(ValueError, match=message):
            call()

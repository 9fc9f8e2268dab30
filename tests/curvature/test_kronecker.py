"""Kronecker factors: their definition in NumPy loops, and where K-FAC is exact."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import flat, unchecked

from jaxnn import curvature, nn, tree
from jaxnn.curvature.heads import drawn_labels
from jaxnn.linalg import LinearOperator

dense = jax.jit(LinearOperator.to_dense)


def drawn(net, in_shape, seed=0):
    """Parameters with biases that are not 0, in JAX's default float."""
    params, _ = net.init(jax.random.key(seed), in_shape)
    return tree.random_like(jax.random.key(seed + 1), params)


def inputs(shape, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(actual, exact, dtype, factor=200):
    scale = max(1.0, np.max(np.abs(exact)))
    np.testing.assert_allclose(actual, exact, atol=factor * np.finfo(dtype).eps * scale, rtol=0)


def patches(x, size, strides, dilation, padding):
    """(N, *places, Π size · C), by loops over places and offsets."""
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    places, before = [], []
    for n, k, s in zip(x.shape[1:-1], reach, strides, strict=True):
        if padding == "VALID":
            places.append((n - k) // s + 1)
            before.append(0)
        else:
            places.append(-(-n // s))
            missing = max((places[-1] - 1) * s + k - n, 0)
            before.append((k - 1) // 2 if padding == "CIRCULAR" else missing // 2)
    out = np.zeros((x.shape[0], *places, *size, x.shape[-1]))
    for place in product(*map(range, places)):
        for offset in product(*map(range, size)):
            at = [
                i * s + a * d - b
                for i, s, a, d, b in zip(place, strides, offset, dilation, before, strict=True)
            ]
            if padding == "CIRCULAR":
                at = [i % n for i, n in zip(at, x.shape[1:-1], strict=True)]
            if all(0 <= i < n for i, n in zip(at, x.shape[1:-1], strict=True)):
                out[(slice(None), *place, *offset)] = x[(slice(None), *at)]
    return out.reshape(x.shape[0], *places, -1)


CONVOLUTIONS = [
    (
        "monte_carlo",
        "standard",
        0.0,
        (5, 4),
        {"window": (3, 2), "padding": "SAME", "strides": (2, 1)},
    ),
    ("exact", "standard", 0.3, (5, 6), {"window": (2, 3), "padding": "VALID", "strides": (1, 2)}),
    ("exact", "ntk", 0.7, (4, 5), {"window": (2, 2), "padding": "CIRCULAR", "dilation": (1, 2)}),
    ("empirical", "ntk", 0.0, (7,), {"window": (3,), "padding": "SAME", "strides": (3,)}),
]


@pytest.mark.parametrize(
    ("kind", "parametrization", "bias_std", "spatial", "windows"), CONVOLUTIONS
)
def test_the_factors_are_their_definition(kind, parametrization, bias_std, spatial, windows, dtype):
    N, C, F, K, weight_std = 3, 2, 3, 3, 1.3
    scale = {"weight_std": weight_std, "bias_std": bias_std, "parametrization": parametrization}
    net = nn.serial(nn.conv(F, **windows, **scale), nn.tanh(), nn.flatten(), nn.dense(K, **scale))
    params = drawn(net, (*spatial, C))
    x = inputs((N, *spatial, C), dtype)
    options = {"exact": {}, "monte_carlo": {"key": jax.random.key(5), "samples": 2}}
    options = options.get(kind, {"y": np.array([2, 0, 1])})

    # The network and its derivatives by hand: s = ā V, h = tanh(s), z = h̄ U.
    ones = (windows.get("strides"), windows.get("dilation"))
    strides, dilation = (a or (1,) * len(spatial) for a in ones)
    x64 = np.asarray(x, np.float64)
    rows = patches(x64, windows["window"], strides, dilation, windows["padding"])
    has_bias = parametrization == "standard" or bias_std > 0

    def homogeneous(a):
        if parametrization == "ntk":
            a = a * weight_std / np.sqrt(a.shape[-1])
        one = bias_std if parametrization == "ntk" else 1.0
        return np.concatenate([a, np.full((*a.shape[:-1], 1), one)], axis=-1) if has_bias else a

    V, U = (
        np.concatenate(
            [np.asarray(params[i]["W"], np.float64).reshape(-1, n)]
            + ([np.asarray(params[i]["b"], np.float64)[None]] if has_bias else [])
        )
        for i, n in ((0, F), (3, K))
    )
    a0 = homogeneous(rows)
    h = np.tanh(a0 @ V)
    a3 = homogeneous(h.reshape(N, -1))
    z = a3 @ U
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    if kind == "exact":
        labels, weights = np.tile(np.arange(K), (N, 1)), p
    elif kind == "empirical":
        labels, weights = options["y"][:, None], np.ones((N, 1))
    else:
        labels = np.asarray(drawn_labels(net.apply, params, x, **options))
        weights = np.full(labels.shape, 0.5)
    W3 = U[: h[0].size] * (weight_std / np.sqrt(h[0].size) if parametrization == "ntk" else 1.0)
    T = h[0].size // F
    A0, A3, G0, G3 = (np.zeros((n, n)) for n in (len(V), len(U), F, K))
    for n in range(N):
        A3 += np.outer(a3[n], a3[n]) / N
        for t in a0[n].reshape(T, -1):
            A0 += np.outer(t, t) / N
        for label, weight in zip(labels[n], weights[n], strict=True):
            g3 = p[n] - np.eye(K)[label]
            G3 += weight * np.outer(g3, g3) / N
            for g in ((W3 @ g3).reshape(h[n].shape) * (1 - h[n] ** 2)).reshape(T, F):
                G0 += weight * np.outer(g, g) / (N * T)

    factors = jax.jit(lambda p: curvature.kfac(net, p, x, kind=kind, batch_size=2, **options))
    found = factors(params)
    assert list(found) == ["[0]", "[3]"]
    for path, A, G in (("[0]", A0, G0), ("[3]", A3, G3)):
        close(found[path].A, A, dtype)
        close(found[path].G, G, dtype)
    assert found["[0]"].W.shape == params[0]["W"].shape
    assert (found["[0]"].b is not None) == has_bias


def test_the_operators_act_on_the_layers_own_parameters(dtype):
    net = nn.serial(nn.conv(3, (2, 2)), nn.relu(), nn.flatten(), nn.dense(3))
    params, x = drawn(net, (3, 3, 2)), inputs((4, 3, 3, 2), dtype)
    damping = 0.1
    inverse_product = jax.jit(lambda factors, v: factors.inverse(damping) @ v)
    for path, factors in jax.jit(lambda p: curvature.kfac(net, p, x))(params).items():
        own = params[int(path[1:-1])]
        A, G = np.asarray(factors.A, np.float64), np.asarray(factors.G, np.float64)
        exact = np.kron(A, G)
        operator = factors.operator
        kind = lambda space: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), space)
        assert kind(operator.domain) == kind(own)
        close(dense(operator), exact, dtype)
        close(operator.quadratic_form(own), flat(own) @ exact @ flat(own), dtype)
        inverse = factors.inverse(damping)
        assert operator.structure == inverse.structure == "positive_semidefinite"
        damped = exact + damping * np.eye(len(exact))
        close(dense(inverse), np.linalg.inv(damped), dtype, factor=2000)
        solved = inverse_product(factors, own)
        close(damped @ flat(solved), flat(own), dtype, factor=2000)


@pytest.mark.parametrize(("narrow", "wide"), [("bfloat16", "float32"), ("float32", "float64")])
def test_blocks_act_on_params_narrower_than_the_data(narrow, wide, standard_promotion):
    with jax.enable_x64(wide == "float64"):
        net = nn.serial(nn.dense(2), nn.tanh(), nn.dense(3))
        params = jax.tree.map(lambda a: a.astype(narrow), drawn(net, (3,)))
        factors = curvature.kfac(net, params, inputs((5, 3), wide))
        for path, own in (("[0]", params[0]), ("[2]", params[2])):
            A, G = (np.asarray(a, np.float64) for a in (factors[path].A, factors[path].G))
            assert factors[path].A.dtype == factors[path].G.dtype == wide
            damped = np.kron(A, G) + 0.1 * np.eye(len(A) * len(G))
            for operator, matrix in (
                (factors[path].operator, np.kron(A, G)),
                (factors[path].inverse(0.1), np.linalg.inv(damped)),
            ):
                image = operator @ own
                assert all(leaf.dtype == narrow for leaf in jax.tree.leaves(image))
                exact = matrix @ flat(own)
                # Rounded once, at the end.
                eps = float(jnp.finfo(narrow).eps)
                assert np.all(np.abs(flat(image) - exact) <= 0.6 * eps * np.abs(exact) + 1e-6)


def test_the_inverse_of_singular_factors_stays_positive(dtype):
    A, G = jnp.diag(jnp.array([2.0, -1e-7], dtype)), jnp.diag(jnp.array([3.0, 0.0], dtype))
    W = jax.ShapeDtypeStruct((2, 2), dtype)
    inverse = curvature.KroneckerFactors(A, G, W).inverse(1e-9)  # -1e-7: rounding
    np.testing.assert_allclose(inverse.to_dense(), np.diag([1 / 6, 1e9, 1e9, 1e9]), rtol=1e-6)


ntk = {"parametrization": "ntk", "bias_std": 0.6, "weight_std": 0.8}
NETWORKS = {
    "perceptron": (nn.serial(nn.dense(4), nn.tanh(), nn.dense(3)), (3,)),
    "ntk": (nn.serial(nn.dense(4, **ntk), nn.sigmoid(), nn.dense(3, **ntk)), (3,)),
    "nested": (
        nn.serial(
            nn.residual(nn.serial(nn.tanh(), nn.dense(3))),
            nn.parallel(nn.dense(3), nn.serial(nn.dense(3), nn.erf()), combine="product"),
            nn.parallel(nn.dense(2), nn.identity(), combine="concatenate"),
            nn.dense(3),
        ),
        (3,),
    ),
}
KINDS = {
    "exact": {},
    "empirical": {"y": np.array([1])},
    "monte_carlo": {"samples": 3},
}


def exact_blocks(net, params, x, **options):
    F = np.asarray(dense(curvature.fisher(net.apply, params, x, **options)))
    ranges, start = {}, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layer = jax.tree_util.keystr(path[:-1])
        ranges[layer] = (ranges.get(layer, (start,))[0], start + leaf.size)
        start += leaf.size
    return {layer: F[a:b, a:b] for layer, (a, b) in ranges.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "exact") for name in NETWORKS), ("ntk", "empirical"), ("nested", "monte_carlo")],
)
def test_one_example_has_exact_blocks(name, kind, float64):
    net, in_shape = NETWORKS[name]
    params, x = drawn(net, in_shape), inputs((1, *in_shape), "float64")
    options = {"kind": kind, **KINDS[kind]}
    if kind == "monte_carlo":
        options["key"] = jax.random.key(8)
    found = jax.jit(lambda p: curvature.kfac(net, p, x, **options))(params)
    exact = exact_blocks(net, params, x, **options)
    assert list(found) == list(exact) == list(curvature.blocks(curvature.fisher(
        net.apply, params, x, **options)))  # fmt: skip
    for path, matrix in exact.items():
        close(np.kron(found[path].A, found[path].G), matrix, "float64")


def test_deep_linear_networks_with_a_gaussian_head_have_exact_blocks(float64):
    linear = nn.serial(nn.dense(4), nn.identity(), nn.dense(2), nn.dense(3, **ntk))
    bent = nn.serial(nn.dense(4), nn.tanh(), nn.dense(2), nn.dense(3, **ntk))
    params, x = drawn(linear, (3,)), inputs((6, 3), "float64")

    def gaps(net):
        found = jax.jit(lambda p: curvature.kfac(net, p, x, head="gaussian"))(params)
        exact = exact_blocks(net, params, x, head="gaussian")
        return [np.max(np.abs(np.kron(found[i].A, found[i].G) - exact[i])) for i in exact]

    assert max(gaps(linear)) < 1e-12
    first, *rest = gaps(bent)
    assert first > 1e-2  # below the nonlinearity g depends on the example
    assert max(rest) < 1e-12


def test_one_layer_alone_and_other_heads(dtype):
    net = nn.dense(2)
    params, x = drawn(net, (3,)), inputs((5, 3), dtype)
    gaussian = curvature.kfac(net, params, x, head="gaussian")
    assert list(gaussian) == [""]
    exact = exact_blocks(net, params, x, head="gaussian")[""]
    close(np.kron(gaussian[""].A, gaussian[""].G), exact, dtype)
    z = np.asarray(net.apply(params, x), np.float64)
    p = 1 / (1 + np.exp(-z))
    bernoulli = curvature.kfac(net, params, x, head="bernoulli")
    close(bernoulli[""].G, np.diag(np.mean(p * (1 - p), axis=0)), dtype)


def test_positions_that_share_weights(float64):
    net = nn.serial(nn.dense(2), nn.global_avg_pool())
    params, x = drawn(net, (5, 3)), inputs((4, 5, 3), "float64")
    factors = curvature.kfac(net, params, x, head="gaussian")["[0]"]
    rows = np.concatenate([np.asarray(x), np.ones((4, 5, 1))], axis=-1)
    close(factors.A, np.einsum("nti,ntj->ij", rows, rows) / 4, "float64")
    close(factors.G, np.eye(2) / 25, "float64")  # every position has 1/5 of the gradient


def test_the_order_is_that_of_the_layers():
    net = nn.serial(*[nn.dense(2)] * 12)
    params, found = drawn(net, (2,)), {}
    # Sorted as strings "[10]" would come before "[2]"; nothing need be computed for this.
    jax.eval_shape(lambda p: found.update(curvature.kfac(net, p, jnp.ones((2, 2)))), params)
    assert list(found) == [f"[{i}]" for i in range(12)]


def test_factors_are_pytrees(dtype):
    net = nn.serial(nn.dense(2), nn.dense(2))
    params, x = drawn(net, (2,)), inputs((3, 2), dtype)
    found = curvature.kfac(net, params, x)
    halved = jax.tree.map(lambda a: a / 2, found)["[1]"]
    np.testing.assert_array_equal(halved.G, found["[1]"].G / 2)
    abstract = jax.eval_shape(lambda p: curvature.kfac(net, p, x), params)["[1]"]
    assert (abstract.A.shape, abstract.W.shape, abstract.b.shape) == ((3, 3), (2, 2), (2,))


def test_bad_input():
    x = jnp.ones((2, 4, 4))

    def call(*layers, x=x, **options):
        net = nn.serial(*layers)
        params, _ = net.init(jax.random.key(0), x.shape[1:])
        return partial(curvature.kfac, net, params, x, **options)

    sequences = nn.Sequences(x, jnp.array([1, 2]))
    W = jax.ShapeDtypeStruct((2, 1), jnp.float32)
    recurrent = nn.serial(nn.rnn(3))
    cases = [
        (call(nn.flatten(), nn.layer_norm()), r"the layer at params\[1\]: got layer_norm"),
        (
            call(nn.serial(nn.conv(4, (2,), groups=2)), nn.flatten()),
            r"the layer at params\[0\]\[0\]: got conv with groups, expected nn.dense",
        ),
        (
            partial(curvature.kfac, recurrent, recurrent.init(jax.random.key(0), (4, 4))[0],
                    sequences),
            r"kfac\(x\): got nn.Sequences",
        ),
        (call(nn.dense(3), kind="empirical"), r"kfac\(y\): got None"),
        (call(nn.dense(3), head="poisson"), r"kfac\(head\): got 'poisson'"),
        (call(nn.relu()), r"kfac\(params\): got no parameters"),
        (
            lambda: curvature.KroneckerFactors(jnp.eye(2), jnp.eye(1), W).inverse(0.0),
            r"KroneckerFactors.inverse\(damping\): got 0.0",
        ),
    ]  # fmt: skip
    for run, message in cases:
        with unchecked(), pytest.raises(ValueError, match=message):
            run()

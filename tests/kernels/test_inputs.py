"""What kernels are given: pytrees of inputs, empty ones, two unlike batches, and what they refuse.

Jacobians are formed by hand in NumPy, for f = tanh(a A + b B) of two inputs.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnn import kernels, nn

# Without the shape annotations: these are tests of the checks within.
ntk, nngp, plan = map(inspect.unwrap, (kernels.ntk, kernels.nngp, kernels.plan))
taylor, monte_carlo = inspect.unwrap(kernels.taylor), inspect.unwrap(kernels.monte_carlo)
N, M, K = 5, 3, 2
RNG = np.random.default_rng(0)
PARAMS = {"A": RNG.normal(size=(3, K)), "B": RNG.normal(size=(4, K))}
METHODS = ("auto", "structured", "jacobian", "vector_products")
MODES = ("mean", "diagonal", "full")


def batch(n, seed):
    rng = np.random.default_rng(seed)
    x = {"a": rng.normal(size=(n, 3)) + 0.3, "b": 1.4 * rng.normal(size=(n, 4))}
    return jax.tree.map(jnp.asarray, x)


def f(p, x):
    return jnp.tanh(x["a"] @ p["A"] + x["b"] @ p["B"])


def jacobian(p, x):
    """(N, K, entries of A and of B)."""
    slope = 1 - np.tanh(x["a"] @ p["A"] + x["b"] @ p["B"]) ** 2
    of = lambda z: np.einsum("nk,nc,kl->nkcl", slope, z, np.eye(K)).reshape(len(z), K, -1)
    return np.concatenate([of(x["a"]), of(x["b"])], axis=2)


def reduced(full, outputs):
    k = full.shape[-1]
    modes = {"mean": np.einsum("nmaa->nm", full) / k, "diagonal": np.einsum("nmaa->nma", full)}
    return modes.get(outputs, full)


@pytest.mark.parametrize("method", METHODS)
def test_dictionaries_of_inputs(method, float64):
    p = jax.tree.map(jnp.asarray, PARAMS)
    x1, x2 = batch(N, 1), batch(M, 2)
    full = np.einsum("nax,mbx->nmab", jacobian(PARAMS, x1), jacobian(PARAMS, x2))
    for outputs in MODES if method == "auto" else ("full",):
        found = kernels.ntk(f, p, x1, x2, outputs=outputs, method=method)
        np.testing.assert_allclose(found, reduced(full, outputs), rtol=1e-12, atol=1e-13)
    tiles = kernels.ntk(f, p, x1, x2, outputs="full", method=method, max_bytes=1000)
    np.testing.assert_allclose(tiles, full, rtol=1e-12, atol=1e-13)
    coupled = kernels.ntk(f, p, x1, x2, outputs="full", coupled=True)
    np.testing.assert_allclose(coupled, full, rtol=1e-12, atol=1e-13)
    operator = kernels.ntk_operator(f, p, x1, x2)
    v = np.random.default_rng(3).normal(size=(M, K))
    np.testing.assert_allclose(operator @ v, np.einsum("nmab,mb->na", full, v), atol=1e-12)


def test_a_mask_goes_beside_its_example(float64):
    """Ids, masks and a tuple: the mean of the embeddings within the mask, times a weight."""
    rng = np.random.default_rng(4)
    ids, mask = rng.integers(0, 6, size=(N, 7)), rng.integers(0, 2, size=(N, 7)).astype(bool)
    table = rng.normal(size=(6, K))
    x = (jnp.asarray(ids), jnp.asarray(mask))
    g = lambda p, x: jnp.einsum("ntk,nt->nk", p[x[0]], x[1].astype(p.dtype))
    counts = np.stack([np.bincount(i[m], minlength=6) for i, m in zip(ids, mask, strict=True)])
    for method in ("structured", "vector_products"):
        found = kernels.ntk(g, jnp.asarray(table), x, method=method)
        np.testing.assert_allclose(found, counts @ counts.T, rtol=1e-12)
    outputs = counts @ table
    np.testing.assert_allclose(
        kernels.nngp(g, jnp.asarray(table), x), outputs @ outputs.T / K, rtol=1e-12
    )
    assert kernels.plan(g, jnp.asarray(table), x).rows


def test_sequences_are_inputs(float64):
    net = nn.serial(nn.rnn(4), nn.dense(2))
    values, lengths = jnp.asarray(RNG.normal(size=(3, 5, 2))), jnp.array([5, 2, 3])
    params, _ = net.init(jax.random.key(0), (5, 2))
    found = kernels.ntk(net.apply, params, nn.Sequences(values, lengths))
    for i in range(3):
        alone = values[i : i + 1, : lengths[i]]
        np.testing.assert_allclose(found[i, i], kernels.ntk(net.apply, params, alone)[0, 0])
    means = kernels.monte_carlo(
        net, jax.random.key(1), nn.Sequences(values, lengths), num_samples=2
    )
    assert means.ntk.shape == (3, 3)


def test_examples_of_another_length_or_dtype(float64):
    """f takes both: sums over time, of 4 or of 6 times; whole numbers beside fractions."""
    w = jnp.asarray(RNG.normal(size=(3, K)))
    g = lambda p, x: jnp.tanh((x / 2) @ p).sum(axis=1)
    rng = np.random.default_rng(7)
    x1 = jnp.asarray(rng.normal(size=(N, 4, 3)))
    for x2 in (rng.normal(size=(M, 6, 3)), rng.integers(-3, 4, size=(M, 4, 3))):
        x2 = jnp.asarray(x2)
        slopes = [1 - np.tanh(np.asarray(x) / 2 @ np.asarray(w)) ** 2 for x in (x1, x2)]
        grads = [np.einsum("ntk,ntc->nkc", s, x) / 2 for s, x in zip(slopes, (x1, x2), strict=True)]
        expected = np.einsum("nkc,mkc->nm", *grads) / K
        np.testing.assert_allclose(ntk(g, w, x1, x2), expected, rtol=1e-12)
        np.testing.assert_allclose(ntk(g, w, x2, x1), expected.T, rtol=1e-12)
        with pytest.raises(ValueError, match=r"x2: got examples of shape .* dtype"):
            ntk(g, w, x1, x2, method="structured")


@pytest.mark.parametrize("outputs", MODES)
def test_nothing_has_an_empty_kernel_or_the_kernel_zero(outputs):
    x, w = jnp.ones((4, 3)), jnp.ones((3, 2))
    linear = lambda p, x: x @ p
    kept = {"mean": lambda o: (), "diagonal": lambda o: (o,), "full": lambda o: (o, o)}[outputs]
    cases = (
        (lambda p, x: x, (), x, x, 3),
        (linear, w[:, :0], x, x, 0),
        (linear, w, x[:0], x, 2),
        (linear, w, x, x[:0], 2),
    )
    options = ({"coupled": True}, {"method": "jacobian"}, {"method": "vector_products"}, {})
    for (g, p, x1, x2, o), option in zip(cases, options, strict=True):
        shape = (len(x1), len(x2), *kept(o))
        for second in (x2, None) if x1.shape == x2.shape else (x2,):
            found = ntk(g, p, x1, second, outputs=outputs, **option)
            np.testing.assert_array_equal(found, np.zeros(shape))
        assert ntk(g, p, x1, x2, outputs=outputs, coupled=True).shape == shape
        assert nngp(g, p, x1, x2, outputs=outputs).shape == shape
        operator = kernels.ntk_operator(g, p, x1, x2)
        np.testing.assert_array_equal(operator @ g(p, x2), np.zeros((len(x1), o)))
        assert kernels.plan(g, p, x1, x2).rows == ()
    assert ntk(lambda p, x: x, (), x, groups=lambda path: path) == {}


@pytest.mark.parametrize("size", [1, 2])
def test_a_convolution_of_images_smaller_than_its_window_adds_nothing(size, float64):
    def g(p, x):
        y = jax.lax.conv_general_dilated(x, p[0], (2, 1), "VALID", dimension_numbers=axes)
        return y.sum((1, 2)) + x.sum((1, 2)) @ p[1]

    axes = ("NHWC", "HWIO", "NHWC")
    x = jnp.asarray(RNG.normal(size=(N, size, 6, 2)))
    params = (jnp.ones((4, 3, 2, K)), jnp.ones((2, K)))
    sums = np.asarray(x).sum((1, 2))
    for method in ("structured", "jacobian"):
        np.testing.assert_allclose(ntk(g, params, x, method=method), sums @ sums.T, rtol=1e-12)


def test_kernels_of_outputs_in_every_mode(float64):
    rng = np.random.default_rng(8)
    u, v = (rng.normal(size=(n, 2, 3)) + 1j * rng.normal(size=(n, 2, 3)) for n in (N, M))
    same = lambda p, x: x
    full = np.einsum("nab,mcd->nmabcd", u, v.conj())
    np.testing.assert_allclose(nngp(same, (), u, v, outputs="full"), full, rtol=1e-13)
    diagonal = np.einsum("nmabab->nmab", full)
    np.testing.assert_allclose(nngp(same, (), u, v, outputs="diagonal"), diagonal, rtol=1e-13)
    np.testing.assert_allclose(nngp(same, (), u, v), diagonal.mean((2, 3)), rtol=1e-13)
    own = np.asarray(nngp(same, (), u))
    np.testing.assert_allclose(own, own.conj().T)
    assert np.linalg.eigvalsh(own).min() > -1e-12
    tree = nngp(lambda p, x: {"a": x[:, 0], "b": x[:, 1, 0]}, (), u, v, outputs="full")
    np.testing.assert_allclose(tree["a"]["b"], full[:, :, 0, :, 1, 0], rtol=1e-13)
    whole = rng.integers(-9, 9, size=(N, 2))
    np.testing.assert_allclose(nngp(same, (), jnp.asarray(whole)), whole @ whole.T / 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_outputs_of_half_precision_are_summed_in_single(dtype):
    x = jnp.full((2, 2), 20.0, dtype)
    w = jnp.ones((2, 300), dtype)
    found = nngp(lambda p, x: x @ p, w, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, float), 1600.0)


def test_an_expansion_takes_what_f_takes(float64):
    def g(p, x, mask, *, power=1):
        return mask * (x @ p) ** power

    x, mask, p = batch(N, 9)["a"], jnp.arange(N) / 2, jnp.asarray(RNG.normal(size=3))
    other = p + 0.3
    y, z = x @ p, x @ other
    found = kernels.linearize(g, p)(other, x, mask, power=2)
    np.testing.assert_allclose(found, mask * (y**2 + 2 * y * (z - y)), rtol=1e-12)
    found = kernels.taylor(g, p, 2)(other, x, mask=mask, power=2)
    np.testing.assert_allclose(found, mask * z**2, rtol=1e-12)


X, W = jnp.ones((4, 3)), jnp.ones((3, 2))
BAD = {
    "x1: got leaves of shapes": lambda: ntk(f, PARAMS, [[1.0, 2.0, 3.0]]),
    r"x1: got leaves of shapes \(\)": lambda: nngp(f, PARAMS, [[1.0, 2.0, 3.0]]),
    r"x2: got leaves of shapes \(\)": lambda: plan(lambda p, x: x @ p, W, X, [[1.0, 2.0, 3.0]]),
    "x1: got leaves of shapes none": lambda: ntk(f, PARAMS, ()),
    "x2: got leaves of shapes": lambda: ntk(f, PARAMS, batch(N, 1), {"a": X, "b": X[:3]}),
    "x2: got examples of": lambda: ntk(lambda p, x: x @ p, W, X, (X,)),
    "f: got 3": lambda: ntk(3, W, X),
    "f: got a network, Layer": lambda: ntk(nn.dense(2), W, X),
    "f: got a network": lambda: taylor(nn.dense(2), W, 1),
    "groups: got a function that returns": lambda: ntk(
        f, PARAMS, batch(N, 1), groups=lambda s: [s]
    ),
    "groups: got 'layer'": lambda: ntk(f, PARAMS, batch(N, 1), groups="layer"),
    "metric: got dtype complex64": lambda: ntk(lambda p, x: x @ p, W, X, metric=1j),
    r"f\(params, x1\): got None": lambda: ntk(lambda p, x: None, W, X),
    r"f\(params, x1\): got shape \(2, 4\)": lambda: nngp(lambda p, x: (x @ p).T, W, X),
    r"f\(params, x2\): got outputs \(3,\)": lambda: ntk(
        lambda p, x: p * x, jnp.ones(()), X[:, :2], X
    ),
    r"monte_carlo\(net\): got function": lambda: monte_carlo(
        f, jax.random.key(0), X, num_samples=2
    ),
    r"taylor\(degree\): got 1.5": lambda: taylor(f, PARAMS, 1.5),
}


@pytest.mark.parametrize("message", BAD)
def test_messages_name_the_argument(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


class Model(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.dropout = nnx.Linear(3, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x))


def test_a_module_in_training_mode_is_explained():
    model = Model(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    for g in (model, lambda p, x: nnx.merge(graph, p, rest)(x)):
        with pytest.raises(ValueError, match=r"f\(params, x\): got .* raises .*model\.eval\(\)"):
            ntk(g, params, X)
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    found = ntk(lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), params, X)
    np.testing.assert_allclose(found, np.full((4, 4), 4.0), rtol=1e-6)

"""Tiles of the infinite-width kernel are its parts, whole diagonals are exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked

from jaxnn import kernels, nn
from jaxnn.nn import limit

conv = partial(nn.conv, 1, (3,), bias_std=0.3, parametrization="ntk")
NETS = {
    "flat": ((4,), nn.mlp((6, 5, 2), bias_std=0.3)),
    "flattened": ((5, 2), nn.serial(conv(), nn.relu(), conv(), nn.erf(), nn.flatten())),
    "pooled": ((5, 2), nn.serial(conv(), nn.relu(), conv(), nn.global_avg_pool())),
    "at all places": ((3, 2), nn.serial(conv(), nn.relu(), nn.avg_pool((2,)))),
}


def between(net, x1, x2):
    return net.kernel(limit.inputs(x1, x2, crossed=net.mixes_positions))


@pytest.mark.parametrize("sizes", [(7, None), (5, 3), (2, 7)])
@pytest.mark.parametrize("name", NETS)
def test_tiles_are_parts_of_the_whole(name, sizes):
    in_shape, net = NETS[name]
    rng = np.random.default_rng(1)
    x1, x2 = (n and jnp.asarray(rng.normal(size=(n, *in_shape)), "float32") for n in sizes)
    tiled = jax.jit(partial(kernels.infinite, net, max_bytes=10 * 8 * 4 * 25))(x1, x2)
    whole = jax.jit(partial(between, net))(x1, x2)
    assert tiled.twins == whole.twins == (x2 is None)
    assert tiled.positions == whole.positions
    for moment in limit.MOMENTS:
        value, exact = getattr(tiled, moment), getattr(whole, moment)
        np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_bytes", [1, 2**30])
def test_diagonals_are_exact_in_tiles_that_overlap(max_bytes):
    net = nn.mlp((1,) * 8, parametrization="ntk")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)), "float32")
    kernel = jax.jit(partial(kernels.infinite, net, max_bytes=max_bytes))(x)
    # He weights keep v, and every layer adds it to the tangent kernel: E[φ'φ'] = 1/2.
    v = 2.0 * np.mean(np.asarray(x, float) ** 2, axis=1)
    np.testing.assert_allclose(np.diag(kernel.nngp), v, rtol=1e-6)
    np.testing.assert_allclose(np.diag(kernel.ntk), 8 * v, rtol=1e-6)


def test_data_of_other_dtypes_and_no_data():
    net = NETS["flat"][1]
    x = jnp.asarray(np.random.default_rng(0).integers(256, size=(3, 4)), jnp.uint8)
    exact = kernels.infinite(net, x.astype(jnp.float32))
    found = kernels.infinite(net, x)
    half = kernels.infinite(net, (x // 64).astype(jnp.float16))
    rounded = kernels.infinite(net, (x // 64).astype(jnp.float32)).ntk.astype(jnp.float16)
    assert (found.ntk.dtype, half.ntk.dtype) == ("float32", "float16")
    np.testing.assert_array_equal(found.ntk, exact.ntk)
    np.testing.assert_allclose(half.ntk, rounded, rtol=1e-3)
    assert kernels.infinite(net, x[:0], x).ntk.shape == (0, 3)


def test_the_forms_of_layers_and_kernels_in_print_are_one_line():
    net = nn.lenet()
    kernel = limit.inputs(jnp.ones((2, 3)))
    for shown, part in [(net, "serial of"), (nn.relu(), "relu"), (kernel, "(2, 2) in float32")]:
        assert "\n" not in repr(shown)
        assert part in repr(shown)
        assert len(repr(shown)) < 200


@pytest.mark.slow
def test_gradients_pass_through_tiles():
    in_shape, net = NETS["pooled"]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, *in_shape)), "float32")
    total = lambda x, max_bytes: jnp.sum(kernels.infinite(net, x, max_bytes=max_bytes).ntk ** 2)
    tiled, whole = (jax.jit(jax.grad(partial(total, max_bytes=b)))(x) for b in (1, 2**30))
    np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused():
    net = NETS["flat"][1]
    with unchecked():
        for action, start in [
            (lambda: kernels.infinite(net, jnp.ones(3)), "infinite(x1): got shape (3,)"),
            (lambda: kernels.infinite(net, [[1.0, 2.0]]), "infinite(x1): got a list, expected an"),
            (lambda: kernels.infinite(net, {"a": jnp.ones((2, 4))}), "infinite(x1): got a dict"),
            (
                lambda: kernels.infinite(lambda p, x: x, jnp.ones((2, 4))),
                "infinite(net): got a function, expected an nn.Layer",
            ),
            (
                lambda: kernels.infinite(
                    net, nn.Sequences(jnp.ones((2, 3, 4)), jnp.array([1, 2])), jnp.ones((2, 3, 4))
                ),
                "infinite(x2): got a ",
            ),
            (
                lambda: kernels.infinite(net, jnp.ones((3, 4)), jnp.ones((3, 5))),
                "infinite(x2): got shape (3, 5), expected (N, 4)",
            ),
            (
                lambda: kernels.infinite(net, jnp.ones((3, 4)), max_bytes=0),
                "infinite(max_bytes): got 0",
            ),
        ]:
            with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
                action()
            assert str(error.value).startswith(start)


@pytest.mark.slow
def test_monte_carlo_has_the_standard_errors_of_its_draws(float64):
    net = nn.mlp((5, 2), weight_std=1.3, bias_std=0.2)
    x1, x2 = (jnp.asarray(np.random.default_rng(s).normal(size=(2, 3))) for s in (1, 2))
    key = jax.random.key(4)
    found = jax.jit(partial(kernels.monte_carlo, net, num_samples=5))(key, x1, x2)
    draws = []
    for k in jax.random.split(key, 5):
        params, _ = net.init(k, (3,))
        j1, j2 = (
            np.concatenate(
                [np.asarray(j).reshape(2, 2, -1) for j in jax.tree.leaves(jacobian)], axis=-1
            )
            for jacobian in (jax.jacobian(net.apply)(params, x) for x in (x1, x2))
        )
        y1, y2 = net.apply(params, x1), net.apply(params, x2)
        draws.append((np.asarray(y1 @ y2.T) / 2, np.einsum("iap,jap->ij", j1, j2) / 2))
    for (mean, error), sample in zip(
        [(found.nngp, found.nngp_error), (found.ntk, found.ntk_error)],
        (np.stack(d) for d in zip(*draws, strict=True)),
        strict=True,
    ):
        np.testing.assert_allclose(mean, sample.mean(0), rtol=1e-12)
        np.testing.assert_allclose(error, sample.std(0, ddof=1) / np.sqrt(5), rtol=1e-10)


def test_monte_carlo_refuses_what_has_no_error():
    x = jnp.ones((2, 4, 3))
    for net, samples, start in [
        (nn.dense(2), 2, "monte_carlo(net): got outputs of shape (2, 4, 2)"),
        (nn.serial(nn.flatten(), nn.dense(2)), 1, "monte_carlo(num_samples): got 1"),
    ]:
        with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
            kernels.monte_carlo(net, jax.random.key(0), x, num_samples=samples)
        assert str(error.value).startswith(start)

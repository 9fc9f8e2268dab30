from functools import partial

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import check_derivatives, close, drawn, message_of, normal
from oracles import unchecked

from jaxnn import nn


def renamed(params):
    return {"scale": params["scale"], "bias": params["shift"]}


def off_center(seed, *shape, dtype="float32"):
    return 2.5 * normal(seed, *shape, dtype=dtype) + 3.0


@pytest.mark.parametrize("shape", [(7, 4), (3, 5, 2, 4)])
def test_batch_norm_is_flax(shape, dtype, standard_promotion):
    layer, theirs = nn.batch_norm(epsilon=1e-3), flax.BatchNorm(epsilon=1e-3)
    params, out_shape = drawn(layer, shape[1:], dtype)
    assert out_shape == shape[1:]
    x = off_center(3, *shape, dtype=dtype)
    zeros = {"mean": jnp.zeros(4, dtype), "var": jnp.ones(4, dtype)}
    variables = {"params": renamed(params), "batch_stats": zeros}
    own, moved = theirs.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )  # fmt: skip
    y, stats = nn.apply_with_stats(layer, params, x)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert y.dtype == dtype
    close(y, own, tolerance)
    close(layer.apply(params, x), own, tolerance)
    # flax's moving average is of the variance that divides by m, not m - 1.
    m = x.size // 4
    biased = {"mean": stats["mean"], "variance": (m - 1) / m * stats["variance"]}
    start = {"mean": zeros["mean"], "variance": zeros["var"]}
    average = nn.moving_average(start, biased, 0.99)
    close(average["mean"], moved["batch_stats"]["mean"], tolerance)
    close(average["variance"], moved["batch_stats"]["var"], tolerance)
    variables["batch_stats"] = {"mean": stats["mean"], "var": stats["variance"]}
    population = theirs.apply(variables, x, use_running_average=True)
    close(layer.apply(params, x, stats=stats), population, tolerance)


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 6)])
def test_layer_norm_is_flax(shape, dtype, standard_promotion):
    layer = nn.layer_norm(epsilon=1e-2)
    params, out_shape = drawn(layer, shape[1:], dtype)
    assert out_shape == shape[1:]
    x = off_center(3, *shape, dtype=dtype)
    y = layer.apply(params, x)
    assert y.dtype == dtype
    theirs = flax.LayerNorm(epsilon=1e-2).apply({"params": renamed(params)}, x)
    close(y, theirs, 1e-5 if dtype == "float32" else 1e-12)


def test_without_scale_and_shift():
    x = off_center(0, 6, 3)
    for layer, axis in ((nn.batch_norm, 0), (nn.layer_norm, 1)):
        params, _ = layer(epsilon=0.0, scale=False, shift=False).init(jax.random.key(0), (3,))
        assert params == {}
        y = layer(epsilon=0.0, scale=False, shift=False).apply(params, x)
        close(np.mean(y, axis), np.zeros(6 - 3 * (1 - axis)))
        close(np.std(y, axis), np.ones(6 - 3 * (1 - axis)))
        assert set(layer(shift=False).init(jax.random.key(0), (3,))[0]) == {"scale"}
    # Without parameters there still are statistics.
    assert set(nn.apply_with_stats(nn.batch_norm(scale=False, shift=False), {}, x)[1]) == {
        "mean",
        "variance",
    }


def test_a_large_mean_does_not_cancel():
    x = 1e4 + normal(0, 500, 2)
    y = nn.batch_norm().apply({}, x)
    wide = np.asarray(x, float)
    close(y, (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5), 1e-3)


def test_half_precision_is_normalized_in_single():
    x = off_center(0, 64, 3).astype(jnp.bfloat16)
    for layer in (nn.batch_norm(scale=False, shift=False), nn.layer_norm(scale=False, shift=False)):
        y = layer.apply({}, x)
        assert y.dtype == jnp.bfloat16
        exact = layer.apply({}, x.astype("float32"))
        np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def nested():
    block = nn.residual(nn.serial(nn.dense(3), nn.batch_norm(), nn.tanh()))
    side = nn.parallel(nn.batch_norm(), nn.serial(), nn.prelu(), combine="concatenate")
    return nn.serial(nn.dense(3), block, nn.dropout(0.5), side, nn.flatten(), nn.dense(2))


def test_calibration_of_nested_networks(float64):
    net = nested()
    params, _ = drawn(net, (2, 4), float64)
    x = off_center(7, 12, 2, 4, dtype=float64)

    def statistics(batch):
        """Of both batch norms, (mean, variance), by hand."""
        affine = lambda p, h: h @ np.asarray(p["W"]) + np.asarray(p["b"])
        h = affine(params[0], np.asarray(batch))
        ((first, second, _), _) = params[1]
        inside = affine(first, h)
        moments = inside.mean((0, 1)), inside.var((0, 1))
        normalized = (inside - moments[0]) / np.sqrt(moments[1] + 1e-5)
        h = h + np.tanh(normalized * np.asarray(second["scale"]) + np.asarray(second["shift"]))
        return np.array([moments, (h.mean((0, 1)), h.var((0, 1)))])

    def both(stats):
        assert stats[0] is None
        assert stats[1][0][0] is None
        assert stats[1][1] == ()
        found = stats[1][0][1], stats[3][0]
        return np.array([[s["mean"], s["variance"]] for s in found])

    def exact(batches):
        result = np.mean([statistics(b) for b in batches], axis=0)
        m = len(batches[0]) * 2
        result[:, 1] *= m / (m - 1)
        return result

    stats = jax.jit(lambda params, x: nn.calibrate(net, params, x))(params, x)
    close(both(stats), exact([x]), 1e-12)
    batched = nn.calibrate(net, params, x, batch_size=5)
    close(both(batched), exact([x[:5], x[5:10]]), 1e-12)
    assert np.max(np.abs(both(batched) - both(stats))) > 1e-2
    # An ordinary f(params, x): every example on its own, whatever the batch.
    f = jax.jit(partial(net.apply, stats=stats))
    close(f(params, x)[3:5], f(params, x[3:5]), 1e-12)
    assert np.max(np.abs(net.apply(params, x)[3:5] - net.apply(params, x[3:5]))) > 1e-2


def test_statistics_in_the_training_pass():
    net = nn.serial(nn.dropout(0.5), nn.batch_norm())
    params = ((), {})
    x, key = off_center(0, 8, 3), jax.random.key(0)
    y, stats = jax.jit(lambda x, key: nn.apply_with_stats(net, params, x, key=key))(x, key)
    close(y, net.apply(params, x, key=key))
    dropped = nn.serial(nn.dropout(0.5), nn.identity()).apply(((), ()), x, key=key)
    close(stats[1]["variance"], np.var(dropped, axis=0, ddof=1))


def test_derivatives_are_finite_differences(float64):
    net = nn.serial(nested(), nn.layer_norm(), nn.dense(3))
    params, _ = drawn(net, (2, 4), float64)
    x = normal(17, 5, 2, 4, dtype=float64)
    check_derivatives(net.apply, params, x)


def test_refusals():
    x = jnp.ones((1, 3))
    with unchecked():
        for action, start in [
            (lambda: nn.batch_norm(epsilon=-1.0), "batch_norm(epsilon): got -1.0"),
            (lambda: nn.layer_norm(epsilon=-1.0), "layer_norm(epsilon): got -1.0"),
            (lambda: nn.batch_norm().apply({}, x[0]), "batch_norm.apply: x: got shape (3,)"),
            (lambda: nn.layer_norm().apply({}, x[0]), "layer_norm.apply: x: got shape (3,)"),
            (lambda: nn.batch_norm().apply({}, x, stats={"mean": x}), "batch_norm.apply: stats: g"),
            (
                lambda: nn.batch_norm().apply({}, x, stats=(1, 2)),
                "batch_norm.apply: stats: got tup",
            ),
            (lambda: nn.calibrate(nn.batch_norm(), {}, x), "apply_with_stats: the batch: got 1"),
            (
                lambda: nn.calibrate(nn.batch_norm(), {}, x, batch_size=2),
                "calibrate(batch_size): g",
            ),
            (
                lambda: nn.calibrate(nn.batch_norm(), {}, x, batch_size=0),
                "calibrate(batch_size): g",
            ),
            (lambda: nn.moving_average({}, {}, 1.5), "moving_average(decay): got 1.5"),
        ]:
            assert message_of(action).startswith(start)
    kernel = nn.limit.inputs(x, x)
    for layer in (nn.batch_norm(), nn.layer_norm()):
        assert message_of(lambda n=layer: n.kernel(kernel)).startswith(f"{layer.name}.kernel: ")

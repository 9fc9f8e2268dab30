import itertools

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import check_derivatives, close, message_of, normal
from oracles import unchecked

from jaxnn import nn

POOLS = {"max": nn.max_pool, "sum": nn.sum_pool, "average": nn.avg_pool}


def loop(kind, x, out_shape, window, strides, padding):
    """Every window gathered entry by entry; those of the border that do not exist are left out."""
    x = np.asarray(x, float)
    spatial = x.shape[1:-1]
    y = np.zeros((len(x), *out_shape))
    reduce = {"max": np.max, "sum": np.sum, "average": np.mean}[kind]
    for place in itertools.product(*map(range, out_shape[:-1])):
        entries = []
        for offset in itertools.product(*map(range, window)):
            at = []
            for i, a, n, k, s in zip(place, offset, spatial, window, strides, strict=True):
                before = {"VALID": 0, "CIRCULAR": (k - 1) // 2}.get(
                    padding, max((-(-n // s) - 1) * s + k - n, 0) // 2
                )
                at.append(i * s + a - before)
            if padding == "CIRCULAR":
                at = [i % n for i, n in zip(at, spatial, strict=True)]
            if all(0 <= i < n for i, n in zip(at, spatial, strict=True)):
                entries.append(x[(slice(None), *at)])
        y[(slice(None), *place)] = reduce(np.stack(entries), axis=0)
    return y


@pytest.mark.parametrize(
    ("spatial", "window", "strides", "padding"),
    [
        ((7,), (3,), (2,), "SAME"),
        ((6, 5), (2, 2), None, "VALID"),
        ((5, 6), (3, 2), (2, 1), "SAME"),
        ((5, 4), (2, 3), (1, 2), "CIRCULAR"),
        ((3, 4, 5), (2, 2, 3), None, "SAME"),
    ],
)
def test_pools_equal_a_loop_and_flax(spatial, window, strides, padding, dtype):
    x = normal(0, 2, *spatial, 3, dtype=dtype) - jnp.asarray(
        2.0, dtype
    )  # a zero would be a maximum
    layers = {kind: pool(window, strides=strides, padding=padding) for kind, pool in POOLS.items()}
    strides = window if strides is None else strides
    ys = jax.jit(lambda x: {kind: layer.apply((), x) for kind, layer in layers.items()})(x)
    tolerance = 1e-5 if dtype == "float32" else 1e-14
    for kind, y in ys.items():
        params, out_shape = layers[kind].init(jax.random.key(0), (*spatial, 3))
        assert (params, y.shape[1:], y.dtype) == ((), out_shape, dtype)
        close(y, loop(kind, x, out_shape, window, strides, padding), tolerance)
    if padding != "CIRCULAR":
        with jax.numpy_dtype_promotion("standard"):
            close(ys["max"], flax.max_pool(x, window, strides, padding), tolerance)
            theirs = flax.avg_pool(x, window, strides, padding, count_include_pad=False)
        close(ys["average"], theirs, tolerance)


def test_average_pool_may_count_the_border(standard_promotion):
    x = normal(0, 2, 5, 6, 3)
    layer = nn.avg_pool((3, 2), strides=(2, 1), padding="SAME", count_padding=True)
    close(layer.apply((), x), flax.avg_pool(x, (3, 2), (2, 1), "SAME"))


def test_global_pools(dtype):
    x = normal(0, 2, 3, 5, 4, dtype=dtype)
    wide = np.asarray(x, float)
    tolerance = 1e-5 if dtype == "float32" else 1e-14
    for layer, exact in [
        (nn.global_avg_pool(), wide.mean((1, 2))),
        (nn.global_sum_pool(), wide.sum((1, 2))),
        (nn.global_max_pool(), wide.max((1, 2))),
    ]:
        assert layer.init(jax.random.key(0), (3, 5, 4)) == ((), (4,))
        y = layer.apply((), x)
        assert y.dtype == dtype
        close(y, exact, tolerance)


def test_derivatives_are_finite_differences(float64):
    pools = [
        *(pool((2, 3), strides=(1, 2), padding=p) for pool in POOLS.values() for p in ("SAME",)),
        nn.max_pool((2, 2), padding="CIRCULAR"),
    ]
    net = nn.parallel(
        *(nn.serial(p, nn.tanh(), nn.flatten()) for p in pools), combine="concatenate"
    )
    params, _ = net.init(jax.random.key(0), (4, 5, 2))
    x = normal(0, 2, 4, 5, 2, dtype=float64)
    check_derivatives(net.apply, params, x)
    # Second derivatives: a Hessian-vector product through the position of the maximum.
    layer, v = nn.max_pool((2, 2)), normal(1, 2, 4, 5, 2, dtype=float64)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(layer.apply((), x) ** 3)))
    product = jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,))[1])(x, v)
    close(product, (gradient(x + 1e-6 * v) - gradient(x - 1e-6 * v)) / 2e-6, 1e-7)


def test_refusals():
    key = jax.random.key(0)
    with unchecked():
        for action, start in [
            (lambda: nn.max_pool(2), "max_pool(window): got 2, expected a tuple of integers ≥ 1"),
            (lambda: nn.sum_pool((2, 2), strides=(1,)), "sum_pool(strides): got (1,)"),
            (lambda: nn.avg_pool((2,), padding="FULL"), "avg_pool(padding): got 'FULL'"),
            (lambda: nn.max_pool((2, 2)).init(key, (4, 1)), "max_pool.init: in_shape: got (4, 1)"),
            (lambda: nn.max_pool((3,)).init(key, (2, 1)), "max_pool.init: the spatial axes of x"),
            (lambda: nn.max_pool((2,)).apply((), jnp.ones((4, 1))), "max_pool.apply: x: got shape"),
            (lambda: nn.global_sum_pool().apply((), jnp.ones((4, 1))), "global_sum_pool.apply: x:"),
        ]:
            assert message_of(action).startswith(start)
    kernel = nn.limit.inputs(jnp.ones((2, 3)), jnp.ones((2, 3)))
    for layer in (*(pool((2,)) for pool in POOLS.values()), nn.global_max_pool()):
        assert message_of(lambda n=layer: n.kernel(kernel)).startswith(f"{layer.name}.kernel: ")

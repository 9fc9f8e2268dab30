"""Kernels of half precision: every sum is accumulated in float32."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import normal

from jaxnn import kernels
from jaxnn.kernels.output_axes import Outputs

HALVES = ("float16", "bfloat16")


def f(p, x):
    """A matrix with a channel, a bias at every output, and a scale that is formed."""
    norms = jnp.sqrt((p["V"] ** 2).sum(0, keepdims=True))
    h = jnp.tanh(x @ (p["V"] / jnp.broadcast_to(norms, p["V"].shape)))
    return h @ p["W"] * jnp.broadcast_to(p["s"], (len(x), p["s"].size))


def case(scale):
    params = {"V": normal(1, 9, 12), "W": normal(2, 12, 300), "s": scale * (1 + normal(3, 300))}
    return params, normal(4, 3, 9)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("float16", "mean"),
        *(pytest.param(n, o, marks=pytest.mark.slow) for n in HALVES for o in get_args(Outputs)),
    ],
)
def test_methods_agree_with_single_precision(name, outputs):
    """The sum of 300 diagonal entries is beyond float16, their mean is not."""
    params, x = jax.tree.map(lambda a: a.astype(name), case(20.0 if outputs == "mean" else 3.0))
    metric = {"V": jnp.asarray(0.5), "W": jnp.asarray(1.5), "s": jnp.asarray(2.0)}
    single = jax.tree.map(lambda a: a.astype("float32"), (params, x))
    kernel = lambda p, x, method: kernels.ntk(
        f, p, x, outputs=outputs, metric=metric, method=method
    )
    expected = np.asarray(kernel(*single, "structured"))
    assert outputs != "mean" or np.diag(expected).max() < 65504 < 300 * np.diag(expected).min()
    for method in ("structured", "jacobian", "vector_products"):
        found = kernel(params, x, method)
        assert found.dtype == jnp.dtype(name)
        error = np.abs(np.asarray(found, np.float32) - expected).max()
        assert error < 4 * float(jnp.finfo(name).eps) * np.abs(expected).max()

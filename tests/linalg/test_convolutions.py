"""Convolutions with reordered axes against the same ones as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn import linalg
from jaxnn.linalg.convolutions import _has_other_order, reordered

CPU = jax.default_backend() == "cpu"


def loss(layout, groups, strides, dilation):
    def objective(w, x):
        y = lax.conv_general_dilated(
            x, w, strides, "SAME", None, dilation, layout, feature_group_count=groups
        )
        return jnp.mean(jnp.sum(jnp.sin(y), axis=(1, 2, 3)))

    return objective


@pytest.mark.parametrize(
    ("layout", "groups", "strides", "dilation"),
    [
        (("NHWC", "HWIO", "NHWC"), 1, (1, 1), (1, 1)),
        (("NHWC", "HWIO", "NCHW"), 1, (2, 1), (1, 2)),
        (("NHWC", "HWIO", "NHWC"), 2, (1, 1), (1, 1)),
    ],
)
def test_second_derivatives_in_loops(layout, groups, strides, dilation):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 6, 5, 4)), jnp.float32)
    w, v = jnp.asarray(rng.normal(size=(2, 3, 2, 4 // groups, 6)), jnp.float32)
    objective = loss(layout, groups, strides, dilation)
    whole = linalg.hessian(objective, w, x)
    batched = linalg.hessian(jax.jit(objective), w, x, batch_size=2)
    found, exact = jax.jit(lambda A, B, v: (A @ v, B @ v))(batched, whole, v)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    program = jax.make_jaxpr(lambda v: batched @ v)(v).jaxpr
    if groups > 1:
        return  # these have no faster order
    assert _has_other_order(jax.make_jaxpr(lambda v: whole @ v)(v).jaxpr)
    body = next(eqn for eqn in program.eqns if eqn.primitive.name == "scan")
    assert not (CPU and _has_other_order(body.params["jaxpr"].jaxpr))


def test_calls_and_checkpoints_are_kept():
    w, x = jnp.ones((2, 2, 1, 3)), jnp.arange(18.0).reshape(2, 3, 3, 1)
    f = loss(("NHWC", "HWIO", "NHWC"), 1, (1, 1), (1, 1))
    slope = jax.grad(jax.checkpoint(jax.jit(f)))
    found = jax.jit(lambda w: reordered(lambda w: slope(w, x))(w))(w)
    np.testing.assert_allclose(found, jax.grad(f)(w, x), rtol=1e-5)
    plain = reordered(lambda w: {"twice": 2 * w, "none": None})(w)
    np.testing.assert_array_equal(plain["twice"], 2 * w)

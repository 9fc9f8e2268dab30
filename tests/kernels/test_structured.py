"""The structured kernel against the contraction of jax.jacrev, on a zoo of functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from zoo import flat, jacobian_kernel

from jaxnn import kernels

QUICK = {
    "mlp", "scalar output", "pytree output", "scaled", "transposed", "sliced", "concatenated",
    "repeated rows", "weight norm, factors joined", "frozen plus low rank",
    "tied, normalized once", "tied autoencoder", "overlapping slices", "disjoint slices",
    "parameters returned", "no parameter used", "prelu", "remat", "custom_jvp product",
    "stacked layers", "one layer repeated", "vmap over heads", "weights per position",
    "recurrence", "dilated, padded", "grouped", "bias of all channels", "embedding, out of range",
    "tied embedding",
}  # fmt: skip
"""One function of every kind; the others take as long again three times."""

NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in zoo.FUNCTIONS]


def test_the_quick_functions_exist():
    assert set(zoo.FUNCTIONS) >= QUICK


@pytest.mark.parametrize("name", NAMES)
def test_full_kernel_is_the_contraction_of_the_jacobian(name):
    with jax.enable_x64(True):
        f, params, x1, x2 = zoo.case(name)
        expected = jax.jit(jacobian_kernel, static_argnums=0)(f, params, x1, x2)
        found = flat(kernels.ntk(f, params, x1, x2, outputs="full", method="structured"))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * scale)
        single = jax.tree.map(
            lambda a: a.astype(str(a.dtype).replace("64", "32")), (params, x1, x2)
        )
    found = flat(kernels.ntk(f, *single, outputs="full", method="structured"))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_the_program_of_a_convolution_does_not_grow_with_its_window():
    def equations(window):
        f, w = zoo.convolution(), jnp.ones((window, window, 2, 3))
        found = lambda w, x: kernels.ntk(f, w, x, method="structured")
        return str(jax.make_jaxpr(found)(w, jnp.ones((2, 5, 5, 2)))).count(" = ")

    assert equations(5) == equations(2)

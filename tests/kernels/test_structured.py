"""The structured kernel against the contraction of jax.jacrev, on a zoo of functions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxnn import kernels


def jacobian_kernel(f, params, x1, x2):
    """Σ_θ ∂f_a(x)/∂θ ∂f_b(x')/∂θ from the Jacobian of the whole batch, (N1, N2, O, O)."""

    def rows(x):
        def vector(p):
            return jnp.concatenate(
                [y.reshape(x.shape[0], -1) for y in jax.tree.leaves(f(p, x))], axis=1
            )

        leaves = jax.tree.leaves(jax.jacrev(vector)(params))
        return jnp.concatenate([j.reshape(*j.shape[:2], -1) for j in leaves], axis=2)

    return jnp.einsum("nax,mbx->nmab", rows(x1), rows(x2))


def flat(kernel):
    """A full kernel, of a pytree of outputs too, as (N1, N2, O, O)."""
    if isinstance(kernel, dict):
        rows = [jnp.concatenate([flat(k) for k in row.values()], axis=3) for row in kernel.values()]
        return jnp.concatenate(rows, axis=2)
    n, m, *out = kernel.shape
    first = math.prod(out[: len(out) // 2])
    return kernel.reshape(n, m, first, -1)


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

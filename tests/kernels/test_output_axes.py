"""Averages over some axes of the outputs, diagonals and all pairs of others, and paired rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import jacobian_kernel, normal

from jaxnn import kernels
from jaxnn.kernels import OutputAxes


def f(p, x):
    """Outputs (4, 2, 3) from a look-up, a matrix with a channel, a convolution and a scale."""
    norms = jnp.sqrt((p["V"] ** 2).sum(0, keepdims=True))
    h = jnp.tanh(x @ (p["V"] / jnp.broadcast_to(norms, p["V"].shape)))
    h = h + p["table"][jnp.argmax(x, axis=1)]
    y = jax.lax.conv_general_dilated(
        h.reshape(-1, 4, 3), p["w"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )
    return jnp.tanh(y).reshape(-1, 4, 2, 3) * jnp.broadcast_to(p["s"], (len(x), 4, 2, 3))


def case():
    p = {"V": normal(1, 5, 12), "table": normal(2, 5, 12), "w": normal(3, 3, 3, 6)}
    return {**p, "s": normal(4, 3)}, normal(5, 3, 5), normal(6, 2, 5)


# Letters of (first outputs, second outputs, result), in a kernel (n, m, *abc, *def) of (4, 2, 3).
PATTERNS = {
    OutputAxes(mean=(-1,)): ("abc", "dec", "abde"),
    OutputAxes(mean=(2,), diagonal=(1,)): ("abc", "dbc", "abd"),
    OutputAxes(diagonal=(0, 2)): ("abc", "aec", "abce"),
    OutputAxes(mean=(1, 0), diagonal=(2,)): ("abc", "abc", "c"),
    OutputAxes(): ("abc", "def", "abcdef"),
}


def expected(params, x1, x2, axes):
    full = np.asarray(jax.jit(jacobian_kernel, static_argnums=0)(f, params, x1, x2))
    full = full.reshape(len(x1), len(x2), 4, 2, 3, 4, 2, 3)
    first, second, result = PATTERNS[axes]
    averaged = np.prod([(4, 2, 3)[axis] for axis in axes.mean])
    return np.einsum(f"nm{first}{second}->nm{result}", full) / averaged


QUICK = [(OutputAxes(mean=(2,), diagonal=(1,)), "structured")]
SLOW = [
    pytest.param(axes, method, marks=pytest.mark.slow)
    for axes in PATTERNS
    for method in ("structured", "jacobian", "vector_products")
]


@pytest.mark.parametrize(("axes", "method"), [*QUICK, *SLOW])
def test_axes_of_the_full_kernel(axes, method, float64):
    params, x1, x2 = case()
    found = kernels.ntk(f, params, x1, x2, outputs=axes, method=method)
    np.testing.assert_allclose(found, expected(params, x1, x2, axes), rtol=1e-11, atol=1e-12)
    if axes == OutputAxes(mean=(-1,)):
        tiled = kernels.ntk(f, params, x1, outputs=axes, method=method, max_bytes=30_000)
        wanted = expected(params, x1, x1, axes)
        np.testing.assert_allclose(tiled, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("outputs", "letters"),
    [
        ("mean", "nnaa->n"),
        pytest.param("full", "nnab->nab", marks=pytest.mark.slow),
        pytest.param("diagonal", "nnaa->na", marks=pytest.mark.slow),
    ],
)
def test_paired_rows_are_the_diagonal_of_the_batch(outputs, letters, float64):
    params, x1, _ = case()
    x2 = normal(7, 3, 5)
    kernel = lambda *x, **options: kernels.ntk(f, params, *x, outputs=outputs, **options)
    full = np.asarray(jax.jit(jacobian_kernel, static_argnums=0)(f, params, x1, x2))
    wanted = np.einsum(letters, full) / (24 if outputs == "mean" else 1)
    found = kernel(x1, x2, paired=True)
    assert found.shape[0] == 3
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-11, atol=1e-12)
    alone = kernel(x1, paired=True, max_bytes=1)
    whole = kernel(x1)
    diagonal = np.stack([whole[i, i] for i in range(3)])
    np.testing.assert_allclose(alone, diagonal, rtol=1e-11, atol=1e-12)


def test_averaged_channels_cost_no_pairs_of_channels():
    p = {"W": jnp.zeros((30, 16 * 100))}
    g = lambda p, x: (x @ p["W"]).reshape(-1, 16, 100)
    x = jnp.zeros((8, 30))
    full = kernels.plan(g, p, x, outputs="full").rows[0].flops
    averaged = kernels.plan(g, p, x, outputs=OutputAxes(mean=(1,))).rows[0].flops
    assert averaged < full / 4


def test_bad_axes_are_named():
    params, x1, x2 = case()
    for axes in (OutputAxes(mean=(3,)), OutputAxes(mean=(0,), diagonal=(-3,))):
        with pytest.raises(ValueError, match=r"outputs: got OutputAxes.*axes of the outputs"):
            kernels.ntk(f, params, x1, outputs=axes)
    both = lambda p, x: (f(p, x), f(p, x))
    with pytest.raises(ValueError, match=r"for outputs of 2 arrays"):
        kernels.ntk(both, params, x1, outputs=OutputAxes())
    with pytest.raises(ValueError, match=r"x2: got 2 examples for 3 of x1"):
        kernels.ntk(f, params, x1, x2, paired=True)
    with pytest.raises(ValueError, match=r"coupled: got True"):
        kernels.ntk(f, params, x1, coupled=True, paired=True)

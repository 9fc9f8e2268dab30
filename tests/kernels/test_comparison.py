"""Comparisons of kernels at any scale, of any dtype, and where they are zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import kernels


def factors(seed, n=6, rank=3):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, rank)) @ np.diag([2.0, 1.0, 0.1]) for _ in range(2)]


def cosine(a, b):
    return np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


@jax.jit
def compared(x, y):
    return (
        kernels.alignment(x, y),
        kernels.centered_alignment(x, y),
        kernels.effective_rank(x),
        kernels.relative_change(jnp.stack([x, jnp.zeros_like(x), x])),
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1.0, 1e25, 1e30])
def test_comparisons_do_not_depend_on_units(scale):
    a, b = (f @ f.T for f in factors(0))
    center = np.eye(6) - 1 / 6
    found = compared(jnp.asarray(scale * a, "float32"), jnp.asarray(b, "float32") / scale)
    np.testing.assert_allclose(found[0], cosine(a, b), rtol=1e-5)
    np.testing.assert_allclose(
        found[1], cosine(center @ a @ center, center @ b @ center), rtol=1e-4
    )
    p = np.linalg.eigvalsh(a)[3:] / np.trace(a)
    np.testing.assert_allclose(found[2], np.exp(-p @ np.log(p)), rtol=1e-4)
    np.testing.assert_allclose(found[3], [0.0, 1.0, 0.0], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_solutions_do_not_depend_on_units(scale):
    a = factors(0)[0] @ factors(0)[0].T + np.eye(6)
    found = jax.jit(kernels.solve)(jnp.asarray(scale * a, "float32"), jnp.full(6, scale))
    np.testing.assert_allclose(found.x, np.linalg.solve(a, np.ones(6)), rtol=1e-4)
    assert found.residual < 1e-5


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "bfloat16", "float16"])
def test_integers_and_half_precision_are_accumulated_as_floats(dtype):
    rng = np.random.default_rng(1)
    largest = 2 if dtype == "bool" else 200
    a, b = (rng.integers(0, largest, size=(40, 40)) for _ in range(2))
    a, b = (k + k.T if dtype == "int32" else np.maximum(k, k.T) for k in (a, b))
    got = compared(*(jnp.asarray(k, dtype) for k in (a, b)))[0]
    np.testing.assert_allclose(got.astype("float32"), cosine(1.0 * a, 1.0 * b), rtol=8e-3)
    gram = rng.integers(0, 2, size=(40, 3))
    gram = gram @ gram.T
    gram = gram > 0 if dtype == "bool" else gram
    values = np.maximum(np.linalg.eigvalsh(1.0 * gram), 0)
    p = values[values > 1e-9] / values.sum()
    got = compared(jnp.asarray(gram, dtype), jnp.asarray(gram, dtype))[2]
    np.testing.assert_allclose(got.astype("float32"), np.exp(-p @ np.log(p)), rtol=8e-3)
    assert got.dtype == (dtype if "float" in dtype else "float32")


def test_kernels_of_nothing():
    zero, one = jnp.zeros((3, 3)), jnp.full((3, 3), 0.1)
    other = jnp.asarray(factors(2)[0][:3] @ factors(2)[0][:3].T, "float32")
    assert kernels.effective_rank(zero) == 0.0
    assert kernels.alignment(zero, other) == 0.0
    # Constant, and so zero once centered, but for rounding.
    assert kernels.centered_alignment(one, other) == 0.0
    changes = kernels.relative_change(jnp.stack([zero, zero, one]))
    np.testing.assert_array_equal(changes, [0.0, 0.0, np.inf])
    for bad in (kernels.alignment(other.at[0, 0].set(jnp.nan), one), kernels.effective_rank(
        other.at[0, 0].set(jnp.nan))):  # fmt: skip
        assert jnp.isnan(bad)
    assert kernels.alignment(other, 3.0 * other) <= 1.0


def test_derivatives_at_equal_and_zero_eigenvalues(float64):
    # Two equal eigenvalues and a rank of 3 of 6, which the path keeps; the first change is 0.
    q, move = np.linalg.qr(factors(3)[0])[0] * [1.0, 1.0, 0.4], factors(3)[1]

    def size(s):
        factor = jnp.asarray(q) + s * jnp.asarray(move)
        k = factor @ factor.T
        drift = kernels.relative_change(jnp.stack([k, k @ k]))
        return kernels.effective_rank(k) + kernels.alignment(k, jnp.eye(6)) + jnp.sum(drift)

    run = jax.jit(jax.value_and_grad(size))
    difference = (run(1e-6)[0] - run(-1e-6)[0]) / 2e-6
    np.testing.assert_allclose(run(0.0)[1], difference, rtol=1e-6)

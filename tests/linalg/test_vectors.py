"""What vectors operators take, in which precision forms of them are added up, and names."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import linalg


def test_integers_are_promoted_and_the_form_is_one_line():
    A = linalg.from_dense(jnp.diag(jnp.array([1.0, 2.0, 3.0])), structure="symmetric")
    v = jnp.array([1, -1, 2])
    np.testing.assert_array_equal(A @ v, [1.0, -2.0, 6.0])
    assert A.quadratic_form(v == 2) == 3.0
    start = linalg.lanczos(A, v, 2).basis[0]
    np.testing.assert_allclose(start, np.array([1, -1, 2]) / 6**0.5, rtol=1e-6)
    assert repr(A) == "LinearOperator(3 × 3, symmetric, float32)"
    assert "\n" not in repr(jax.jit(lambda A: A)(A))


def test_forms_of_half_precision_are_accumulated_in_float32():
    n = 3000
    A = linalg.from_dense(jnp.ones((1, n), "bfloat16"))
    v = jnp.ones(n, "bfloat16")
    assert (A.T @ A).quadratic_form(v).dtype == jnp.float32
    identity = linalg.LinearOperator(lambda v: v, lambda v: v, v, v, structure="symmetric")
    assert identity.quadratic_form(v) == n
    found = linalg.trace(identity, jax.random.key(0), probes=2)
    assert (found.value, found.standard_error) == (n, 0)


def test_standard_errors_of_large_numbers():
    A = linalg.from_dense(jnp.array([[1.0, 2.0], [2.0, 3.0]]), structure="symmetric")
    found = [linalg.trace(c * A, jax.random.key(0), probes=7) for c in (1.0, 1e30)]
    np.testing.assert_allclose(found[1].value, 1e30 * found[0].value, rtol=1e-5)
    np.testing.assert_allclose(found[1].standard_error, 1e30 * found[0].standard_error, rtol=1e-5)
    assert found[0].standard_error > 0

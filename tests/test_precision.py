"""The one rule for integer data and the one for half precision, in every mode of promotion."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxnn import precision

INTEGERS = [np.bool_, np.uint8, np.int8, np.int32]
HALVES = [np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("integer", INTEGERS)
def test_integers_become_the_default_float(integer, dtype):
    x = np.array([0, 1, 1]).astype(integer)
    assert precision.inexact_dtype(x) == precision.wide_dtype(x) == dtype
    for y in (precision.inexact(x), precision.wide(x), *precision.common(x, x)):
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, [0.0, 1.0, 1.0])


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("inexact", [*HALVES, np.float32, np.complex64])
def test_integers_take_the_dtype_of_the_numbers_that_they_meet(integer, inexact, dtype):
    x, y = np.ones(3, integer), np.full(3, 1.5, inexact)
    assert precision.inexact(x, y).dtype == precision.inexact(y, x).dtype == inexact
    assert all(a.dtype == inexact for a in precision.common(x, y))
    # Neither integers nor Python numbers decide.
    assert precision.inexact_dtype(jnp.asarray(y), 0.5, 3, True) == inexact


def test_numbers_with_fractions_keep_their_dtype_and_meet_in_the_widest(dtype):
    for own in (*HALVES, np.float32, np.complex64):
        assert precision.inexact(np.ones(2, own), np.ones(2, dtype)).dtype == own
    assert precision.inexact_dtype(np.ones(1, np.float16), np.ones(1, dtype)) == dtype
    assert precision.inexact_dtype(*(np.ones(1, d) for d in HALVES)) == np.float32
    assert precision.inexact_dtype(np.ones(1, dtype), np.ones(1, np.complex64)) == (
        np.complex64 if dtype == np.float32 else np.complex128
    )


@pytest.mark.parametrize("half", [*HALVES, ml_dtypes.float8_e4m3fn])
def test_halves_are_accumulated_in_float32_and_cast_at_the_end(half, dtype):
    x = jnp.ones((5, 1000), half)
    assert precision.wide(x).dtype == precision.wide_dtype(x, np.int32(1)) == np.float32
    mean, order = precision.accumulated(lambda x: (x.mean(1), x.argsort(1)), x)
    assert mean.dtype == half
    np.testing.assert_array_equal(mean.astype(float), 1.0)
    assert jnp.issubdtype(order.dtype, jnp.integer)


def test_what_is_accumulated_keeps_wider_dtypes(dtype):
    for own in (np.float32, dtype, np.complex64):
        x = jnp.ones(3, own)
        assert precision.wide(x).dtype == own
        assert precision.accumulated(jnp.sum, x).dtype == own
    # The absolute values of complex numbers are real.
    z = jnp.array([3 + 4j], np.complex64)
    size = precision.accumulated(jnp.abs, z)
    assert size.dtype == np.float32
    assert size == 5.0
    assert precision.accumulated(jnp.sum, jnp.full(300, 200, jnp.uint8)) == 60000.0


@pytest.mark.parametrize("transformation", [jax.jit, jax.grad, jax.vmap])
def test_transformations(transformation):
    def mean(x):
        return precision.accumulated(jnp.mean, x)

    x = jnp.arange(6, dtype=jnp.bfloat16)
    got = transformation(mean)(x)
    expected = {jax.jit: 2.5, jax.grad: 1 / 6, jax.vmap: x}[transformation]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.broadcast_to(jnp.asarray(expected, x.dtype), got.shape))

"""Complex numbers inside networks of real parameters and outputs."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import jacobian_kernel, normal, together

from jaxnn import kernels
from jaxnn.kernels.empirical import Method


def fft(x, axis=-1):
    """The discrete Fourier transform as a product: FFTs under vmap fail in jaxlib 0.12.0.1."""
    if axis != -1:
        return jnp.fft.fft(x, axis=axis)
    numbers = np.arange(x.shape[-1])
    roots = np.exp(-2j * np.pi * np.outer(numbers, numbers) / len(numbers))
    return complexes(x) @ complexes(jnp.asarray(roots, complexes(x).dtype))


def w(seed=1, *shape):
    return normal(seed, *(shape or (4, 3)))


def squared(y):
    return y.real**2 + y.imag**2


def parts(y):
    return jnp.concatenate([y.real, y.imag], axis=-1)


def complexes(a):
    if jnp.iscomplexobj(a):
        return a
    return a.astype({4: jnp.complex64, 8: jnp.complex128}[a.dtype.itemsize])


def convolved(x, kernel):
    numbers = ("NHC", "HIO", "NHC")
    return lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers).sum(1)


def mixed(p, x):
    """Tokens mixed by transforms along both axes (Lee-Thorp et al., 2022)."""
    h = jnp.tanh(x @ p[0]).reshape(-1, 3, 2)
    return jnp.tanh(fft(fft(h, axis=2), axis=1).real.reshape(-1, 6) @ p[1])


def fourier_layer(p, x):
    """Channels mixed frequency by frequency (Li et al., 2021)."""
    h = jnp.fft.rfft(jnp.tanh(x @ p[2]).reshape(-1, 4, 2), axis=1)
    return jnp.fft.irfft(jnp.einsum("nic,ico->nio", h, lax.complex(p[0], p[1])), n=4, axis=1)


def normalized(p):
    return p / jnp.broadcast_to(jnp.sqrt((p**2).sum(0, keepdims=True)), p.shape)


def scanned(weight):
    return lambda p, x: squared(lax.scan(lambda h, w: (h @ weight(w), None), fft(x), p)[0])


def functions():
    """Name -> (f, params), for x of shape (N, 4)."""
    constant = complexes(w(9)) * (1 + 2j)
    two, four = (w(1), w(2)), (w(1, 4, 2), w(2, 4, 2), w(3, 2, 3), w(4, 2, 3))
    return {
        "real times complex": (
            lambda p, x: squared(lax.dot(fft(x), p, preferred_element_type=fft(x).dtype)),
            w(),
        ),
        "converted": (lambda p, x: parts(fft(x) @ complexes(p)), w()),
        "low rank": (lambda p, x: parts(fft(x) @ complexes(p[0] @ p[1])), (w(1, 4, 2), w(2, 2, 3))),
        "low rank, transposed": (
            lambda p, x: parts(fft(x) @ complexes((p[0] @ p[1]).T)),
            (w(1, 3, 2), w(2, 2, 4)),
        ),
        "complex weight": (lambda p, x: squared(fft(x) @ lax.complex(*p)), two),
        "complex weight, real data": (
            lambda p, x: squared(complexes(x) @ lax.complex(*p)),
            two,
        ),
        "sum of two": (
            lambda p, x: squared(fft(x) @ (complexes(p[0]) + 1j * complexes(p[1]))),
            two,
        ),
        "complex constants": (lambda p, x: squared(complexes(x) @ (complexes(p) * constant)), w()),
        "complex scale": (lambda p, x: squared(fft(x) @ (complexes(p) * (2 + 1j))), w()),
        "complex low rank": (
            lambda p, x: parts(fft(x) @ (lax.complex(p[0], p[1]) @ lax.complex(p[2], p[3]))),
            four,
        ),
        "adjoint": (
            lambda p, x: parts(fft(x) @ lax.complex(*p).conj().T),
            (w(1, 3, 4), w(2, 3, 4)),
        ),
        "layers": (scanned(complexes), w(5, 3, 4, 4)),
        "scaled layers": (scanned(lambda p: complexes(p) * (1 + 0.5j)), w(5, 3, 4, 4)),
        "look-up": (lambda p, x: parts((complexes(p) * (1 + 2j))[jnp.argmax(x, 1)]), w()),
        "complex look-up": (lambda p, x: parts(lax.complex(*p)[jnp.argmax(x, 1)]), two),
        "bias": (
            lambda p, x: squared(fft(x) + jnp.broadcast_to(complexes(p), x.shape)),
            w(6, 4),
        ),
        "filter": (
            lambda p, x: lax.real(jnp.fft.ifft(fft(x) * jnp.broadcast_to(fft(p), x.shape))),
            w(6, 4),
        ),
        "transformed weight": (lambda p, x: parts(fft(x) @ fft(p, axis=0)), w()),
        "mixed tokens": (mixed, (w(1, 4, 6), w(2, 6, 5))),
        "Fourier layer": (fourier_layer, (w(1, 3, 2, 3), w(2, 3, 2, 3), w(3, 4, 8))),
        "convolution": (
            lambda p, x: squared(convolved(fft(x)[..., None], lax.complex(*p))),
            (w(1, 3, 1, 2), w(2, 3, 1, 2)),
        ),
        "weight norm": (lambda p, x: squared(fft(x) @ complexes(normalized(p))), w()),
        "tied": (lambda p, x: squared(fft(x @ p) @ complexes(p).T), w()),
    }


QUICK = (
    *("real times complex", "low rank, transposed", "complex weight", "complex scale", "bias"),
    *("scaled layers", "look-up", "weight norm"),
)
SLOW = [pytest.param(None, method, marks=pytest.mark.slow) for method in get_args(Method)]


@pytest.mark.parametrize(("names", "method"), [(QUICK, "structured"), *SLOW])
def test_real_and_imaginary_parts_count(names, method, float64):
    f, params = together(functions(), names)
    x1, x2 = normal(7, 3, 4), normal(8, 2, 4)
    expected = jax.jit(jacobian_kernel, static_argnums=0)(f, params, x1, x2)
    found = kernels.ntk(f, params, x1, x2, outputs="full", method=method)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@pytest.mark.slow
def test_single_precision_stays_single():
    f, params = functions()["complex scale"]
    x = normal(7, 3, 4)
    expected = np.einsum("nmaa->nma", jacobian_kernel(f, params, x, x))
    found = kernels.ntk(f, params, x, outputs="diagonal")
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_complex_weights_keep_their_factors():
    f, params = together(functions())
    plan = kernels.plan(f, params, jnp.ones((3, 4)), method="structured")
    formed = {row.parameter.split("'")[1] for row in plan.rows if row.contraction == "direct"}
    assert formed == {
        "complex constants",
        "complex look-up",
        "adjoint",
        "filter",
        "transformed weight",
    }

"""Every public function that takes arrays, on integers of every kind and in half precision.

Integer data have the results of the same numbers in floating point: bytes that wrap, targets cut
to whole numbers and infinities among integers do not. Half precision is exact up to a few units in
the last place. A public function without an entry in the tables fails a test here.
"""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from calls import Call, Draw, drawn
from calls_of_networks import CALLS as NETWORKS

CALLS: dict[str, Call] = {**NETWORKS}
INTEGERS = ("uint8", "int32", "bool")
HALVES = (np.float16, ml_dtypes.bfloat16)


def trace(call: Call, args):
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(call.f)(*args)))


def as_floats(call: Call, args):
    """The arguments with the drawn ones, of integers, in the default float."""
    is_draw = lambda a: isinstance(a, Draw)
    convert = lambda spec, a: a.astype(float) if is_draw(spec) else a
    return jax.tree.map(convert, call.args, args, is_leaf=is_draw)


def check_integers(name: str, kind: str):
    call = CALLS[name]
    args = drawn(call.args, kind)
    if call.integers == "refused":
        with pytest.raises(ValueError, match="expected"):
            call.f(*args)
        return
    converted = lambda *args: call.f(*as_floats(call, args))
    if call.integers == "promoted" and trace(call, args) == trace(call._replace(f=converted), args):
        return  # one program: nothing to be computed
    got, expected = call.f(*args), call.f(*as_floats(call, args))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if call.integers == "promoted":
            assert a.dtype == b.dtype, (a.dtype, b.dtype)
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-6, atol=0)


def check_half(name: str, half):
    call = CALLS[name]
    args = drawn(call.args, half)
    got = call.f(*args)
    with jax.enable_x64(True):
        exact = call.f(*jax.tree.map(lambda a: a.astype(float) if _is_half(a) else a, args))
        exact = jax.tree.map(np.asarray, exact)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        if not jnp.issubdtype(b.dtype, jnp.inexact):
            np.testing.assert_array_equal(a, b)
            continue
        assert a.dtype == half, a.dtype
        largest = np.max(np.abs(b), initial=0, where=np.isfinite(b))
        allowed = call.ulps * float(jnp.finfo(half).eps) * largest
        np.testing.assert_allclose(np.asarray(a, float), b, rtol=0, atol=allowed)


def _is_half(a) -> bool:
    return jnp.issubdtype(getattr(a, "dtype", np.dtype(object)), jnp.floating) and (
        jnp.finfo(a.dtype).bits < 32
    )


@pytest.mark.parametrize("name", CALLS)
def test_integers(name):
    check_integers(name, "uint8")

"""Hessians against backpropagation and the R-operator written by hand in NumPy float64."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from oracles import flat, random_tree, unchecked

from jaxnn import linalg
from jaxnn.errors import is_traced
from jaxnn.linalg.derivatives import require_objective

SIZES = (9, 12, 8, 5)
N = 23


def cross_entropy(params, x, y):
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(x @ layer["W"] + layer["b"][None])
    logits = x @ last["W"] + last["b"][None]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def oracle(params, x, y):
    """v ↦ H v in float64 coordinates: R{·} is d/dε at θ + εv (Pearlmutter, 1994)."""
    params = [{k: np.asarray(a, np.float64) for k, a in layer.items()} for layer in params]
    x, one_hot = np.asarray(x, np.float64), np.eye(SIZES[-1])[np.asarray(y)]
    hs = [x]
    for layer in params[:-1]:
        hs.append(np.tanh(hs[-1] @ layer["W"] + layer["b"]))
    z = hs[-1] @ params[-1]["W"] + params[-1]["b"]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)

    def product(v):
        parts, at = [], 0
        for layer in params:
            part = {}
            for name in sorted(layer):  # the order of a dictionary's leaves
                size = layer[name].size
                part[name] = v[at : at + size].reshape(layer[name].shape)
                at += size
            parts.append(part)
        rhs = [np.zeros_like(x)]
        for layer, part, h, above in zip(params[:-1], parts, hs, hs[1:], strict=False):
            rhs.append((1 - above**2) * (rhs[-1] @ layer["W"] + h @ part["W"] + part["b"]))
        rz = rhs[-1] @ params[-1]["W"] + hs[-1] @ parts[-1]["W"] + parts[-1]["b"]
        delta, r_delta = (p - one_hot) / len(x), p * (rz - (p * rz).sum(1, keepdims=True)) / len(x)
        found = []
        for layer, part, h, rh in list(zip(params, parts, hs, rhs, strict=True))[::-1]:
            found.append({"W": rh.T @ delta + h.T @ r_delta, "b": r_delta.sum(0)})
            below = delta @ layer["W"].T
            r_below = r_delta @ layer["W"].T + delta @ part["W"].T
            delta, r_delta = below * (1 - h**2), r_below * (1 - h**2) - 2 * below * h * rh
        return flat(found[::-1])

    return product


def problem(seed, dtype, n=N):
    rng = np.random.default_rng(seed)
    params = [
        {
            "W": jnp.asarray(rng.normal(size=(rows, columns)) / np.sqrt(rows), dtype),
            "b": jnp.asarray(0.3 * rng.normal(size=columns), dtype),
        }
        for rows, columns in pairwise(SIZES)
    ]
    x = jnp.asarray(rng.normal(size=(n, SIZES[0])), dtype)
    return params, x, jnp.asarray(rng.integers(0, SIZES[-1], n), "int32")


def vectors(params, dtype):
    shapes = jax.tree.map(jnp.shape, params)
    signs = jax.tree.map(jnp.sign, random_tree(8, shapes, dtype))
    return random_tree(7, shapes, dtype), signs, jax.tree.map(lambda a: 1e3 * a, signs)


@jax.jit
def every_way(H, v):
    """The product and the form, by each route that there is to them."""
    flat_v = linalg.coordinates(H.domain).ravel(v)
    loop = jax.lax.scan(lambda c, _: (c, linalg.prepared(H)(flat_v)), 0.0, None, length=2)[1]
    batch = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), v)
    products = [
        H @ v,
        linalg.prepared(H)(flat_v),
        loop[1],
        (0.25 * H + 0.75 * H) @ v,
        jax.tree.map(lambda a: a[1] / 2, jax.vmap(lambda v: H @ v)(batch)),
    ]
    return products, [H.quadratic_form(v), jax.vmap(H.quadratic_form)(batch)[1] / 4]


TOLERANCE = {"float32": 1e-5, "float64": 2e-14}


@pytest.mark.parametrize("batch_size", [None, 10, 1, N + 9])
def test_products_and_forms_are_those_of_the_oracle(batch_size, dtype):
    for seed in (0, 1):
        params, x, y = problem(seed, dtype)
        H = linalg.hessian(cross_entropy, params, x, y, batch_size=batch_size, check=False)
        exact = oracle(params, x, y)
        for v in vectors(params, dtype):
            hv = exact(flat(v))
            products, forms = every_way(H, v)
            for found in products:
                error = np.linalg.norm(flat(found) - hv)
                assert error <= TOLERANCE[dtype.name] * np.linalg.norm(hv)
            for found in forms:
                assert found.dtype == dtype
                size = np.abs(flat(v)) @ np.abs(hv)
                assert abs(float(found) - flat(v) @ hv) <= TOLERANCE[dtype.name] * size


def test_the_stored_matrix_is_that_of_the_oracle(dtype):
    params, x, y = problem(3, dtype, n=7)
    for batch_size in (None, 3):
        H = linalg.hessian(cross_entropy, params, x, y, batch_size=batch_size, check=False)
        S, v = jax.jit(linalg.stored)(H), vectors(params, dtype)[0]
        exact = np.stack([oracle(params, x, y)(e) for e in np.eye(H.shape[1])[::9]])
        atol = TOLERANCE[dtype.name] * np.max(np.abs(exact))
        np.testing.assert_allclose(S.to_dense()[::9], exact, atol=atol, rtol=0)
        hv = oracle(params, x, y)(flat(v))
        assert np.linalg.norm(flat(S @ v) - hv) <= TOLERANCE[dtype.name] * np.linalg.norm(hv)
        assert H.structure == S.structure == "symmetric"


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(value, "eqns"):
                yield from primitives(value if not hasattr(value, "jaxpr") else value.jaxpr)


def test_what_does_not_depend_on_the_vector_is_computed_outside_of_the_loop():
    params, x, y = problem(0, "float32")
    H = linalg.hessian(cross_entropy, params, x, y)
    v = linalg.coordinates(H.domain).ravel(params)

    def loop(product):
        return lambda v: jax.lax.scan(lambda v, _: (product(v), None), v, None, length=3)

    def in_the_loop(product):
        eqns = jax.make_jaxpr(loop(product))(v).jaxpr.eqns
        (scan,) = (eqn for eqn in eqns if eqn.primitive.name == "scan")
        return set(primitives(scan.params["jaxpr"].jaxpr))

    flat_of = linalg.coordinates(H.domain)
    plain = in_the_loop(lambda v: flat_of.ravel(H @ flat_of.unravel(v)))
    assert {"tanh", "exp", "dot_general"} <= plain
    linear = in_the_loop(linalg.prepared(H))
    assert "dot_general" in linear
    assert not linear & {"tanh", "exp"}


def cubed(w):
    """w³ by a loop that has no reverse pass."""
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * w), (0, w / w))[1]


def test_the_form_needs_no_reverse_pass():
    H = linalg.hessian(lambda w: jnp.sum(cubed(w)), jnp.arange(1.0, 4.0), check=False)
    assert H.quadratic_form(jnp.ones(3)) == 6 * 6
    assert (2.0 * H - H).quadratic_form(jnp.ones(3)) == 6 * 6
    with pytest.raises((TypeError, ValueError)):
        H @ jnp.ones(3)
    J = linalg.jacobian(cubed, jnp.arange(1.0, 4.0))
    assert (J.T @ J).quadratic_form(jnp.ones(3)) == 9 * (1 + 16 + 81)
    with pytest.raises((TypeError, ValueError)):
        (J.T @ J) @ jnp.ones(3)


def test_one_trace_for_one_function():
    traces = []

    def objective(w, x):
        return jnp.mean((x @ w) ** 4)

    @jax.jit
    def product(H, v):
        traces.append(1)
        return H @ v, H.quadratic_form(v)

    for seed in range(4):
        x = random_tree(seed, (7, 3), "float32")
        w = random_tree(seed + 9, (3,), "float32")
        H = linalg.hessian(objective, w, x, batch_size=3, check=False)
        hv, form = product(H, jnp.ones(3))
        inner = np.asarray(x, np.float64)
        exact = 12 * inner.T @ (inner * ((inner @ flat(w)) ** 2)[:, None]) @ np.ones(3) / 7
        np.testing.assert_allclose(hv, exact, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(form, exact.sum(), rtol=1e-5, atol=1e-5)
    assert len(traces) == 1
    product(linalg.hessian(objective, w, x, batch_size=4, check=False), jnp.ones(3))
    assert len(traces) == 2  # another program, as its batches have another size


def test_created_inside_transformations(float64):
    w, x = jnp.arange(1.0, 4.0), jnp.linspace(-1.0, 1.0, 3)
    objective = lambda w, x: jnp.sum(x * w**4)
    exact = 12 * np.asarray(x) * np.arange(1, 4) ** 2
    product = lambda w, x: linalg.hessian(objective, w, x) @ jnp.ones(3)
    np.testing.assert_allclose(jax.jit(product)(w, x), exact)
    # The objective closes over what is traced, and the parameters are constants.
    closed = jax.jit(lambda x: linalg.hessian(lambda w: objective(w, x), w) @ jnp.ones(3))
    np.testing.assert_allclose(closed(x), exact)
    constant = jax.jit(lambda v: linalg.hessian(objective, w, x) @ v)
    np.testing.assert_allclose(constant(jnp.ones(3)), exact)
    many = jax.jit(jax.vmap(product, in_axes=(0, None)))(jnp.stack([w, 2 * w]), x)
    np.testing.assert_allclose(many, [exact, 4 * exact])
    third = jax.grad(lambda w: jnp.sum(linalg.hessian(objective, w, x) @ jnp.ones(3)))(w)
    np.testing.assert_allclose(third, 24 * np.asarray(x) * np.arange(1, 4))
    operators = jax.jit(jax.vmap(lambda w: linalg.hessian(objective, w, x)))(jnp.stack([w, 2 * w]))
    forms = jax.vmap(lambda H: H.quadratic_form(jnp.ones(3)))(operators)
    np.testing.assert_allclose(forms, [exact.sum(), 4 * exact.sum()], atol=1e-13)


def test_python_numbers_and_constant_objectives():
    H = linalg.hessian(lambda p: p["a"] ** 3 * p["b"] ** 2, {"a": 2.0, "b": 3.0})
    np.testing.assert_allclose(H.to_dense(), [[108.0, 72.0], [72.0, 16.0]])
    assert H.quadratic_form({"a": 1.0, "b": -1.0}) == 108 - 144 + 16
    zero = linalg.hessian(lambda w: 1.0, jnp.ones(3))
    np.testing.assert_array_equal(zero @ jnp.ones(3), np.zeros(3))
    assert zero.quadratic_form(jnp.ones(3)) == 0.0
    carried = Partial(lambda scale, w: jnp.sum(scale * w**2), jnp.arange(3.0))
    np.testing.assert_allclose(linalg.hessian(carried, jnp.ones(3)) @ jnp.ones(3), [0.0, 2.0, 4.0])


W = jnp.arange(3.0)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda w: w, r"got a value of shape \(3,\), expected a scalar"),
        (lambda w: w[:1], r"got a value of shape \(1,\), expected a scalar"),
        (lambda w: (jnp.sum(w), w), r"got tuple, expected a scalar"),
        (lambda w: jnp.argmax(w), r": its value: got dtype int32, expected real floating point"),
        (lambda w: jnp.sum(w) * 1j, r": its value: got dtype complex64, expected real floating p"),
        (lambda w: jnp.sum(jnp.sqrt(w)), r"got a gradient that is not finite at params, expected"),
        (lambda w: jnp.linalg.norm(w - w), r"got a gradient that is not finite at params, expecte"),
        (lambda w: jnp.sum(w) + jnp.nan, r"got the value nan, expected a finite value"),
        (lambda w: jnp.sum(w) + jnp.inf, r"got the value inf, expected a finite value"),
    ],
)
def test_objectives_that_have_no_hessian(objective, message):
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(ValueError, match=r"hessian\(objective\)(: )?" + message),
    ):
        linalg.hessian(objective, W)


def test_where_a_gradient_is_not_finite():
    objective = lambda p, x: jnp.sum(p["b"][0]) + jnp.sum(jnp.sqrt(p["a"])) + jnp.mean(x)
    with pytest.raises(ValueError, match=r"not finite at params\['a'\], expected a finite grad"):
        linalg.hessian(objective, {"a": W, "b": [W]}, jnp.ones(5), batch_size=2)
    H = linalg.hessian(objective, {"a": W, "b": [W]}, jnp.ones(5), batch_size=2, check=False)
    assert not np.all(np.isfinite(H.to_dense()))


def host_noise(rng, w):
    kind = jax.ShapeDtypeStruct((), "float32")
    return jnp.sum(w**2) * jax.pure_callback(lambda: np.float32(rng.normal()), kind)


def test_objectives_that_are_not_deterministic():
    rng = np.random.default_rng(0)
    noise = lambda w: jnp.sum(w**2) + jnp.asarray(rng.normal(), "float32")
    for objective in (noise, partial(host_noise, rng)):
        with pytest.raises(ValueError, match=r"evaluated again, .*, expected a deterministic"):
            linalg.hessian(objective, W)
        assert linalg.hessian(objective, W, check=False).shape == (3, 3)
    fixed = lambda w: jnp.sum(w**2 * jax.random.normal(jax.random.key(0), (3,)))
    assert linalg.hessian(fixed, W).shape == (3, 3)


@pytest.mark.parametrize("params", [(), {}, jnp.ones((0, 3)), {"a": None}])
def test_no_parameters(params):
    with pytest.raises(ValueError, match=r"hessian\(params\): got no parameters, expected at lea"):
        linalg.hessian(lambda p: jnp.zeros(()), params)


def test_parameters_that_are_no_real_numbers():
    with unchecked(), pytest.raises(ValueError, match=r"hessian\(params\)\['n'\]: got dtype int32"):
        linalg.hessian(lambda p: jnp.sum(p["w"]), {"n": jnp.arange(3), "w": W})


def test_a_check_without_evaluation_looks_at_shapes_alone():
    evaluated = []

    def objective(w):
        evaluated.append(w)
        return jnp.sum(jnp.sqrt(w))

    require_objective("f", objective, W, evaluate=False)
    assert all(is_traced(w) for w in evaluated)
    with pytest.raises(ValueError, match=r"^f: got a gradient"):
        require_objective("f", objective, W, evaluate=True)

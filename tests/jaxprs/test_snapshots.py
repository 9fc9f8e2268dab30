"""Snapshots are equal if and only if the functions compute the same."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn.jaxprs import snapshot

X = jnp.array([0.5, -1.0, 2.0])
W = jnp.array([1.0, 3.0, -2.0])


class Net:
    """A callable object with state."""

    def __init__(self, **state):
        self.__dict__.update(state)

    def __call__(self, w, x):
        return self.scale * w * x

    def apply(self, w, x):
        return self(w, x)


def closure(value):
    def f(w, x):
        return value * w * x

    return f


def reversal(strength):
    """The identity whose gradient is turned around: the forward trace does not show by how much."""

    @jax.custom_vjp
    def identity(y):
        return 1.0 * y

    identity.defvjp(lambda y: (1.0 * y, None), lambda _, g: (-strength * g,))
    return lambda w, x: identity(w * x)


def surrogate(slope):
    @jax.custom_jvp
    def step(y):
        return jnp.where(y > 0.0, 1.0, 0.0)

    step.defjvp(lambda y, t: (step(*y), slope * t[0]))
    return lambda w, x: step(w * x)


def rule_in_rule(strength):
    """A gradient that is `reversal`: only the second derivative knows its strength."""
    inner = reversal(strength)

    @jax.custom_vjp
    def square(w, x):
        return w * w

    square.defvjp(lambda w, x: (w * w, (w, x)), lambda s, g: (2.0 * g * inner(*s), None))
    return square


def looped(value):
    def f(w, x):
        return lax.scan(lambda c, x_t: (c + value * x_t, None), w.sum(), x)[0]

    return f


def branched(value):
    return lambda w, x: lax.cond(w[0] > value, lambda: w * x, lambda: value * x)


MAKERS = {
    "attribute of a method's object": lambda v: Net(scale=v).apply,
    "attribute of a callable object": lambda v: Net(scale=v),
    "attribute inside an attribute": lambda v: partial(
        lambda net, w, x: net.inner.scale * w * x, Net(inner=SimpleNamespace(scale=v))
    ),
    "number in a closure": closure,
    "array of JAX in a closure": lambda v: closure(jnp.array([1.0, v, 2.0])),
    "array of NumPy in a closure": lambda v: closure(np.array([1.0, v, 2.0], np.float32)),
    "default argument": lambda v: lambda w, x, scale=v: scale * w * x,
    "bound argument": lambda v: partial(lambda s, w, x: s * w * x, v),
    "body of a scan": looped,
    "branch": branched,
    "compiled by jit": lambda v: COMPILED[v],
    "jit of a method": lambda v: lambda w, x: jax.jit(Net(scale=v).apply)(w, x),
    "inside remat": lambda v: jax.checkpoint(closure(v)),
    "random key": lambda v: lambda w, x: w * jax.random.normal(jax.random.key(int(4 * v)), x.shape),
    "captured key": lambda v: partial(
        lambda key, w, x: w * jax.random.normal(key, x.shape), jax.random.key(int(4 * v))
    ),
    "custom_vjp, backward only": reversal,
    "custom_jvp, tangent only": surrogate,
    "static parameter": lambda v: lambda w, x: lax.expand_dims(w * x, [int(v > 0.5)]),
    "dtype": lambda v: lambda w, x: (w * x).astype(jnp.float16 if v > 0.5 else jnp.float32),
    "callback": lambda v: lambda w, x: w * jax.pure_callback(TRIGONOMETRIC[v], x, x),
}
COMPILED = {v: jax.jit(closure(v)) for v in (0.25, 0.75)}
TRIGONOMETRIC = {0.25: np.sin, 0.75: np.cos}


class Hidden:
    """A function behind an object that tells nothing of its state: it has to be traced."""

    def __init__(self, f):
        self.f = f

    def __call__(self, w, x):
        return self.f(w, x)


@pytest.mark.parametrize("wrap", [lambda f: f, Hidden], ids=["by state", "by trace"])
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_equal_exactly_if_the_functions_are(maker, wrap):
    first, again, other = (snapshot(wrap(maker(v)), W, X) for v in (0.25, 0.25, 0.75))
    assert first == again
    assert hash(first) == hash(again)
    assert first != other


def test_a_change_in_place_is_seen():
    scale = np.ones(3, np.float32)
    net = Net(scale=scale)
    before = snapshot(net.apply, W, X)
    scale[1] = 2.0
    assert snapshot(net.apply, W, X) != before
    scale[1] = 1.0
    assert snapshot(net.apply, W, X) == before


def test_signs_of_zero_and_nan():
    assert snapshot(closure(0.0), W, X) != snapshot(closure(-0.0), W, X)
    assert snapshot(closure(np.nan), W, X) == snapshot(closure(np.nan), W, X)


def test_order_two_sees_a_rule_inside_a_rule():
    first, again, other = (
        snapshot(Hidden(rule_in_rule(v)), W, X, order=2) for v in (0.25, 0.25, 0.75)
    )
    assert first == again != other


def test_a_function_that_must_be_traced_is_so_at_its_arguments():
    net = Net(scale=1.0)
    assert snapshot(net, W, X) != snapshot(net, W[:1], X)
    spec = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert snapshot(net, spec, spec) == snapshot(Net(scale=1.0).apply, W, X)
    both = [snapshot(snapshot(Net(scale=v), W, X), W[:1], X) for v in (1.0, 1.0, 2.0)]
    assert both[0] == both[1] != both[2]


def test_a_function_of_traced_values_equals_no_other():
    found = []

    def outer(v):
        f = closure(v)
        found.extend((snapshot(f, W, X), snapshot(f, W, X)))
        return found[0](W, X)

    np.testing.assert_array_equal(jax.jit(outer)(2.0), 2.0 * W * X)
    assert found[0] != found[1]
    assert found[0] == found[0]


def test_it_calls_the_function_as_it_is_and_compiles_once():
    traced = []

    @partial(jax.jit, static_argnums=0)
    def run(f, w, x):
        traced.append(f)
        return f(w, x)

    net = Net(scale=2.0)
    for scale, expected in ((2.0, 1), (2.0, 1), (3.0, 2), (2.0, 2)):
        net.scale = scale
        np.testing.assert_array_equal(run(snapshot(net.apply, W, X), W, X), scale * W * X)
        assert len(traced) == expected


def test_ordinary_networks_equal_themselves():
    def net(w, x):
        y = jax.nn.softmax(jax.nn.gelu(jax.nn.relu(w * x)))
        y = jax.nn.silu(jnp.sort(y))[jnp.arange(3)] + jax.scipy.special.logsumexp(y)
        return jnp.linalg.solve(jnp.eye(3) + jnp.outer(y, y), lax.associative_scan(jnp.add, y))

    for f in (net, jax.vmap(lambda w, x: jax.nn.elu(w * x)), jax.jit(net)):
        assert snapshot(f, W, X) == snapshot(f, W, X)


def repeated(slope):
    """A loop of unknown length has derivatives in forward mode alone."""
    relu = surrogate(slope)
    return lambda w, x: lax.while_loop(lambda y: y.sum() < 9.0, lambda y: y + relu(w, x), w * x)


def test_forward_mode_shows_the_rules_where_reverse_mode_cannot():
    first, again, other = (snapshot(Hidden(repeated(v)), W, X) for v in (0.25, 0.25, 0.75))
    assert first == again != other


def test_without_a_derivative_it_equals_no_other():
    reverse_only = reversal(0.25)
    loop = lambda w, x: lax.while_loop(lambda y: y.sum() < 9.0, lambda y: reverse_only(w, y), x)
    assert snapshot(Hidden(loop), W, X) != snapshot(Hidden(loop), W, X)

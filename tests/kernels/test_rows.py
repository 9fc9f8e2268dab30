"""Functions whose row i depends on i, or on the size of the batch: exact kernels, or an error.

The kernel is computed from one example at a time. Every function here is also evaluated on the
batch and on each example alone, which decides what may be said of it. "independent" is an exact
promise; the traces are compared without evaluating anything.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn import kernels
from jaxnn.kernels.batch_axis import Pair, follow
from jaxnn.kernels.batch_layout import UNKNOWN, Batch, Place, whole
from jaxnn.kernels.coupling import read, require_independent
from jaxnn.kernels.custom_rules import is_of_jax
from jaxnn.kernels.evaluated_alone import change_when_alone
from jaxnn.kernels.lockstep import LOOSE, Lockstep, agrees, constants, equal, spread
from tests.kernels import test_coupling

ntk = inspect.unwrap(kernels.ntk)
N, D, K = 5, 3, 2
RNG = np.random.default_rng(0)
X, W = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((N, D), (D, K)))
ROWS = jnp.asarray(RNG.normal(size=(N, 1)), jnp.float32)
LABELS, KEY = jnp.array([0, 1, 1, 0, 1]), jax.random.key(3)
PARAMS = {"w": W, "rows": ROWS}
pytestmark = pytest.mark.usefixtures("standard_promotion")


def custom_vjp(forward, backward):
    f = jax.custom_vjp(forward)
    f.defvjp(lambda *args: (forward(*args), args), backward)
    return f


def custom_jvp(forward, tangent):
    f = jax.custom_jvp(forward)
    f.defjvp(tangent)
    return f


mean_back = custom_vjp(lambda y: y, lambda res, g: (g / len(g),))
centered_back = custom_vjp(lambda y: y, lambda res, g: (g - g.mean(0),))
tanh_back = custom_vjp(jnp.tanh, lambda res, g: (g * (1 - jnp.tanh(res[0]) ** 2),))
dense = custom_vjp(lambda w, x: x @ w, lambda res, g: (res[1].T @ g, g @ res[0].T))
dense_mean = custom_vjp(lambda w, x: x @ w, lambda res, g: (res[1].T @ g / len(g), g @ res[0].T))
sine_mean = custom_jvp(jnp.sin, lambda p, t: (jnp.sin(p[0]), jnp.cos(p[0]) * t[0] / len(p[0])))
exponential = custom_jvp(jnp.exp, lambda p, t: (exponential(p[0]), exponential(p[0]) * t[0]))


def numbered(p, x):
    return (x @ p["w"]) * (1.0 + jnp.arange(len(x), dtype=x.dtype))[:, None]


# Functions of the position in the batch, or of its size.
POSITION = {
    "an array": lambda p, x: ROWS * (x @ p["w"]),
    "an array, sliced": lambda p, x: ROWS[: len(x)] * (x @ p["w"]),
    "an array, cut out": lambda p, x: lax.dynamic_slice_in_dim(ROWS, 0, len(x)) * (x @ p["w"]),
    "an array of NumPy": lambda p, x: (x @ p["w"]) * np.arange(1.0, len(x) + 1, dtype="f")[:, None],
    "one row apart": lambda p, x: (x @ p["w"]) * np.float32([1, 1, 3, 1, 1][: len(x)])[:, None],
    "a parameter": lambda p, x: p["rows"] * (x @ p["w"]),
    "a parameter, added": lambda p, x: jnp.tanh(p["rows"] + x @ p["w"]),
    "a parameter, sliced": lambda p, x: p["rows"][: len(x)] * (x @ p["w"]),
    "numbers of rows": numbered,
    "numbers of rows, jit": jax.jit(numbered),
    "numbers of rows, remat": jax.checkpoint(numbered),
    "counted": lambda p, x: (x @ p["w"]) * jnp.cumsum(jnp.ones(len(x)))[:, None],
    "every other": lambda p, x: jnp.where(jnp.arange(len(x))[:, None] % 2 == 0, x @ p["w"], 0.0),
    "evenly spaced": lambda p, x: (x @ p["w"]) * jnp.linspace(1, 2, len(x))[:, None],
    "counted by a scan": lambda p, x: lax.scan(lambda c, e: (c + 1, c * (e @ p["w"])), 1.0, x)[1],
    "labels of the rows": lambda p, x: (x @ p["w"])[jnp.arange(len(x)), LABELS[: len(x)]],
    "the first row set": lambda p, x: (x @ p["w"]).at[0].set(0.0),
    "the first row added to": lambda p, x: (x @ p["w"]).at[0].add(1.5 * x[0, :2]),
    "the first row updated": lambda p, x: lax.dynamic_update_slice(
        x @ p["w"], jnp.zeros((1, K)), (0, 0)
    ),
    "dropout": lambda p, x: jnp.where(jax.random.bernoulli(KEY, 0.5, (len(x), K)), x @ p["w"], 0.0),
    "a sample": lambda p, x: jax.random.bernoulli(KEY, jax.nn.sigmoid(x @ p["w"])) * (x @ p["w"]),
    "noise": lambda p, x: (x + jax.random.normal(KEY, x.shape)) @ p["w"],
    "a key for every row": lambda p, x: jax.vmap(
        lambda key, e: jax.random.normal(key, (K,)) * (e @ p["w"])
    )(jax.random.split(KEY, len(x)), x),
    "the size": lambda p, x: x @ p["w"] / len(x),
    "the size, summed": lambda p, x: x @ p["w"] / jnp.ones(len(x)).sum(),
    "the size, an exponent": lambda p, x: (x @ p["w"]) ** len(x),
    "the size, in a key": lambda p, x: x @ p["w"] * jax.random.normal(jax.random.key(len(x)), (K,)),
    "the size, steps": lambda p, x: lax.fori_loop(0, len(x), lambda i, c: 1.1 * c, x @ p["w"]),
    "a branch": lambda p, x: x @ p["w"] if len(x) > 3 else 2 * (x @ p["w"]),
    "a branch at 1": lambda p, x: x @ p["w"] if len(x) > 1 else 2 * (x @ p["w"]),
}  # fmt: skip
RULES = {  # the values are those of each example alone, the derivatives are not
    "a mean, backward": lambda p, x: mean_back(x @ p["w"]),
    "centered, backward": lambda p, x: centered_back(x @ p["w"]),
    "a mean of gradients": lambda p, x: dense_mean(p["w"], x),
    "a mean, forward": lambda p, x: sine_mean(x @ p["w"]),
}
FINE = {
    "no more than data": lambda p, x: jnp.tanh(x @ p["w"]),
    "ones": lambda p, x: x @ p["w"] * jnp.ones((len(x), 1)) + jnp.zeros((len(x), K)),
    "ones of NumPy": lambda p, x: x @ p["w"] * np.full((len(x), 1), 3, "f"),
    "a repeated parameter": lambda p, x: jnp.tile(p["w"][:1], (len(x), 1)) * x[:, :2],
    "a broadcast parameter": lambda p, x: jnp.broadcast_to(p["w"][:1], (len(x), K)) * x[:, :2],
    "merged axes": lambda p, x: (x[:, :, None].swapaxes(0, 1).reshape(-1, 1) * jnp.broadcast_to(
        p["w"][0], (D * len(x), K))).reshape(D, len(x), K).sum(0),
    "an unused mean": lambda p, x: ((x @ p["w"]).mean(0), x @ p["w"])[1],
    "shared noise": lambda p, x: x @ p["w"] * jax.random.normal(KEY, (K,)),
    "places of features": lambda p, x: (x + jnp.arange(D, dtype=x.dtype)) @ p["w"],
    "a mean of features": lambda p, x: (x @ p["w"]) / x.shape[1] + x.mean(1, keepdims=True),
    "zeros of a scan": lambda p, x: lax.scan(
        lambda h, e: (jnp.tanh(h + e[:, None] * p["w"][0]), None), jnp.zeros((len(x), K)), x.T
    )[0],
    "mapped": lambda p, x: lax.map(lambda e: e @ p["w"], x),
    "taken along": lambda p, x: jnp.take_along_axis(x, jnp.argsort(x @ p["w"], axis=1), axis=1),
    "solved": lambda p, x: jnp.linalg.solve(jnp.eye(D) + x[:, :, None] * x[:, None], x[..., None])[
        :, :, 0] @ p["w"],
    "a rule": lambda p, x: tanh_back(x @ p["w"]),
    "a rule of a parameter": lambda p, x: dense(p["w"], x) + dense(-2 * p["w"], x),
    "a rule that calls itself": lambda p, x: exponential(x @ p["w"]),
    "columns set": lambda p, x: (x @ p["w"]).at[:, 0].set(0.0),
}  # fmt: skip
UNFOLLOWED = {  # right, and not known to be so without values
    "an entry of every row": lambda p, x: (x @ p["w"])[jnp.arange(len(x)), jnp.argmax(x, 1) % K],
    "mapped in chunks": lambda p, x: lax.map(lambda e: e @ p["w"], x, batch_size=2),
    "equal rows": lambda p, x: x @ p["w"] * jnp.full((N, 1), 3.0),
}


def differs(f):
    together = np.asarray(f(PARAMS, X))
    alone = [np.asarray(f(PARAMS, X[i : i + 1]))[0] for i in range(N)]
    return not np.allclose(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POSITION)
def test_no_function_of_the_position_passes_for_independent(name):
    f = POSITION[name]
    assert differs(f), "the case itself is not what it says"
    assert read(f, PARAMS, X).coupling.kind == "unknown"


@pytest.mark.parametrize("name", FINE)
def test_functions_of_the_example_alone_are_known_as_such(name):
    assert not differs(FINE[name]), "the case itself is not what it says"
    assert read(FINE[name], PARAMS, X).coupling.kind == "independent"


def test_derivatives_of_custom_rules_are_read():
    for f in RULES.values():
        assert not differs(f)
        assert read(f, PARAMS, X).coupling.kind == "unknown"


def kernel(slopes, z):
    return np.einsum("nk,mk,nc,mc->nm", slopes, slopes, z, z) / K


def test_refused_or_taken_whole():
    """Kernels by hand: rows weighed by ROWS, by their number, or centered by the pull back."""
    p, x, rows = {"w": W}, np.asarray(X), np.asarray(ROWS)
    right = {
        "an array": kernel(rows * np.ones(K), x),
        "numbers of rows": kernel((1.0 + np.arange(N))[:, None] * np.ones(K), x),
    }
    for name, expected in right.items():
        with pytest.raises(
            ValueError, match=r"f\(params, x1\): got outputs that .*x = \(x, mask\)"
        ):
            ntk(POSITION[name], p, X)
        with pytest.raises(ValueError, match=r"under a trace.*coupled=True"):
            jax.jit(partial(ntk, POSITION[name]))(p, X)
        found = ntk(POSITION[name], p, X, coupled=True)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for name in ("a mean, backward", "centered, backward"):
        with pytest.raises(ValueError, match=r"gradients that change by a factor of"):
            ntk(RULES[name], p, X)
    found = ntk(lambda p, x: x[1] * (x[0] @ p["w"]), p, (X, ROWS))
    np.testing.assert_allclose(found, right["an array"], rtol=1e-5, atol=1e-5)


def test_right_where_values_decide():
    slopes = np.ones((N, K))
    for name in ("equal rows", "mapped in chunks"):
        f = UNFOLLOWED[name]
        assert read(f, PARAMS, X).coupling.kind == "unknown"
        found = ntk(f, {"w": W}, X)
        scale = 3.0 if name == "equal rows" else 1.0
        np.testing.assert_allclose(
            found, kernel(scale * slopes, np.asarray(X)), rtol=1e-5, atol=1e-5
        )
    require_independent(UNFOLLOWED["an entry of every row"], PARAMS, X)


def test_the_second_batch_is_read_as_the_first():
    f = POSITION["a branch"]
    with pytest.raises(ValueError, match=r"f\(params, x2\): got outputs that change"):
        ntk(f, PARAMS, X[:2] * 0 + X[:2], jnp.concatenate([X, X]))
    running = lambda p, x: jnp.cumsum(x, axis=0) @ p["w"]
    with pytest.raises(ValueError, match=r"f\(params, x2\): got examples that meet in cumsum"):
        ntk(running, PARAMS, X[:1], X)


def test_values_are_compared_row_by_row():
    order = jnp.array([1, 0, 3, 2, 4])
    offset = lambda p, x: 1e5 + x[order[: len(x)]] @ p["w"]
    assert change_when_alone(offset, PARAMS, X).startswith("gradients that change by a factor")
    # The first row is as large as the others are small, and two of those change places.
    scales = jnp.array([1e6, 1e-3, 1e-3, 1.0, 1.0])[:, None]
    swapped = lambda p, x: x[jnp.array([0, 2, 1, 3, 4])[: len(x)]] @ p["w"]
    assert "change" in change_when_alone(swapped, PARAMS, X * scales)
    assert change_when_alone(lambda p, x: 1e5 + jnp.tanh(x) @ p["w"], PARAMS, X * scales) == ""
    # One gradient is not finite: the others are compared all the same.
    poles = lambda p, x: jnp.sqrt(jnp.abs(swapped(p, x)))
    assert "change" in change_when_alone(poles, PARAMS, X.at[4].set(0.0))


FIXED = {  # cases of test_coupling of a batch of four: they fail on one example
    "a loop in Python", "a token of parameters", "dense over merged axes", "dynamic update",
    "dense over merged axes, time first", "flattened", "group norm", "microbatches",
    "parameters alone", "patches", "repeated rows", "resized", "tiled rows",
    "within halves of the batch", *(n for n in test_coupling.IMAGES if n.startswith("conv")),
}  # fmt: skip
APART = {
    "dropout, fixed key",
    "mapped in chunks",
    "mapped in ragged chunks",
    "position of the row",
    "row set",
}


@pytest.mark.slow
def test_rows_of_every_primitive_and_of_every_library():
    missed = []
    for name, case in test_coupling.CASES.items():
        if case.kind == "independent" and name not in FIXED | APART:
            kind = read(case.f, test_coupling.PARAMS, case.x).coupling.kind
            missed += [name] if kind != "independent" else []
    for name, build in test_coupling.MODELS.items():
        f, params, x, kind = build()
        missed += [name] if read(f, params, x).coupling.kind != kind else []
    assert not missed
    for name in APART:
        case = test_coupling.CASES[name]
        assert read(case.f, test_coupling.PARAMS, case.x).coupling.kind == "unknown"


# The comparison of programs.


def test_rows_in_step():
    assert spread((12, 3), (3, 3), 4, 1) == Batch(LOOSE, (Place(0, 3, 4),))
    assert spread((4, 3), (5, 3), 4, 5) == Batch(LOOSE, (Place(0, 1, 4),))
    assert spread((4, 3), (4, 3), 4, 1) is None
    assert spread((4, 4), (1, 1), 4, 1) == spread((4, 3), (2, 3), 4, 1) == UNKNOWN
    assert agrees(whole(4), (4, 2), (1, 2), 4, 1)
    assert not agrees(whole(4), (4, 2), (4, 2), 4, 1)
    assert not agrees(Batch(1, ()), (1, 2), (1, 2), 4, 1)
    assert agrees(None, (4, 2), (4, 2), 4, 1)
    assert not agrees(None, (4, 2), (1, 2), 4, 1)


def test_arrays_that_programs_hold():
    ones, numbers = np.ones((4, 2)), np.arange(8.0).reshape(4, 2)
    held, alone = (
        [numbers, ones, numbers, ones],
        [numbers.copy(), ones[:1], numbers[:1], 2 * ones[:1]],
    )
    expected = [None, spread((4, 2), (1, 2), 4, 1), UNKNOWN, UNKNOWN]
    assert constants(held, alone, size=4, count=1) == expected
    assert constants(held, alone[:1], size=4, count=1) == [UNKNOWN] * 4
    assert equal(float("nan"), float("nan"))
    assert not equal(np.float32(1), np.float64(1))
    assert not equal((1, [2]), (1, [3]))


def test_rows_within_shard_map():
    """A constant of the batch's size is varied over the mesh, which makes it no less constant."""
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    kinds = []

    def within(x, w):
        broadcast = lambda w, x: x @ w + jnp.broadcast_to(w[0], (len(x), K))
        kinds.append(read(broadcast, w, x).coupling.kind)
        return x

    specs = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
    jax.shard_map(within, mesh=mesh, in_specs=specs, out_specs=specs[0])(X, W)
    assert kinds == ["independent"]


def test_programs_that_return_other_values_are_not_the_same():
    first = jax.make_jaxpr(lambda x, y: (x, y))(jnp.ones((4, 2)), jnp.ones((4, 2)))
    second = jax.make_jaxpr(lambda x, y: (y, x))(jnp.ones((1, 2)), jnp.ones((1, 2)))
    found = follow(Pair(first, second, 4), [whole(4), whole(4)])
    assert found == [UNKNOWN, UNKNOWN]
    assert Lockstep(first.jaxpr, first.jaxpr).ends_alike() == [True, True]
    assert is_of_jax(jax.make_jaxpr(jnp.tanh)(1.0))
    assert not is_of_jax(first)

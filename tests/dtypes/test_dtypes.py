"""Every public function that takes arrays, on integers of every kind and in half precision.

Integer data have the results of the same numbers in floating point: bytes that wrap, targets cut
to whole numbers and infinities among integers do not. Half precision is exact up to a few units in
the last place, since nothing is accumulated in it. A public function that is neither in the tables
of calls nor among those without data fails a test here.

Where two calls are one program nothing is computed: the tests that are not slow mostly trace.
"""

from fnmatch import fnmatch
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from calls import Call, Draw, drawn
from calls_of_networks import CALLS as NETWORKS
from calls_of_theory import CALLS as THEORY
from programs import fingerprint, halves_accumulated
from public_names import public_functions

from jaxnn import nn

CALLS: dict[str, Call] = NETWORKS | THEORY

WITHOUT_DATA = {
    "compatibility.*": "about versions",
    "errors.*": "about arguments",
    "jaxprs.*": "about programs",
    "precision.*": "the rules themselves, in tests/test_precision.py",
    "minibatches.*": "about rows, which are integers",
    "data.batches": "about rows, which are integers",
    "search.*": "trials on the host",
    "nn.initializers.*": "draws from a key",
    "nn.duals.*": "functions of covariances, which kernels.infinite makes of data",
    "nn.limit.*": "functions of covariances, which kernels.infinite makes of data",
    "nn.quadrature.*": "functions of covariances, which kernels.infinite makes of data",
    **dict.fromkeys(
        ("nn.output_shape", "nn.parameter_count", "nn.receptive_field", "nn.summary"),
        "shapes alone",
    ),
    **dict.fromkeys(("pruning.random_mask", "pruning.sparsity", "pruning.weights_left"), "masks"),
    **dict.fromkeys(("generative.units.states", "generative.dbn.sample"), "draws or counts"),
    "generative.iteration.*": "the loop of the fits, which promote the data",
    **dict.fromkeys(
        (
            *("curvature.classify", "curvature.inertia", "curvature.escape_direction"),
            *("curvature.connect", "curvature.find_critical_point", "curvature.sharpness"),
            "curvature.sharpness_trajectory",
        ),
        "data are arguments of the objective: as curvature.hessian",
    ),
    **dict.fromkeys(
        ("curvature.block", "curvature.blocks", "curvature.kinds"), "operators, results"
    ),
    **dict.fromkeys(
        (
            *("linalg.diagonal", "linalg.eigsh", "linalg.lanczos", "linalg.logdet", "linalg.trace"),
            *("linalg.prepared", "linalg.spectral_density", "linalg.storage", "linalg.stored"),
        ),
        "operators, whose spaces are floating point",
    ),
    **dict.fromkeys(("optimizers.masked", "optimizers.perturbation"), "masks, numbers"),
    "optimizers.saddle_free_newton": "needs an objective: as optimizers.adam",
    "kernels.plan": "counts operations",
    **dict.fromkeys(
        (
            *("training.chunk_length", "training.each", "training.initial_state"),
            *("training.load", "training.save"),
        ),
        "no arithmetic",
    ),
    **dict.fromkeys(("tree.require_differentiable", "tree.size"), "about dtypes, shapes"),
}

QUICK_HALVES = (
    *("nn.avg_pool", "nn.layer_norm", "nn.positional_encoding", "tree.norm"),
    *("metrics.root_mean_squared_error", "generative.rbm.free_energy"),
)
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
WITH_HALVES = [name for name, call in CALLS.items() if call.ulps is not None]


def test_every_public_function_has_a_call_or_a_reason():
    functions = set(public_functions())
    assert set(CALLS) <= functions, "calls of what is not public"
    missing = {
        name
        for name in functions - set(CALLS)
        if not any(fnmatch(name, pattern) for pattern in WITHOUT_DATA)
    }
    assert not missing, f"give a call in tests/dtypes, or a reason: {sorted(missing)}"
    unused = [p for p in WITHOUT_DATA if not any(fnmatch(n, p) for n in functions)]
    assert set(unused) <= {"jaxprs.*"}, unused


def test_a_broken_rule_is_seen(monkeypatch):
    """Sums in the dtype of the data, targets cast to it, and sums in half precision."""
    cut = lambda number, x: jnp.asarray(number).astype(x.dtype)
    wrong = {
        "wrapped": Call(lambda x: jnp.sum(x, dtype=x.dtype), (Draw((300,)),)),
        "cut": Call(lambda x: x.astype(float) + cut(0.5, x).astype(float), (Draw((3,)),)),
        "narrow": Call(lambda x: jax.lax.reduce_sum_p.bind(x, axes=(0,)), (Draw((300,)),)),
    }
    for name, call in wrong.items():
        monkeypatch.setitem(CALLS, name, call)
        check = check_sums if name == "narrow" else partial(check_integers, kind="uint8")
        with pytest.raises(AssertionError):
            check(name)


def same_program(f, g, args) -> bool:
    """Whether two functions are known to do the same; not where they need values."""
    try:
        return fingerprint(f, args) == fingerprint(g, args)
    except jax.errors.ConcretizationTypeError:
        return False


def as_floats(call: Call, args):
    """The arguments with those that are drawn, integers, in the default float."""
    is_draw = lambda a: isinstance(a, Draw)
    convert = lambda spec, a: a.astype(float) if is_draw(spec) else a
    return jax.tree.map(convert, call.args, args, is_leaf=is_draw)


def check_integers(name: str, kind: str):
    """The call on integers is that on the same numbers in floating point."""
    call = CALLS[name]
    args = drawn(call.args, kind)
    if call.integers == "refused":
        with pytest.raises(ValueError, match="expected"):
            call.f(*args)
        return
    converted = lambda *args: call.f(*as_floats(call, args))
    if call.integers == "promoted" and same_program(call.f, converted, args):
        return
    got, expected = call.f(*args), converted(*args)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if call.integers == "promoted":
            assert a.dtype == b.dtype, (a.dtype, b.dtype)
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-6, atol=1e-6)


SLOW = [name for name, call in CALLS.items() if call.slow or call.integers == "kept"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CALLS]
)
def test_bytes(name):
    check_integers(name, "uint8")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bool", "int8", "int32"])
@pytest.mark.parametrize("name", CALLS)
def test_integers(name, kind):
    check_integers(name, kind)


COMPLEX = (
    *("nn.max_pool", "nn.global_max_pool", "nn.batch_norm", "nn.layer_norm", "nn.self_attention"),
    *("nn.relu", "nn.softmax", "nn.gelu", "nn.sign", "nn.threshold", "nn.piecewise_linear"),
    *("nn.activations.leaky_relu", "nn.activations.elu", "nn.activations.rectified_monomial"),
    *("losses.half_squared_error", "losses.softmax_cross_entropy", "metrics.roc_auc"),
    *("metrics.r_squared", "metrics.top_k_accuracy", "metrics.recall", "data.rotated", "data.warp"),
    *("data.displace", "data.standardize", "generative.rbm.energy", "generative.rbm.free_energy"),
    *("generative.rbm.init", "generative.rbm.gibbs", "generative.dbm.mean_field"),
    *("generative.dbm.log_likelihood", "generative.dbm.statistics", "generative.dbn.log_joint"),
    "generative.units.bernoulli",
    *("generative.gan.discriminator_loss", "generative.gan.optimal_value"),
    *("signal.correlation_map", "signal.correlation_depth", "schedules.linear_decay"),
)


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_are_refused_where_an_order_is_needed(name):
    call = CALLS[name]
    with pytest.raises(ValueError, match=r"got dtype complex64, expected real numbers"):
        call.f(*drawn(call.args, "complex64"))


def test_complex_numbers_have_an_absolute_value():
    for z, slope in ((3.0 + 4.0j, 0.6 - 0.8j), (0j, 0j)):
        value, gradient = jax.value_and_grad(nn.activations.abs)(jnp.complex64(z))
        np.testing.assert_allclose([value, gradient], [abs(z), slope], rtol=1e-6)


def check_sums(name: str):
    call = CALLS[name]
    assert not halves_accumulated(call.f, drawn(call.args, ml_dtypes.bfloat16))


@pytest.mark.parametrize("name", WITH_HALVES)
def test_no_sum_is_formed_in_half_precision(name):
    check_sums(name)


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
    dtype = getattr(a, "dtype", np.dtype(object))
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


@pytest.mark.parametrize("name", QUICK_HALVES)
def test_bfloat16(name):
    check_half(name, ml_dtypes.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", WITH_HALVES)
def test_half_precision(name, half):
    check_half(name, HALVES[half])

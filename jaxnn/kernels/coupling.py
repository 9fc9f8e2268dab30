"""The guard of every per-example kernel: f must treat the examples of a batch independently."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxnn.errors import invalid
from jaxnn.jaxprs import fresh
from jaxnn.kernels.batch_axis import follow
from jaxnn.kernels.batch_layout import Batch, Lost, State, whole
from jaxnn.kernels.examples import num_examples
from jaxnn.types import Apply, Array, ArrayLike, Key, Params, PyTree, Shape


class Coupling(NamedTuple):
    """Whether examples of a batch meet in a function, and where.

    kind   "independent": no output of an example depends on another example; "coupled": data of
           different examples meet, or outputs are not one per example; "unknown": the batch could
           not be followed through
    where  the primitive and, where JAX knows it, the line of code at which examples first meet or
           are lost; empty if independent
    """

    kind: Literal["independent", "coupled", "unknown"]
    where: str


class Reading(NamedTuple):
    """What tracing a function on a batch tells: shapes of the outputs, and the coupling."""

    outputs: PyTree
    coupling: Coupling = Coupling("unknown", "")


def coupling(f: Apply, params: Params, x: PyTree) -> Coupling:
    """How f(params, x) couples the examples of x, found by following axis 0 of x through f.

    f is traced, not evaluated: the leaves of `params` and `x` may be `jax.ShapeDtypeStruct`s, and
    it works under `jit`. Every leaf of x is (N, ...), and so is every output. The answer is about
    data alone: what f does to row i may depend on i, as dropout with a fixed key does. Where data
    of different examples are combined the answer is "coupled", even if a factor 0 hides it. A
    single example is independent by definition.

    Errors: leaves of x without a common leading axis.

    >>> coupling(lambda w, x: jnp.tanh(x @ w), jnp.ones((3, 2)), jnp.ones((4, 3))).kind
    'independent'
    >>> coupling(lambda w, x: (x - x.mean(axis=0)) @ w, jnp.ones((3, 2)), jnp.ones((4, 3)))
    Coupling(kind='coupled', where='reduce_sum at ...')
    """
    return read(f, params, x).coupling


def read(f: Apply, params: Params, x: PyTree) -> Reading:
    """The shapes of what f(params, x) returns, and its `coupling`.

    >>> read(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.ones((4, 3))).outputs
    ShapeDtypeStruct(shape=(4, 2), dtype=float32)
    """
    size = num_examples("x", x)
    program, outputs = jax.make_jaxpr(fresh(f), return_shape=True)(params, x)
    return Reading(outputs, _followed(program, outputs, x, size))


def _followed(program: ClosedJaxpr, outputs: PyTree, x: PyTree, size: int) -> Coupling:
    if size <= 1:
        return Coupling("independent", "")
    arguments: list[State] = [None] * len(program.jaxpr.invars)
    examples = len(jax.tree.leaves(x))
    arguments[len(arguments) - examples :] = [whole(size)] * examples
    states = follow(program.jaxpr, arguments)
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    found = [
        _of_output(jax.tree_util.keystr(path), leaf.shape, state, size)
        for (path, leaf), state in zip(leaves, states, strict=True)
    ]
    for kind in ("coupled", "unknown"):
        for each in found:
            if each.kind == kind:
                return each
    return Coupling("independent", "")


def require_independent(
    f: Apply, params: Params, x: PyTree, reading: Reading | None = None, argument: str = "x"
) -> None:
    """Raise if f(params, x)[i] depends on other examples than x[i], or if that cannot be known.

    Decided by `coupling`, without evaluating f. Where that is "unknown", f on the batch is compared
    with f on each example alone, at `params` and at random parameters nearby, where what a zero
    hides shows (an output layer or a gate that is initialized to zero). This needs values: under a
    trace (`jit`, `vmap`, `grad`) an unknown coupling raises.

    Errors: f that couples examples, f that is not known to be free of it, leaves of x without a
    common leading axis.

    >>> centered = lambda w, x: (x - x.mean(axis=0)) * w
    >>> require_independent(centered, jnp.ones(2), jnp.array([[1.0, 2.0], [4.0, 3.0]]))
    Traceback (most recent call last):
    ValueError: f(params, x): got examples that meet in reduce_sum at ..., expected ... examples ...
    """
    kind, where = (read(f, params, x) if reading is None else reading).coupling
    if kind == "coupled":
        raise _dependent(f"examples that meet in {where}")
    if kind == "independent":
        return
    lost = f"a batch that cannot be followed past {where}"
    for point in (params, _nearby(params)):
        try:
            change = _change_when_alone(f, point, x)
        except (TypeError, ValueError) as error:
            raise _dependent(f"{lost}, by a function that fails on a single example") from error
        if change is None:
            raise invalid(
                "f(params, x)",
                got=f"{lost}, under a trace",
                expected=_EXPECTED,
                remedy="Call it outside jit, vmap and grad, where values can be compared; rewrite "
                "that line; or pass coupled=True for the general Jacobian of the batch.",
            )
        if change > 0:
            raise _dependent(
                f"outputs that change by {change:.2g} when each example is evaluated alone, and "
                f"{lost}"
            )


_EXPECTED = "a function that treats the examples of a batch independently"


def _dependent(got: str) -> ValueError:
    return invalid(
        "f(params, x)",
        got=got,
        expected=_EXPECTED,
        remedy="Normalizing layers need population statistics: stats = nn.calibrate(net, params, "
        "x), then partial(net.apply, stats=stats). Or pass coupled=True for the general Jacobian "
        "of the batch.",
    )


def _of_output(path: str, shape: Shape, state: State, size: int) -> Coupling:
    if isinstance(state, Lost):
        return Coupling(state.kind, state.where)
    if shape[:1] == (size,) and (state is None or state == whole(size)):
        return Coupling("independent", "")
    examples = state.examples if isinstance(state, Batch) else 0
    where = (
        f"the output f(params, x){path} of shape {shape}, which holds {examples} of {size} "
        "examples or has them elsewhere than along axis 0"
    )
    return Coupling("coupled", where)


def _nearby(params: Params) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))

    def moved(key: Key, leaf: ArrayLike) -> ArrayLike:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return leaf
        return leaf + 0.1 * jax.random.normal(key, jnp.shape(leaf), dtype)

    return jax.tree.unflatten(structure, map(moved, keys, leaves))


def _change_when_alone(f: Apply, params: Params, x: PyTree) -> float | None:
    """The largest difference between f on the batch and on each example; None under a trace."""

    def alone(example: PyTree) -> PyTree:
        outputs = f(params, jax.tree.map(lambda leaf: leaf[None], example))
        return jax.tree.map(lambda out: out[0], outputs)

    together, apart = jax.tree.leaves(f(params, x)), jax.tree.leaves(jax.lax.map(alone, x))
    try:
        return max((_change(a, b) for a, b in zip(together, apart, strict=True)), default=0.0)
    except jax.errors.TracerArrayConversionError:
        return None


def _change(a: Array, b: Array) -> float:
    """The largest |a - b|, or 0 where it can be rounding, below √ε max |a|. NaN equals NaN."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    u, v = np.asarray(a), np.asarray(b)
    same = (u == v) | ((u != u) & (v != v))
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return float(not same.all())
    u, v = u.astype(complex), v.astype(complex)
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.nan_to_num(np.abs(u - v), nan=np.inf))
    largest = np.max(np.abs(u), where=np.isfinite(u), initial=0.0)
    change = float(np.max(difference, initial=0.0))
    return change if change > float(jnp.finfo(a.dtype).eps) ** 0.5 * largest else 0.0

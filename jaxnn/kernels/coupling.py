"""The guard of every per-example kernel: f must treat the examples of a batch independently."""

from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from jaxnn.errors import invalid
from jaxnn.jaxprs import fresh
from jaxnn.kernels.batch_axis import Pair, follow
from jaxnn.kernels.batch_layout import Batch, Lost, State, whole
from jaxnn.kernels.evaluated_alone import change_when_alone
from jaxnn.kernels.examples import abstract, num_examples
from jaxnn.kernels.lockstep import firm
from jaxnn.types import Apply, ArrayLike, Key, Params, PyTree, Shape


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
    size = num_examples("x", x)
    if size <= 1:
        return Coupling("independent", "")
    program, outputs = jax.make_jaxpr(fresh(f), return_shape=True)(params, x)
    return _followed(Pair(program, size=size), outputs, x)


def read(f: Apply, params: Params, x: PyTree) -> Reading:
    """What f(params, x) returns, and how its rows depend on the batch.

    Beside what `coupling` says: "unknown" where the rows of the batch are not known to be, each,
    what f makes of that example alone. They are where the trace of f on one example has the
    equations of its trace on the batch, as `lockstep` compares them.

    >>> read(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.ones((4, 3)))
    Reading(outputs=ShapeDtypeStruct(shape=(4, 2), dtype=float32), coupling=Coupling(kind='ind...)
    """
    size = num_examples("x", x)
    program, outputs = jax.make_jaxpr(fresh(f), return_shape=True)(params, x)
    # JAX traces a function that it knows no second time, and neither is its trace read again.
    found = _READ.get(program.jaxpr)
    if found is None:
        found = _READ[program.jaxpr] = _compared(f, params, x, Pair(program, size=size), outputs)
    return Reading(outputs, found)


_READ: WeakKeyDictionary[Jaxpr, Coupling] = WeakKeyDictionary()


def _compared(f: Apply, params: Params, x: PyTree, programs: Pair, outputs: PyTree) -> Coupling:
    """Whether the rows of the trace on a batch are, each, the trace on one example alone."""
    if programs.size <= 1:
        return Coupling("independent", "")

    def beside(count: int, *, trusting: bool = False) -> Coupling:
        try:
            other = jax.make_jaxpr(fresh(f))(params, abstract(x, count))
        except Exception as error:  # whatever f raises at this size of the batch
            alone = "one example alone" if count == 1 else f"{count} examples"
            fails = f"{alone}, on which f raises {type(error).__name__}"
            return Coupling("unknown", fails)
        pair = programs._replace(other=other, other_size=count, trusting=trusting)
        return _followed(pair, outputs, x)

    alone = beside(1)
    if alone.kind == "independent":
        return alone
    # Whether examples meet is known from the trace of the batch.
    together = _followed(programs, outputs, x)
    if together.kind != "independent":
        return together
    # JAX writes some of its functions in another way for an axis of size 1: then the rows are
    # compared with those of a larger batch.
    larger = beside(programs.size + 1)
    trusted = beside(1, trusting=True) if larger.kind == "independent" else larger
    return trusted if trusted.kind == "independent" else alone._replace(kind="unknown")


def _followed(programs: Pair, outputs: PyTree, x: PyTree) -> Coupling:
    examples, size = len(jax.tree.leaves(x)), programs.size
    arguments: list[State] = [None] * len(programs.batch.jaxpr.invars)
    arguments[len(arguments) - examples :] = [whole(size)] * examples
    states = [firm(state) for state in follow(programs, arguments)]
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    found = [
        _of_output(jax.tree_util.keystr(path), leaf.shape, state, size)
        for (path, leaf), state in zip(leaves, states, strict=True)
    ]
    if programs.other is not None:
        found += [
            Coupling(
                "unknown",
                f"the output f(params, x){jax.tree_util.keystr(path)}, which is "
                "the same for any number of examples",
            )
            for (path, leaf), state in zip(leaves, states, strict=True)
            if state is None and 0 not in leaf.shape
        ]
    for kind in ("coupled", "unknown"):
        for each in found:
            if each.kind == kind:
                return each
    return Coupling("independent", "")


def require_independent(
    f: Apply,
    params: Params,
    x: PyTree,
    reading: Reading | None = None,
    argument: str = "f(params, x)",
) -> None:
    """Raise if f(params, x)[i] is not f(params, x[i : i + 1])[0], or if that cannot be known.

    Decided by `coupling`, without evaluating f. Where that is "unknown", f on the batch is compared
    with f on each example alone, values and gradients, at `params` and at random parameters nearby,
    where what a zero hides shows (an output layer or a gate that is initialized to zero). This
    needs values: under a trace (`jit`, `vmap`, `grad`) an unknown coupling raises.

    Errors: f that couples examples, f whose row i depends on i or on the size of the batch, f that
    is not known to be free of it, leaves of x without a common leading axis.

    >>> centered = lambda w, x: (x - x.mean(axis=0)) * w
    >>> require_independent(centered, jnp.ones(2), jnp.array([[1.0, 2.0], [4.0, 3.0]]))
    Traceback (most recent call last):
    ValueError: f(params, x): got examples that meet in reduce_sum at ..., expected ... examples ...
    >>> weighted = lambda w, x: jnp.array([1.0, 2.0]) * (x @ w)
    >>> require_independent(weighted, jnp.ones(2), jnp.array([[1.0, 2.0], [4.0, 3.0]]))
    Traceback (most recent call last):
    ValueError: f(params, x): got outputs that change by ... example is evaluated alone, ...
    """
    kind, where = (read(f, params, x) if reading is None else reading).coupling
    if kind == "coupled":
        raise _dependent(argument, f"examples that meet in {where}")
    if kind == "independent":
        return
    lost = f"a batch that cannot be followed past {where}"
    for point in (params, _nearby(params)):
        try:
            change = change_when_alone(f, point, x)
        except (TypeError, ValueError) as error:
            got = f"{lost}, by a function that fails on a single example"
            raise _dependent(argument, got) from error
        if change is None:
            raise invalid(
                argument,
                got=f"{lost}, under a trace",
                expected=_EXPECTED,
                remedy="Call it outside jit, vmap and grad, where values can be compared; rewrite "
                "that line; or pass coupled=True for the general Jacobian of the batch.",
            )
        if change:
            got = f"{change} when each example is evaluated alone, and {lost}"
            raise _dependent(argument, got)


_EXPECTED = "a function that treats the examples of a batch independently and alike"


def _dependent(argument: str, got: str) -> ValueError:
    return invalid(
        argument,
        got=got,
        expected=_EXPECTED,
        remedy="An array with a row for every example (a mask, weights, random keys) belongs into "
        "the input, x = (x, mask), and not into the closure or params. Normalizing layers need "
        "population statistics: stats = nn.calibrate(net, params, x), then partial(net.apply, "
        "stats=stats). Or pass coupled=True for the general Jacobian of the batch.",
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

"""Training: batches from a key, one compiled scan per chunk of steps, and a host that watches.

A step is a pure function of what it carries, written once (`_step`). The host starts chunks of
steps, reads one integer after each to see whether all of it was finite, and keeps the last state
that it can vouch for.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int

from jaxnn import tree
from jaxnn.errors import invalid
from jaxnn.types import Apply, Array, Key, Objective, Params, PyTree


class State(NamedTuple):
    """What a run carries besides the parameters: with them, it goes on as if it had not stopped.

    optimizer  the optimizer's own state
    key        the key of the first `fit`; a step's batch and noise depend on `key` and `step` alone
    step       the number of updates since the first `fit`
    """

    optimizer: PyTree
    key: Key | None
    step: Int[Array, ""]


class Progress(NamedTuple):
    """What the callback of `fit` is told after a chunk: `step` of `steps` updates are done.

    `loss` is the last one recorded, `validation` what was measured now: {} without such data, else
    "loss" and the metrics. A checkpoint is (params, state).
    """

    step: int
    steps: int
    loss: float
    validation: dict[str, Array]
    params: Params
    state: State


class Fit(NamedTuple):
    """What `fit` reached: `params` and `state` after `steps` updates, with their history.

    diverged     a loss or a parameter became NaN or infinite. `params` are the last ones that are
                 finite and whose objective is: the initial ones, if there are none
    interrupted  by Ctrl-C. `params` are those at the end of the last complete chunk
    """

    params: Params
    state: State
    history: dict[str, Array]
    steps: int
    diverged: bool
    interrupted: bool


def fit(
    f: Apply,
    params: Params,
    loss: Callable[..., Array],
    data: tuple[PyTree, ...],
    optimizer: Any,
    *,
    steps: int,
    batch_size: int | None = None,
    key: Key | None = None,
    state: State | None = None,
    regularizer: Objective | None = None,
    stochastic: bool = False,
    metrics: Mapping[str, Callable[..., Array]] | None = None,
    validation: tuple[PyTree, ...] | None = None,
    chunk: int | None = None,
    callback: Callable[[Progress], object] | None = None,
) -> Fit:
    """Minimize the mean loss over data by `steps` updates of an optimizer.

        θ_{t+1} = θ_t + u_t,   u_t = optimizer.update(∇J_t(θ_t), state, θ_t)
        J_t(θ) = mean over batch t of loss(f(θ, x), y)  +  regularizer(θ)

    `data` is (x, y), pytrees of arrays with N examples along their first axes. `loss(prediction,
    target)` returns one number per example, shape (N,), or their mean, shape (). `optimizer` has
    init(params) and update(grads, state, params), as jaxnn's and optax's do; an update that takes
    further keywords also gets `value`, `grad` and `value_fn`. With `stochastic`, f is also passed
    `key=`, a new one every step (dropout), except on validation data.

    A batch is all of the data, or, with `batch_size`, a part of a permutation that `key` draws anew
    for every epoch of N // batch_size steps; the remainder is left out of that epoch.

    `history` has an entry per step for "loss", with a regularizer for "objective" (J_t), and for
    each of `metrics`, functions like `loss`: all on batch t at θ_t, before the update. With
    `validation` data (x, y) it has an entry per chunk for "validation_step" (updates done by then),
    "validation_loss" and "validation_<metric>".

    Steps run in compiled chunks of `chunk` (by default `chunk_length`), with `callback` between
    them. Ctrl-C and divergence end a run early: see `Fit`. To continue a run, pass its params
    and `state=run.state`. `fit` runs on the host, never inside jit, vmap or grad. Calls with the
    same function objects and shapes share their compiled programs.

    Errors: parameters that are not real floating point, x and y of different length, steps, chunk
    or batch_size out of range, no key where one is needed, a key besides a state, a state of
    another optimizer, a loss of another shape, an optimizer without init and update.

    Source: Bottou, Curtis & Nocedal (2018), algorithm 4.1.

    >>> from jaxnn import losses, nn, optimizers
    >>> net = nn.dense(1)
    >>> params, _ = net.init(jax.random.key(0), (1,))
    >>> x = jnp.linspace(-1.0, 1.0, 8)[:, None]
    >>> run = fit(net.apply, params, losses.half_squared_error, (x, 3.0 * x),
    ...           optimizers.gradient_descent(0.5), steps=200, batch_size=2, key=jax.random.key(1))
    >>> print(f"{run.params['W'].item():.3f}", run.history["loss"].shape)
    3.000 (200,)
    """
    _require_optimizer(optimizer)
    tree.require_differentiable("fit(params)", params)
    examples = _require_examples("fit(data)", data)
    if validation is not None:
        _require_examples("fit(validation)", validation)
    params, data, validation, state = jax.tree.map(_strong, (params, data, validation, state))
    _require_at_least_one("fit(steps)", steps, "It is the number of updates.")
    if batch_size is not None and not 1 <= batch_size <= examples:
        raise invalid(
            "fit(batch_size)",
            got=batch_size,
            expected=f"an integer from 1 to the number of examples, {examples}",
            remedy="None takes all of the data in every step.",
        )
    epoch = 1 if batch_size is None else examples // batch_size
    chunk = chunk_length(steps, epoch) if chunk is None else chunk
    _require_at_least_one("fit(chunk)", chunk, "It is the number of steps between two callbacks.")
    metrics = {} if metrics is None else metrics
    _require_metric_names(metrics)

    if state is None:
        optimizer_state = jax.tree.map(_strong, optimizer.init(params))
        state = State(optimizer_state, key, jnp.zeros((), jnp.int32))
    else:
        _require_state(state, key, optimizer, params)
    if state.key is None and (stochastic or batch_size is not None):
        raise invalid(
            "fit(key)",
            got="none",
            expected="a key to draw mini-batches and noise from",
            remedy="Pass key=jax.random.key(seed), to the first fit if this one continues it.",
        )
    first = int(state.step)
    order = None if batch_size is None else _order(state.key, first // epoch, examples)
    carry = _Carry(params, state, order)
    problem = _Problem(
        f, loss, optimizer, regularizer, tuple(metrics.items()), batch_size, stochastic
    )

    infos, measurements, diverged, interrupted = [], [], False, False
    try:
        for done in range(0, steps, chunk):
            length = min(chunk, steps - done)
            end, info, kept = _advance(problem, length, carry, data)
            infos.append(info)
            if int(kept) < length:
                carry, diverged = _replay(problem, kept, carry, data), True
                break
            measured = {} if validation is None else _measure(problem, end.params, validation)
            measurements.append({"step": done + length, **measured})
            # All that is returned follows from this one assignment: Ctrl-C cannot cut it in two.
            carry = end
            if callback is not None:
                last = float(np.asarray(info["loss"])[-1])
                callback(Progress(done + length, steps, last, measured, end.params, end.state))
    except KeyboardInterrupt:
        interrupted = True
    taken = int(carry.state.step) - first
    history = _history(problem, infos, None if validation is None else measurements, taken)
    return Fit(carry.params, carry.state, history, taken, diverged, interrupted)


def chunk_length(steps: int, epoch: int = 1) -> int:
    """The number of steps that `fit` runs between two looks at them, for epochs of `epoch` steps.

    The smallest number from 100 to 1000 that divides `steps`, so that one program serves every
    chunk; if possible, one that is made of whole epochs. Without such a number, 100. Fewer than
    100 steps are one chunk.

    >>> chunk_length(1000), chunk_length(60 * 28, epoch=28), chunk_length(1009), chunk_length(30)
    (100, 112, 100, 30)
    """
    divisors = [n for n in range(100, 1001) if steps % n == 0]
    whole_epochs = [n for n in divisors if n % epoch == 0]
    return [*whole_epochs, *divisors, min(steps, 100)][0]


class _Problem(NamedTuple):
    """All that is static in a step. It is hashed: the same functions compile once."""

    f: Apply
    loss: Callable[..., Array]
    optimizer: Any
    regularizer: Objective | None
    metrics: tuple[tuple[str, Callable[..., Array]], ...]
    batch_size: int | None
    stochastic: bool


class _Carry(NamedTuple):
    """`order` is the permutation of the epoch that `state.step` is in; None without batches."""

    params: Params
    state: Any
    order: Any


@partial(jax.jit, static_argnums=(0, 1))
def _advance(
    problem: _Problem, length: int, start: _Carry, data: PyTree
) -> tuple[_Carry, dict[str, Array], Array]:
    """`length` steps: their end, what they recorded, and how many of them can be kept at most.

    All can be kept if every objective, the next one included, and the last parameters are finite.
    """
    end, (objectives, infos) = lax.scan(
        lambda carry, _: _step(problem, carry, data), start, length=length
    )
    following, _ = _objective(problem, end, data, end.params)
    finite = jnp.isfinite(jnp.append(objectives, following))
    # The update before the first objective that is not finite is the one to take back.
    kept = jnp.where(
        jnp.all(finite),
        jnp.where(tree.all_finite(end.params), length, length - 1),
        jnp.maximum(jnp.argmin(finite) - 1, 0),
    )
    return end, infos, kept.astype(jnp.int32)


@partial(jax.jit, static_argnums=0)
def _replay(problem: _Problem, limit: Array, start: _Carry, data: PyTree) -> _Carry:
    """Up to `limit` of the steps that `_advance` made, and none whose parameters are not finite."""

    def repeat(loop: tuple[_Carry, Array]) -> tuple[_Carry, Array]:
        before, _ = loop
        after, _ = _step(problem, before, data)
        finite = tree.all_finite(after.params)
        return lax.cond(finite, lambda: after, lambda: before), finite

    def unfinished(loop: tuple[_Carry, Array]) -> Array:
        carry, finite = loop
        return finite & (carry.state.step - start.state.step < limit)

    return lax.while_loop(unfinished, repeat, (start, jnp.array(True)))[0]


@partial(jax.jit, static_argnums=2)
def _order(key: Key, epoch: Array, examples: int) -> Array:
    order_key, _ = jax.random.split(key)
    indices = jnp.arange(examples, dtype=jnp.int32)
    return jax.random.permutation(jax.random.fold_in(order_key, epoch), indices)


def _step(
    problem: _Problem, carry: _Carry, data: PyTree
) -> tuple[_Carry, tuple[Array, dict[str, Array]]]:
    params, (optimizer_state, key, step), order = carry
    objective = partial(_objective, problem, carry, data)
    (value, info), grads = jax.value_and_grad(objective, has_aux=True)(params)
    extra = {}
    if _takes_keywords(problem.optimizer.update):
        extra = {"value": value, "grad": grads, "value_fn": lambda params: objective(params)[0]}
    updates, optimizer_state = problem.optimizer.update(grads, optimizer_state, params, **extra)
    step = step + 1
    if problem.batch_size is not None:
        epoch = order.size // problem.batch_size
        order = lax.cond(
            step % epoch == 0, lambda: _order(key, step // epoch, order.size), lambda: order
        )
    after = _Carry(tree.add(params, updates), State(optimizer_state, key, step), order)
    return after, (value, info)


def _objective(
    problem: _Problem, carry: _Carry, data: PyTree, params: Params
) -> tuple[Array, dict[str, Array]]:
    """J at `params`, with the batch and the noise of the step at which `carry` stands."""
    _, (_, key, step), order = carry
    if problem.batch_size is not None:
        start = step % (order.size // problem.batch_size) * problem.batch_size
        rows = lax.dynamic_slice_in_dim(order, start, problem.batch_size)
        data = jax.tree.map(
            lambda a: a.at[rows].get(mode="promise_in_bounds", unique_indices=True), data
        )
    noise = {}
    if problem.stochastic:
        _, noise_key = jax.random.split(key)
        noise = {"key": jax.random.fold_in(noise_key, step)}
    info = _measure(problem, params, data, **noise)
    value = info["loss"]
    if problem.regularizer is not None:
        penalty = problem.regularizer(params)
        if jnp.shape(penalty) != ():
            raise invalid(
                "fit(regularizer): its value",
                got=f"shape {jnp.shape(penalty)}",
                expected="a scalar",
                remedy="Sum it over all parameters.",
            )
        value = value + jnp.asarray(penalty, value.dtype)
        info["objective"] = value
    return value, info


@partial(jax.jit, static_argnums=0)
def _measure(problem: _Problem, params: Params, data: PyTree, **noise: Key) -> dict[str, Array]:
    """The means over `data` of the loss and of every metric."""
    x, y = data
    prediction = problem.f(params, x, **noise)
    examples = jax.tree.leaves(data)[0].shape[0]
    means = {}
    for name, function in (("loss", problem.loss), *problem.metrics):
        values = function(prediction, y)
        if jnp.shape(values) not in ((), (examples,)):
            raise invalid(
                f"fit({'loss' if name == 'loss' else f'metrics[{name!r}]'}): its value",
                got=f"shape {jnp.shape(values)}",
                expected=f"({examples},), a number per example, or () for their mean",
                remedy="Sum over outputs, and give prediction and target equal shapes: (N, 1) "
                "against (N,) broadcasts to (N, N).",
            )
        if name == "loss":
            tree.require_differentiable("fit(loss): its value", values)
        means[name] = jnp.mean(values)
    return means


def _history(
    problem: _Problem,
    infos: list[dict[str, Array]],
    measurements: list[dict[str, Any]] | None,
    taken: int,
) -> dict[str, Array]:
    """What belongs to the first `taken` steps; put together by NumPy, which compiles nothing."""

    def joined(records: list[dict[str, Any]], name: str) -> np.ndarray:
        return np.concatenate([np.atleast_1d(r[name]) for r in records] or [np.zeros(0)])

    names = ["loss", *(name for name, _ in problem.metrics)]
    per_step = names if problem.regularizer is None else ["objective", *names]
    history = {name: joined(infos, name)[:taken] for name in per_step}
    if measurements is not None:
        # The chunk in which a run diverged was not measured, one cut short by Ctrl-C may have been.
        kept = [m for m in measurements if m["step"] <= taken]
        history |= {f"validation_{name}": joined(kept, name) for name in ("step", *names)}
    return jax.device_put(history)


def _strong(leaf: Any) -> Array:
    """An array with a dtype of its own: a weak one would change in the loop, and compile twice."""
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _takes_keywords(function: Callable) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def _require_optimizer(optimizer: Any) -> None:
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise invalid(
            "fit(optimizer)",
            got=f"{type(optimizer).__name__} without init and update",
            expected="a pair of functions init(params) and update(grads, state, params)",
            remedy="Call its constructor: optimizers.adam(1e-3), optax.adam(1e-3).",
        )


def _require_examples(argument: str, data: Any) -> int:
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise invalid(
            argument,
            got=f"{type(data).__name__}",
            expected="a pair (x, y)",
            remedy="Without targets, pass (x, None).",
        )
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise invalid(
            argument,
            got=f"shapes {', '.join(map(str, shapes))}",
            expected="the same number of examples, at least one, along the first axis of each",
            remedy="The batch axis comes first in x and y.",
        )
    ((examples,),) = lengths
    return examples


def _require_at_least_one(argument: str, value: int, remedy: str) -> None:
    if value < 1:
        raise invalid(argument, got=value, expected="an integer ≥ 1", remedy=remedy)


def _require_metric_names(metrics: Mapping[str, Any]) -> None:
    for name in metrics:
        if name in ("loss", "objective") or name.startswith("validation_"):
            raise invalid(
                "fit(metrics)",
                got=f"the name {name!r}",
                expected="a name that the history does not use itself",
                remedy="Choose another name.",
            )


def _require_state(state: State, key: Key | None, optimizer: Any, params: Params) -> None:
    if key is not None:
        raise invalid(
            "fit(key)",
            got="a key and a state",
            expected="one of them",
            remedy="A continued run draws from the key in its state.",
        )

    def space(x: PyTree) -> tuple:
        leaves, structure = jax.tree.flatten(x)
        return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]

    fresh = jax.eval_shape(optimizer.init, params)
    if not isinstance(state, State) or space(state.optimizer) != space(fresh):
        raise invalid(
            "fit(state)",
            got="a state that this optimizer does not have for these params",
            expected="the state of a Fit with the same optimizer",
            remedy="Pass state=run.state and run.params, or no state to begin anew.",
        )

"""A run of compiled chunks of steps, and a host that watches: `fit`.

The host starts chunks of steps, reads one integer after each to see whether all of it was finite,
and keeps the last state that it can vouch for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn import tree
from jaxnn.errors import invalid, require_optimizer
from jaxnn.jaxprs import Snapshot, snapshot
from jaxnn.minibatches import require_at_least_one, require_batch_size
from jaxnn.training.steps import (
    Carry,
    Problem,
    State,
    first_order,
    initial_state,
    measure,
    one_step,
    require_key,
    require_pair,
    require_steps,
)
from jaxnn.types import Apply, Array, Key, Objective, Params, PyTree


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

    stopped      by the callback, which returned True
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
    stopped: bool


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
    unroll: int = 1,
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
    them, which ends the run by returning True (see `EarlyStopping`). Ctrl-C and divergence end a
    run early as well: see `Fit`. To continue a run, pass its params
    and `state=run.state`. `fit` runs on the host, never inside jit, vmap or grad. Calls whose
    functions compute the same, at equal shapes, share their compiled programs; a function that has
    changed since the last call (an attribute, a captured array) is compiled again.

    A chunk is a loop over bodies of `unroll` steps, and none with `unroll` = `chunk`, say 4. On a
    CPU that is worth its compilation for convolutions, whose gradients take 3 to 20 times as long
    inside a loop as outside (XLA rearranges them for speed only there; JAX issue 12868).

    Errors: parameters that are not real floating point, x and y of different length, steps, chunk,
    unroll or batch_size out of range, no key where one is needed, a key besides a state, a state of
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
    require_optimizer("fit(optimizer)", optimizer)
    tree.require_differentiable("fit(params)", params)
    examples = require_pair("fit(data)", data)
    if validation is not None:
        require_pair("fit(validation)", validation)
    params, data, validation, state = tree.strong((params, data, validation, state))
    require_batch_size("fit(batch_size)", batch_size, examples)
    require_steps("fit(steps)", steps)
    epoch = 1 if batch_size is None else examples // batch_size
    chunk = chunk_length(steps, epoch) if chunk is None else chunk
    require_at_least_one("fit(chunk)", chunk, "It is the number of steps between two callbacks.")
    require_at_least_one("fit(unroll)", unroll, "It is the number of steps in a loop's body.")
    metrics = {} if metrics is None else metrics
    _require_metric_names(metrics)

    if state is None:
        state = initial_state(params, optimizer, key)
    else:
        _require_state(state, key, optimizer, params)
    require_key("fit(key)", state.key, stochastic or batch_size is not None)
    first = int(state.step)
    require_steps("fit(steps)", steps, first)
    order = None if batch_size is None else first_order(state.key, first // epoch, examples)
    carry = Carry(params, state, order)
    problem = Problem(
        f, loss, optimizer, regularizer, tuple(metrics.items()), batch_size, stochastic
    )
    infos, measurements = [], []
    diverged = interrupted = stopped = False
    try:
        step = snapshot(partial(one_step, problem), carry, data, order=0)
        look = partial(measure, problem)
        if validation is not None:
            look = snapshot(look, params, validation, order=0)
        for done in range(0, steps, chunk):
            length = min(chunk, steps - done)
            end, info, kept = _advance(step, length, unroll, carry, data)
            infos.append(info)
            if int(kept) < length:
                carry, diverged = _replay(step, kept, carry, data), True
                break
            measured = {} if validation is None else _measured(look, end.params, validation)
            measurements.append({"step": done + length, **measured})
            # All that is returned follows from this one assignment: Ctrl-C cannot cut it in two.
            carry = end
            if callback is not None:
                last = float(np.asarray(info["loss"])[-1])
                progress = Progress(done + length, steps, last, measured, end.params, end.state)
                stopped = callback(progress) is True
                if stopped:
                    break
    except KeyboardInterrupt:
        interrupted = True
    taken = int(carry.state.step) - first
    history = _history(problem, infos, None if validation is None else measurements, taken)
    return Fit(carry.params, carry.state, history, taken, diverged, interrupted, stopped)


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


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    step: Snapshot, length: int, unroll: int, start: Carry, data: PyTree
) -> tuple[Carry, dict[str, Array], Array]:
    """`length` steps: their end, what they recorded, and how many of them can be kept at most.

    All can be kept if every objective, the next one included, and the last parameters are finite.
    """
    end, (objectives, infos) = lax.scan(
        lambda carry, _: step(carry, data), start, length=length, unroll=unroll
    )
    _, (following, _) = step(end, data)  # the update is not used, so XLA leaves it out
    finite = jnp.isfinite(jnp.append(objectives, following))
    # The update before the first objective that is not finite is the one to take back.
    kept = jnp.where(
        jnp.all(finite),
        jnp.where(tree.all_finite(end.params), length, length - 1),
        jnp.maximum(jnp.argmin(finite) - 1, 0),
    )
    return end, infos, kept.astype(jnp.int32)


@partial(jax.jit, static_argnums=0)
def _replay(step: Snapshot, limit: Array, start: Carry, data: PyTree) -> Carry:
    """Up to `limit` of the steps that `_advance` made, and none whose parameters are not finite."""

    def repeat(loop: tuple[Carry, Array]) -> tuple[Carry, Array]:
        before, _ = loop
        after, _ = step(before, data)
        finite = tree.all_finite(after.params)
        return lax.cond(finite, lambda: after, lambda: before), finite

    def unfinished(loop: tuple[Carry, Array]) -> Array:
        carry, finite = loop
        return finite & (carry.state.step - start.state.step < limit)

    return lax.while_loop(unfinished, repeat, (start, jnp.array(True)))[0]


@partial(jax.jit, static_argnums=0)
def _measured(look: Snapshot, params: Params, validation: PyTree) -> dict[str, Array]:
    return look(params, validation)


def _history(
    problem: Problem,
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

    fresh = jax.eval_shape(lambda params: optimizer.init(params), params)
    if not isinstance(state, State) or space(state.optimizer) != space(fresh):
        raise invalid(
            "fit(state)",
            got="a state that this optimizer does not have for these params",
            expected="the state of a Fit with the same optimizer",
            remedy="Pass state=run.state and run.params, or no state to begin anew.",
        )

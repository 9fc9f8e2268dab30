"""Training steps as one compiled scan: batches from a key, and a stop at what is not finite.

All of it is a pure function, so a whole training run can be under `jit` and `vmap`: over seeds,
starting points, data sets.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Int

from jaxnn import tree
from jaxnn.errors import invalid, takes_keywords
from jaxnn.minibatches import (
    examples_at,
    order_at,
    require_at_least_one,
    require_batch_size,
    rows_at,
    shuffled,
)
from jaxnn.types import Array, Key, Objective, Params, PyTree


class State(NamedTuple):
    """What a run carries besides the parameters: with them, it goes on as if it had not stopped.

    optimizer  the state of the optimizer, or of both players' optimizers
    chains     persistent samples of the model; None without them
    key        a step's batch and noise depend on `key` and `step` alone
    step       the number of updates made
    """

    optimizer: PyTree
    chains: PyTree
    key: Key
    step: Int[Array, ""]


class Fit(NamedTuple):
    """What a run reached.

    params    after the last step; if it diverged, the last ones that are finite
    state     a `State` to go on from, with `params`; of a stack, one per machine
    history   arrays with an entry per step, measured before its update; NaN once diverged
    diverged  whether an update would have made a parameter NaN or infinite
    """

    params: Params
    state: Any
    history: dict[str, Array]
    diverged: Bool[Array, "..."]


Step = Callable[[Params, State, Array, Key], tuple[Params, State, dict[str, Array]]]
"""(params, state, batch, key) ↦ the next params and state, and what to record.

`State.key` and `State.step` are kept by `run`.
"""


def run(
    step: Step, params: Params, state: State, x: Array, *, steps: int, batch_size: int | None
) -> Fit:
    """Repeat a step on batches of `x`, parts of a permutation that is drawn anew for every epoch.

    An epoch is N // batch_size steps, the remainder is left out of it; a `batch_size` of None
    takes all of the data in every step. After an update that is not finite nothing moves anymore.

    Errors: a number of steps below 1, a batch size outside [1, N].

    >>> def toward_mean(params, state, batch, key):
    ...     return params + 0.5 * (batch.mean(0) - params), state, {"mean": batch.mean()}
    >>> state = State((), None, jax.random.key(0), jnp.zeros((), jnp.int32))
    >>> x = jnp.arange(4.0)[:, None]
    >>> fit = run(toward_mean, jnp.zeros(1), state, x, steps=20, batch_size=None)
    >>> print(fit.params, fit.history["mean"].shape, fit.diverged)
    [1.4999986] (20,) False
    """
    examples = x.shape[0]
    require_at_least_one("fit(steps)", steps, "It counts updates.")
    require_batch_size("fit(batch_size)", batch_size, examples)
    order_key, step_key, _ = jax.random.split(state.key, 3)

    def advance(carry: Any, _: None) -> tuple[Any, dict[str, Array]]:
        params, state, order, diverged = carry
        batch = x
        if batch_size is not None:
            batch = examples_at(x, rows_at(order, state.step, batch_size))
        key = jax.random.fold_in(step_key, state.step)
        moved, following, info = step(params, state, batch, key)
        following = following._replace(key=state.key, step=state.step + 1)
        diverged = diverged | ~tree.all_finite(moved)
        # A key is no number to choose between, and is the same in both.
        following, before = following._replace(key=None), state._replace(key=None)
        keep = lambda old, new: jnp.where(diverged, old, new)
        params, following = jax.tree.map(keep, (params, before), (moved, following))
        following = following._replace(key=state.key)
        info = {n: jnp.where(diverged, jnp.full_like(a, jnp.nan), a) for n, a in info.items()}
        if batch_size is not None:
            order = order_at(order, order_key, following.step, batch_size)
        return (params, following, order, diverged), info

    order = None
    if batch_size is not None:
        order = shuffled(order_key, state.step // (examples // batch_size), examples)
    carry, history = lax.scan(advance, (params, state, order, jnp.zeros((), bool)), length=steps)
    params, state, _, diverged = carry
    return Fit(params, state, history, diverged)


def begin(
    caller: str,
    init: Callable[[Params], PyTree],
    params: Params,
    key: Key | None,
    state: State | None,
) -> State:
    """The state to start from: the one given, or that of a run which has made no step yet.

    `init` is that of the optimizer. Errors: neither a key nor a state, or both, in the name of the
    caller.

    >>> from jaxnn import optimizers
    >>> descent = optimizers.gradient_descent(0.1)
    >>> begin("fit", descent.init, jnp.ones(2), jax.random.key(0), None).step
    Array(0, dtype=int32)
    """
    if state is not None and key is None:
        return state
    if key is None or state is not None:
        raise invalid(
            f"{caller}(key)",
            got="neither a key nor a state" if key is None else "a key and a state",
            expected="one of them",
            remedy="Begin with key=jax.random.key(seed), go on with state=run.state.",
        )
    return State(init(params), None, key, jnp.zeros((), jnp.int32))


def chain_key(state: State) -> Key:
    """The key that persistent chains are begun with; no step draws from it.

    >>> state = State((), None, jax.random.key(0), jnp.zeros((), jnp.int32))
    >>> bool(chain_key(state) == state.key)
    False
    """
    return jax.random.split(state.key, 3)[2]


def descend(
    optimizer: Any, params: Params, optimizer_state: PyTree, grads: Params, objective: Objective
) -> tuple[Params, PyTree]:
    """The params after an optimizer's step, and its next state.

    `grads` is the gradient of the objective at the params. An optimizer whose update takes further
    keywords is also passed `value`, `grad` and `value_fn`, as by `training.fit`.

    >>> from jaxnn import optimizers
    >>> descent, w = optimizers.gradient_descent(0.5), jnp.ones(2)
    >>> descend(descent, w, descent.init(w), jnp.ones(2), jnp.sum)[0]
    Array([0.5, 0.5], dtype=float32)
    """
    extra = {}
    if takes_keywords(optimizer.update):
        extra = {"value": objective(params), "grad": grads, "value_fn": objective}
    updates, optimizer_state = optimizer.update(grads, optimizer_state, params, **extra)
    return tree.add(params, updates), optimizer_state

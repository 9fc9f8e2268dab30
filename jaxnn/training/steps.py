"""One step of training as a pure function, and a run of them as one scan.

A step is a function of what it carries, written once (`one_step`): `fit` watches chunks of it from
the host, and `descend` is a whole run for use inside jit, vmap and grad.
"""

from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from jaxnn import tree
from jaxnn.errors import invalid, require_examples, require_optimizer, takes_keywords
from jaxnn.minibatches import (
    examples_at,
    order_at,
    require_batch_size,
    rows_at,
    shuffled,
)
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


def initial_state(params: Params, optimizer: Any, key: Key | None = None) -> State:
    """The state of a run that has made no step, and the form of one to be loaded.

    >>> from jaxnn import optimizers
    >>> int(initial_state(jnp.zeros(2), optimizers.adam(0.1)).step)
    0
    """
    require_optimizer("fit(optimizer)", optimizer)
    return State(tree.strong(optimizer.init(params)), key, jnp.zeros((), jnp.int32))


def descend(
    f: Apply,
    params: Params,
    loss: Callable[..., Array],
    data: tuple[PyTree, ...],
    optimizer: Any,
    *,
    steps: int,
    batch_size: int | None = None,
    key: Key | None = None,
    regularizer: Objective | None = None,
    stochastic: bool = False,
) -> tuple[Params, Float[Array, "steps"]]:
    """The parameters after so many steps, and the loss before each: `fit` as one pure function.

    For use inside jit, vmap and grad: over keys, seeds, learning rates, masks, data of one shape.
    Arguments mean what they mean to `fit`, whose parameters and losses these are, up to the
    compiler's rounding. Nobody watches: a run that diverges ends in NaN.

    Errors: those of `fit`.

    >>> from jaxnn import losses, optimizers
    >>> x = jnp.linspace(-1.0, 1.0, 8)[:, None]
    >>> def slope(rate):
    ...     start, descent = jnp.zeros((1, 1)), optimizers.gradient_descent(rate)
    ...     f = lambda w, x: x @ w
    ...     w, _ = descend(f, start, losses.half_squared_error, (x, 3.0 * x), descent, steps=50)
    ...     return w.sum()
    >>> print("{:.3f} {:.3f}".format(*jax.vmap(slope)(jnp.array([0.0, 0.5]))))
    0.000 3.000
    """
    tree.require_differentiable("descend(params)", params)
    examples = require_pair("descend(data)", data)
    require_steps("descend(steps)", steps)
    require_batch_size("descend(batch_size)", batch_size, examples)
    params, data = tree.strong((params, data))
    state = initial_state(params, optimizer, key)
    require_key("descend(key)", key, stochastic or batch_size is not None)
    problem = Problem(f, loss, optimizer, regularizer, (), batch_size, stochastic)
    start = Carry(params, state, None if batch_size is None else first_order(key, 0, examples))
    end, (_, infos) = lax.scan(lambda carry, _: one_step(problem, carry, data), start, length=steps)
    return end.params, infos["loss"]


class Problem(NamedTuple):
    """All that is static in a step: functions, and numbers that set shapes."""

    f: Apply
    loss: Callable[..., Array]
    optimizer: Any
    regularizer: Objective | None
    metrics: tuple[tuple[str, Callable[..., Array]], ...]
    batch_size: int | None
    stochastic: bool


class Carry(NamedTuple):
    """`order` is the permutation of the epoch that `state.step` is in; None without batches."""

    params: Params
    state: Any
    order: Any


@partial(jax.jit, static_argnums=2)
def first_order(key: Key, epoch: Any, examples: int) -> Array:
    """The order of the examples in the epoch that a run begins in."""
    return shuffled(_order_key(key), epoch, examples)


def one_step(
    problem: Problem, carry: Carry, data: PyTree
) -> tuple[Carry, tuple[Array, dict[str, Array]]]:
    """One update, with the objective before it and what is recorded of it."""
    params, (optimizer_state, key, step), order = carry
    objective = partial(objective_of, problem, carry, data)
    (value, info), grads = jax.value_and_grad(objective, has_aux=True)(params)
    extra = {}
    if takes_keywords(problem.optimizer.update):
        extra = {"value": value, "grad": grads, "value_fn": lambda params: objective(params)[0]}
    updates, optimizer_state = problem.optimizer.update(grads, optimizer_state, params, **extra)
    step = step + 1
    if problem.batch_size is not None:
        order = order_at(order, _order_key(key), step, problem.batch_size)
    after = Carry(tree.add(params, updates), State(optimizer_state, key, step), order)
    return after, (value, info)


def objective_of(
    problem: Problem, carry: Carry, data: PyTree, params: Params
) -> tuple[Array, dict[str, Array]]:
    """J at `params`, with the batch and the noise of the step at which `carry` stands."""
    _, (_, key, step), order = carry
    if problem.batch_size is not None:
        rows = rows_at(order, step, problem.batch_size)
        data = examples_at(data, rows)
    noise = {}
    if problem.stochastic:
        _, noise_key = jax.random.split(key)
        noise = {"key": jax.random.fold_in(noise_key, step)}
    info = measure(problem, params, data, **noise)
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


def measure(problem: Problem, params: Params, data: PyTree, **noise: Key) -> dict[str, Array]:
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


def _order_key(key: Key) -> Key:
    return jax.random.split(key)[0]


def require_pair(argument: str, data: Any) -> int:
    """The number of examples of (x, y); raises unless it is one number, at least 1."""
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise invalid(
            argument,
            got=f"{type(data).__name__}",
            expected="a pair (x, y)",
            remedy="Without targets, pass (x, None).",
        )
    return require_examples(argument, data, remedy="The batch axis comes first in x and y.")


def require_steps(argument: str, steps: int, first: int = 0) -> None:
    """Raise unless `steps` updates after the `first` can be counted, in int32.

    >>> require_steps("fit(steps)", 2**31)
    Traceback (most recent call last):
    ValueError: fit(steps): got 2147483648, expected an integer from 1 to 2147483647. ...
    """
    last = int(jnp.iinfo(jnp.int32).max)
    if not isinstance(steps, Integral) or not 1 <= steps <= last - first:
        raise invalid(
            argument,
            got=repr(steps) + (f" after {first} earlier ones" if first else ""),
            expected=f"an integer from 1 to {last - first}",
            remedy="It is the number of updates; all updates of a run are counted in int32.",
        )


def require_key(argument: str, key: Key | None, needed: bool) -> None:
    """Raise where a key is needed and there is none."""
    if key is None and needed:
        raise invalid(
            argument,
            got="none",
            expected="a key to draw mini-batches and noise from",
            remedy="Pass key=jax.random.key(seed), to the first fit if this one continues it.",
        )

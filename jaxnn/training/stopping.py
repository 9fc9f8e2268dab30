"""Callbacks of `fit`: when to stop, and several at once."""

import math
from collections.abc import Callable
from typing import NamedTuple

from jaxnn.errors import invalid
from jaxnn.training.fitting import Progress
from jaxnn.training.steps import State
from jaxnn.types import Params


class Best(NamedTuple):
    """The best look at validation data so far: its value, and what was reached then.

    `waited` is the number of looks since then.
    """

    value: float
    step: int
    params: Params
    state: State
    waited: int


class EarlyStopping:
    """A callback that ends a run once validation has not improved for `patience` looks.

    A look is a chunk of `fit`, which has to have `validation` data: `chunk` says how often. What
    counts is the smallest validation loss or, with `metric` and `larger_is_better`, another number
    there; it has to improve by more than `min_delta`, and every number improves on NaN. What is
    wanted is `best.params`, not the last ones of the run; as they are chosen by the validation
    data, report them on test data.

    `best` is all that is remembered: to go on after a crash, put it into the checkpoint beside the
    run, and into the new object.

    Errors: a patience below 1, a negative min_delta, a run without validation data, or without
    the metric.

    Source: Prechelt (1998), criterion UP, with patience for its strips.

    >>> import jax.numpy as jnp
    >>> from jaxnn import losses, optimizers, training
    >>> x = jnp.array([[1.0], [2.0]])
    >>> stopping = EarlyStopping(patience=3)
    >>> run = training.fit(
    ...     lambda w, x: x @ w, jnp.zeros((1, 1)), losses.half_squared_error, (x, 2.0 * x),
    ...     optimizers.gradient_descent(0.1), steps=100, chunk=1, validation=(x, 1.0 * x),
    ...     callback=stopping)
    >>> run.stopped, run.steps, stopping.best.step
    (True, 5, 2)
    """

    best: Best | None

    def __init__(
        self,
        patience: int,
        *,
        metric: str = "loss",
        larger_is_better: bool = False,
        min_delta: float = 0.0,
        best: Best | None = None,
    ):
        if patience < 1 or not min_delta >= 0:
            raise invalid(
                "EarlyStopping(patience, min_delta)",
                got=f"{patience}, {min_delta}",
                expected="an integer ≥ 1, and a number ≥ 0",
                remedy="A patience of 1 stops at the first look that is no better.",
            )
        self.patience = patience
        self.metric = metric
        self.larger_is_better = larger_is_better
        self.min_delta = min_delta
        self.best = best

    def __call__(self, progress: Progress) -> bool:
        """Whether to stop, after a look at `progress.validation`."""
        if self.metric not in progress.validation:
            raise invalid(
                "EarlyStopping(metric)",
                got=f"{self.metric!r}, of {list(progress.validation)}",
                expected="a number that fit measures on validation data",
                remedy="Pass validation=(x, y), and the metric, to fit.",
            )
        value = float(progress.validation[self.metric])
        if self.best is None or self._improves(value, self.best.value):
            step = int(progress.state.step)
            self.best = Best(value, step, progress.params, progress.state, 0)
        else:
            self.best = self.best._replace(waited=int(self.best.waited) + 1)
        return int(self.best.waited) >= self.patience

    def _improves(self, value: float, best: float) -> bool:
        if math.isnan(value) or math.isnan(best):
            return math.isnan(best) and not math.isnan(value)
        gain = value - best if self.larger_is_better else best - value
        return gain > self.min_delta


def each(*callbacks: Callable[[Progress], object]) -> Callable[[Progress], bool]:
    """One callback that calls all of them in turn, and stops the run if any of them says so.

    >>> both = each(lambda progress: None, lambda progress: progress.step == 8)
    >>> [both(Progress(step, 20, 0.5, {}, None, None)) for step in (4, 8)]
    [False, True]
    """

    def call(progress: Progress) -> bool:
        answers = [callback(progress) for callback in callbacks]
        return any(answer is True for answer in answers)

    return call

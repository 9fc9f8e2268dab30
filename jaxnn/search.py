"""Hyperparameters chosen by grid or at random: trials, their results as a table.

Trials are a dict from a hyperparameter's name to its values, one per trial. What is measured is a
pure function measure(key, **hyperparameters), mapped over all trials and seeds at once; build it on
`training.descend`. What sets shapes (a width) is named in `static` and looped over.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn import tree
from jaxnn.errors import invalid, require_between
from jaxnn.types import Array, Key

Trials: TypeAlias = dict[str, np.ndarray]
Sampler: TypeAlias = Callable[[Key, int], Array | np.ndarray]


class Results(NamedTuple):
    """What was measured: `values` (trials, seeds), NaN where a run diverged, and its `trials`."""

    trials: Trials
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The means over seeds, (trials,)."""
        return np.mean(self.values, axis=1)

    def best(self, *, larger_is_better: bool = False) -> dict[str, Any]:
        """The hyperparameters of the best mean; a trial with a NaN is never the best.

        Its value is biased, as it was chosen among many: measure it again on other data.

        Errors: a NaN in every trial.
        """
        return {name: values[self._order(larger_is_better)[0]] for name, values in self._rows()}

    def table(self, *, larger_is_better: bool = False, rows: int | None = None) -> str:
        """A text table, best first: hyperparameters, mean, and standard error where it can be."""
        order = self._order(larger_is_better, strict=False)[:rows]
        num_seeds = self.values.shape[1]
        names = [*self.trials, "mean", *(["±"] if num_seeds > 1 else [])]
        lines = [names]
        for i in order:
            numbers: list[Any] = [*(values[i] for _, values in self._rows()), self.mean[i]]
            if num_seeds > 1:
                numbers.append(np.std(self.values[i], ddof=1) / math.sqrt(num_seeds))
            lines.append([_text(number) for number in numbers])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    def _rows(self) -> list[tuple[str, np.ndarray]]:
        return list(self.trials.items())

    def _order(self, larger_is_better: bool, strict: bool = True) -> np.ndarray:
        if strict and np.isnan(self.mean).all():
            raise invalid(
                "Results.best",
                got="a NaN in every trial",
                expected="a trial whose every seed was measured",
                remedy="Search smaller learning rates.",
            )
        return np.argsort(-self.mean if larger_is_better else self.mean, kind="stable")


def grid(**axes: Sequence[Any]) -> Trials:
    """All combinations of the given values, the last name varying fastest.

    Values may be anything: numbers of one type become an array of that type, all else (tuples,
    None, functions, names) is kept as it is given, to be named in `evaluate(static=...)`.

    Errors: no name, or a name without values.

    >>> grid(rate=[0.1, 0.2], width=[8, 16, 32])["width"]
    array([ 8, 16, 32,  8, 16, 32])
    >>> grid(widths=[(64, 64), (128,)])["widths"]
    array([(64, 64), (128,)], dtype=object)
    """
    if not axes or not all(len(values) for values in axes.values()):
        raise invalid(
            "grid(axes)",
            got=axes,
            expected="names with at least one value each",
            remedy="Pass rate=[0.1, 0.01], width=[64].",
        )
    points = list(itertools.product(*axes.values()))
    return {name: _column([p[i] for p in points]) for i, name in enumerate(axes)}


def random(key: Key, num_trials: int, **samplers: Sampler) -> Trials:
    """Independent draws of every hyperparameter by its sampler.

    Finds one of the best share q of all settings with `hit_probability`, whatever the number of
    hyperparameters; a grid spends its trials on those that do not matter.

    Errors: num_trials < 1, no sampler.

    Source: Bergstra & Bengio (2012).

    >>> trials = random(jax.random.key(0), 5, rate=log_uniform(1e-4, 1e-1), width=choice(8, 16))
    >>> trials["width"].size
    5
    """
    if num_trials < 1 or not samplers:
        raise invalid(
            "random(num_trials, samplers)",
            got=f"{num_trials}, {list(samplers)}",
            expected="at least one trial, and one sampler",
            remedy="Pass rate=search.log_uniform(1e-4, 1e-1).",
        )
    keys = jax.random.split(key, len(samplers))
    return {
        name: np.asarray(sampler(k, num_trials))
        for k, (name, sampler) in zip(keys, samplers.items(), strict=True)
    }


def uniform(low: float, high: float) -> Sampler:
    """Draws from the uniform distribution on [low, high)."""
    require_between("uniform(low)", low, -math.inf, high, remedy="low is below high.")
    return lambda key, n: jax.random.uniform(key, (n,), float, low, high)


def log_uniform(low: float, high: float) -> Sampler:
    """Draws whose logarithms are uniform on [ln low, ln high): for rates and penalties."""
    require_between("log_uniform(low)", low, 0.0, high, low_open=True, remedy="0 < low < high.")
    bounds = (math.log(low), math.log(high))
    return lambda key, n: jnp.exp(jax.random.uniform(key, (n,), float, *bounds))


def choice(*values: Any) -> Sampler:
    """Draws one of the values, each equally likely; they may be anything, as those of `grid`.

    >>> choice((64, 64), None)(jax.random.key(0), 3)
    array([None, (64, 64), (64, 64)], dtype=object)
    """
    if not values:
        raise invalid("choice(values)", got="none", expected="at least one", remedy="Name them.")
    options = _column(values)
    return lambda key, n: options[np.asarray(jax.random.randint(key, (n,), 0, len(options)))]


def hit_probability(num_trials: int, share: float) -> float:
    """1 - (1 - q)^n: that of n random trials at least one is among the best share q.

    Source: Bergstra & Bengio (2012), section 2.

    >>> round(hit_probability(60, 0.05), 4)
    0.9539
    """
    return -math.expm1(num_trials * math.log1p(-share)) if share < 1 else float(num_trials > 0)


def evaluate(
    measure: Callable[..., Array],
    trials: Mapping[str, Any],
    key: Key,
    *,
    seeds: int = 1,
    static: Sequence[str] = (),
    batch_size: int | None = None,
) -> Results:
    """The number that measure(key, **hyperparameters) returns, for every trial and seed.

    Trials of equal `static` hyperparameters, which are passed as Python values, run as one
    compiled program, mapped over trials and seeds; `batch_size` limits how many of them at once,
    for memory. Every trial has the same keys: their differences are not those of the draws.

    Errors: hyperparameters of unequal numbers, a static name that is none of theirs, seeds < 1, a
    measure that is no scalar, and hyperparameters that are not static and no numbers that JAX can
    hold (tuples, None, names, integers beyond its dtype).

    >>> valley = lambda key, x, power: (x - 1.0) ** power
    >>> found = evaluate(valley, grid(x=[0.0, 1.5], power=[2, 4]), jax.random.key(0),
    ...                  static=["power"])
    >>> print(found.table(rows=2))
      x  power    mean
    1.5      4  0.0625
    1.5      2    0.25
    """
    columns = {
        name: values if isinstance(values, np.ndarray) else _column(values)
        for name, values in trials.items()
    }
    lengths = {column.shape for column in columns.values()}
    unknown = set(static) - set(columns)
    if len(lengths) != 1 or len(min(lengths)) != 1 or unknown or seeds < 1:
        raise invalid(
            "evaluate(trials, static, seeds)",
            got=f"shapes {sorted(lengths)}, static {list(static)}, {seeds} seeds",
            expected="columns of one length, static ones among them, and seeds ≥ 1",
            remedy="Build the trials by grid or random.",
        )
    ((num_trials,),) = lengths
    keys = jax.random.split(key, seeds)
    values = np.full((num_trials, seeds), np.nan)
    firsts = {name: _first_equals(columns[name]) for name in static}
    groups: dict[tuple, list[int]] = {}
    for i in range(num_trials):
        groups.setdefault(tuple(firsts[name][i] for name in static), []).append(i)
    traced = {name: _traceable(name, c) for name, c in columns.items() if name not in static}
    for members in groups.values():
        options = {name: _as_given(columns[name][members[0]]) for name in static}

        def one(pair: tuple[Array, dict[str, Array]], options: dict = options) -> Array:
            value = jnp.asarray(measure(pair[0], **options, **pair[1]))
            if value.shape != ():
                raise invalid(
                    "evaluate(measure): its value",
                    got=f"shape {value.shape}",
                    expected="a scalar",
                    remedy="Return the mean loss on validation data.",
                )
            return value

        # Every trial with every key, in one list of runs.
        runs = (
            jax.tree.map(lambda k, m=members: jnp.tile(k, len(m)), keys),
            {name: jnp.repeat(c[np.array(members)], seeds) for name, c in traced.items()},
        )
        mapped = (
            jax.vmap(one)
            if batch_size is None
            else lambda r: lax.map(one, r, batch_size=batch_size)
        )
        values[members] = np.asarray(jax.jit(mapped)(runs)).reshape(len(members), seeds)
    return Results(columns, values)


def _column(values: Sequence[Any]) -> np.ndarray:
    """One value per trial: an array of numbers if all are of one type, else the objects."""
    kinds = {type(_as_given(value)) for value in values}
    if len(kinds) == 1 and kinds <= {bool, int, float, complex}:
        numbers = np.array(values)
        if numbers.ndim == 1:
            return numbers
    column = np.empty(len(values), object)
    for i, value in enumerate(values):  # NumPy would read a tuple as a row
        column[i] = value
    return column


def _as_given(value: Any) -> Any:
    """A value as the caller had it: NumPy's and JAX's numbers as Python's."""
    number = isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0
    return value.item() if number else value


def _first_equals(column: np.ndarray) -> list[int]:
    """For every value, the position of the first that is the same."""

    def same(a: Any, b: Any) -> bool:
        if a is b:
            return True
        try:
            return type(a) is type(b) and bool(a == b)
        except ValueError:  # arrays, which have no one answer
            return False

    return [next(j for j in range(i + 1) if same(column[j], column[i])) for i in range(column.size)]


def _traceable(name: str, column: np.ndarray) -> Array:
    numbers = column
    if column.dtype == object:
        try:
            numbers = np.array([_as_given(value) for value in column])
        except ValueError:  # tuples of unequal lengths
            numbers = np.empty(0, object)
    if numbers.ndim != 1 or numbers.dtype.kind not in "biufc":
        raise invalid(
            f"evaluate(trials): {name}",
            got=f"{_text(column[0])}, which is no number",
            expected="numbers, which are mapped over as one array",
            remedy=f"Pass static=[{name!r}], to have it passed as it is.",
        )
    return tree.strong({name: numbers})[name]


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return getattr(value, "__name__", None) or str(value)

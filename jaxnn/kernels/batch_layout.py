"""Where the examples of a batch lie in an array: the layout that every operation carries along.

The index of an example is written in mixed radix, and each of its digits lies on an axis: what was
(N, T, C) and is (N·T, C) holds example (p // T) mod N in row p. A value is in one of three states:
None, free of the batch; `Batch`, every entry depends on one known example alone; `Lost`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

from jaxnn.types import Shape


class Place(NamedTuple):
    """A digit of the example's index: row p of `axis` holds the digit (p // stride) mod size.

    Axes below 0 are those that enclosing scans run over.
    """

    axis: int
    stride: int
    size: int


class Batch(NamedTuple):
    """Every entry depends on one example alone: `first` + the number whose digits are `places`.

    Digits come major first. Without digits the whole value belongs to the example `first`.
    """

    first: int
    places: tuple[Place, ...]

    @property
    def examples(self) -> int:
        """How many examples the value holds."""
        return math.prod(p.size for p in self.places)

    def period(self, axis: int) -> int:
        """After how many rows of `axis` the examples come again."""
        return max((p.stride * p.size for p in self.places if p.axis == axis), default=1)


class Lost(NamedTuple):
    """Data of different examples have met, or could not be followed, and where in the program."""

    kind: Literal["coupled", "unknown"]
    where: str = ""


State: TypeAlias = Batch | Lost | None
Axes: TypeAlias = Mapping[int, int | Lost]
"""Axis before ↦ axis after an operation, or what becomes of a batch that lies on it."""

COUPLED = Lost("coupled")
UNKNOWN = Lost("unknown")


def whole(size: int) -> Batch:
    """The state of a batch of `size` examples along axis 0."""
    return Batch(0, (Place(0, 1, size),))


def fits(state: State, shape: Shape) -> bool:
    """Whether an array of this shape can be in this state."""
    places = state.places if isinstance(state, Batch) else ()
    real = [p for p in places if p.axis >= 0]
    return all(p.axis < len(shape) and shape[p.axis] % (p.stride * p.size) == 0 for p in real)


def worst(lost: Iterable[Lost]) -> Lost:
    """The first that is coupled, else the first."""
    return max(lost, key=lambda state: state.kind == "coupled")


def met(states: Iterable[State]) -> State:
    """The state of an entry computed from entries in these states, at the same position."""
    states = [s for s in states if s is not None]
    lost = [s for s in states if isinstance(s, Lost)]
    if lost:
        return worst(lost)
    # Two layouts differ at some position: there different examples meet.
    return COUPLED if len(set(states)) > 1 else next(iter(states), None)


def either(a: State, b: State) -> State:
    """The state of a value that is in state a or in state b."""
    if a == b or a is None or b is None:
        return b if a is None else a
    lost = [s for s in (a, b) if isinstance(s, Lost)]
    return worst(lost) if lost else UNKNOWN


def placed(first: int, places: Iterable[Place]) -> Batch:
    """A `Batch` in the one form in which equal layouts are equal tuples."""
    merged: list[Place] = []
    for p in places:
        if merged and (merged[-1].axis, merged[-1].stride) == (p.axis, p.stride * p.size):
            p = p._replace(size=merged.pop().size * p.size)
        merged.append(p)
    return Batch(first, tuple(merged))


def moved(state: State, axes: Axes) -> State:
    """`state` when axis k becomes axes[k]; axes not named stay."""
    if not isinstance(state, Batch):
        return state
    targets = [axes.get(p.axis, p.axis) for p in state.places]
    lost = [t for t in targets if isinstance(t, Lost)]
    if lost:
        return worst(lost)
    now = [int(t) for t in targets if not isinstance(t, Lost)]
    pairs = zip(state.places, now, strict=True)
    return placed(state.first, [p._replace(axis=axis) for p, axis in pairs])


def reshaped(state: State, old: Shape, new: Shape) -> State:
    """`state` when the same memory is read under another shape."""
    if not isinstance(state, Batch):
        return state
    old_steps, places = _steps(old), []
    for p in state.places:
        if p.axis < 0:
            places.append(p)
            continue
        # The digit takes the factors from `start` to `stop` of the flat index.
        start = p.stride * old_steps[p.axis]
        stop = start * p.size
        for axis, (step, size) in enumerate(zip(_steps(new), new, strict=True)):
            low, high = max(start, step), min(stop, step * size)
            if low < high:
                if low % start or low % step or high % low or stop % high or step * size % high:
                    return UNKNOWN
                places.append(Place(axis, low // step, high // low))
    return placed(state.first, places)


def _steps(shape: Shape) -> list[int]:
    return [math.prod(shape[k + 1 :]) for k in range(len(shape))]


def rows(state: State, axis: int, start: int, stop: int) -> State:
    """`state` of the rows start:stop of an axis: of all examples, of some in order, or of one."""
    if not isinstance(state, Batch):
        return state
    period = state.period(axis)
    if start % period == 0 and stop % period == 0:
        return state
    if len(state.places) != 1:
        return UNKNOWN
    _, stride, size = state.places[0]
    low, high = start // stride, -(-stop // stride)
    cut = start % stride or stop % stride
    if low // size != (high - 1) // size or (cut and high - low > 1):
        return UNKNOWN
    places = (Place(axis, stride, high - low),) if high - low > 1 else ()
    return Batch(state.first + low % size, places)


def joined(states: Sequence[State], sizes: Sequence[int], axis: int) -> State:
    """The state of arrays put one after another along `axis`, where they have these sizes."""
    batches = [s for s in states if isinstance(s, Batch)]
    if len(set(batches)) == 1:
        period = batches[0].period(axis)
        return UNKNOWN if any(size % period for size in sizes) else batches[0]
    if len(batches) < len(states):
        return UNKNOWN
    stride = sizes[0] // batches[0].examples
    for b, size in zip(batches, sizes, strict=True):
        expected = (Place(axis, stride, b.examples),) if b.examples > 1 else ()
        if b.places != expected or size != stride * b.examples:
            return UNKNOWN
    in_order = all(b.first == a.first + a.examples for a, b in pairwise(batches))
    total = sum(b.examples for b in batches)
    return Batch(batches[0].first, (Place(axis, stride, total),)) if in_order else UNKNOWN

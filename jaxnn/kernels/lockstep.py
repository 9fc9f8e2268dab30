"""The program of a batch, read in step with that of one example alone.

Methods of the tangent kernel evaluate f on one example at a time. That is right if every row of the
batch goes through what one example alone goes through. The two traces of f are compared equation by
equation, with one claim about every pair of values, by induction:

    free   (state None)   the two values are the same array
    batch  (state Batch)  row i of the batch's value is the other, computed from example i

A value that is the same for every example but has the size of the batch (`jnp.zeros((N, H))`) is a
batch of equal rows, whose axis may be read in any layout (`LOOSE`). What numbers the rows (iota,
random bits of the batch's shape, slices of an array with one row per example) or reads the size of
the batch (a division by it) has no such claim.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxnn.kernels.axis_maps import dtype_of, shape_of
from jaxnn.kernels.batch_layout import UNKNOWN, Batch, Place, State
from jaxnn.types import Shape

SHAPED = {
    "broadcast_in_dim": ("shape",),
    "conv_general_dilated": ("batch_group_count", "feature_group_count"),
    "dynamic_slice": ("slice_sizes",),
    "gather": ("slice_sizes",),
    "iota": ("shape",),
    "reshape": ("new_sizes",),
    "slice": ("limit_indices",),
    "split": ("sizes",),
    "tile": ("reps",),
}
"""Parameters that the shapes of the operands and outputs determine, given the other ones."""

SPREADS = {"broadcast_in_dim", "iota", "tile"}
"""Primitives that repeat what they are given along an axis."""


LOOSE = -1
"""`first` of a batch that is constant along its axis, and fits any layout of it."""


def firm(state: State) -> State:
    """A loose batch in one of the layouts that fit it: that of whole blocks, example by example."""
    return Batch(0, state.places) if isinstance(state, Batch) and is_loose(state) else state


def is_loose(state: State) -> bool:
    """Whether it is a batch of equal rows, constant along its axis."""
    return isinstance(state, Batch) and state.first == LOOSE


class Lockstep:
    """The equations of the batch's program, matched with those of the program of one example."""

    def __init__(self, batch: Jaxpr, other: Jaxpr) -> None:
        self._ends = (batch.outvars, other.outvars)
        self._other = list(other.eqns)
        self._position = 0
        self._twins: dict[Any, Any] = dict(zip(batch.invars, other.invars, strict=True))
        if len(batch.constvars) == len(other.constvars):
            self._twins.update(zip(batch.constvars, other.constvars, strict=True))

    def twin(self, atom: Any) -> Any:
        """The value of one example's program that belongs to a value of the batch's; or None."""
        return atom if isinstance(atom, Literal) else self._twins.get(atom)

    def step(self, eqn: JaxprEqn) -> tuple[JaxprEqn | None, bool]:
        """The other program's equation in this place, and whether its operands are the twins.

        None if that is of another primitive: from there on the programs are not the same.
        """
        if self._position == len(self._other):
            return None, False
        other = self._other[self._position]
        lengths = [(len(e.invars), len(e.outvars)) for e in (eqn, other)]
        if other.primitive is not eqn.primitive or lengths[0] != lengths[1]:
            return None, False
        self._position += 1
        same = all(map(self._same, eqn.invars, other.invars))
        self._twins.update(zip(eqn.outvars, other.outvars, strict=True))
        return other, same

    def ends_alike(self) -> list[bool]:
        """Of every output, whether the two programs return the same value."""
        return list(map(self._same, *self._ends))

    def skips(self, eqn: JaxprEqn) -> bool:
        """Whether the equation repeats rows, and is absent where there is one row only."""
        if eqn.primitive.name != "broadcast_in_dim":
            return False
        operand, dimensions = eqn.invars[0], eqn.params["broadcast_dimensions"]
        if tuple(dimensions) != tuple(range(len(shape_of(eqn.outvars[0])))):
            return False
        self._twins[eqn.outvars[0]] = self.twin(operand)
        return True

    def _same(self, atom: Any, other: Any) -> bool:
        if isinstance(atom, Literal) or isinstance(other, Literal):
            return isinstance(other, Literal) and equal(atom, other)
        return self._twins.get(atom) is other


def equal(a: Any, b: Any) -> bool:
    """Whether two parameters or constants of programs are the same.

    >>> equal(np.arange(3), np.arange(3)), equal((1, "a"), (2, "a"))
    (True, False)
    """
    if a is b:
        return True
    if isinstance(a, Literal):
        return isinstance(b, Literal) and dtype_of(a) == dtype_of(b) and equal(a.val, b.val)
    if isinstance(a, ClosedJaxpr):
        return isinstance(b, ClosedJaxpr) and equal(a.consts, b.consts) and equal(a.jaxpr, b.jaxpr)
    if isinstance(a, Jaxpr):
        return isinstance(b, Jaxpr) and str(a) == str(b)
    if isinstance(a, tuple | list):
        return isinstance(b, tuple | list) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray | np.generic | jax.Array | float | complex):
        return _equal_arrays(a, b)
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return False


def _equal_arrays(a: Any, b: Any) -> bool:
    """Whether two arrays have the same bytes: NaN is NaN. Traced ones are not known to be."""
    try:
        u, v = np.asarray(a), np.asarray(b)
    except (TypeError, jax.errors.TracerArrayConversionError):
        return False
    return u.shape == v.shape and u.dtype == v.dtype and u.tobytes() == v.tobytes()


def same_parameters(eqn: JaxprEqn, one: JaxprEqn, *, shapes: bool) -> bool:
    """Whether the equations have equal parameters, up to shapes if these may differ (`shapes`)."""
    free = {"sharding", "out_sharding", "computation"}  # the last is also there as a jaxpr
    free = free.union(SHAPED.get(eqn.primitive.name, ())) if shapes else free
    pairs = ((name, value, one.params.get(name)) for name, value in eqn.params.items())
    return all(name in free or equal(value, other) for name, value, other in pairs)


def spread(shape: Shape, alone: Shape, size: int, count: int) -> State:
    """The state of equal rows, of shape `shape` for `size` examples and `alone` for `count`.

    >>> spread((5, 3), (1, 3), 5, 1)
    Batch(first=-1, places=(Place(axis=0, stride=1, size=5),))
    """
    if shape == alone:
        return None
    axes = [k for k, (n, m) in enumerate(zip(shape, alone, strict=False)) if n != m]
    if len(shape) != len(alone) or len(axes) != 1:
        return UNKNOWN
    (axis,) = axes
    if count * shape[axis] != size * alone[axis]:
        return UNKNOWN
    return Batch(LOOSE, (Place(axis, shape[axis] // size, size),))


def repeated(eqn: JaxprEqn, one: JaxprEqn, size: int, count: int) -> State:
    """The state of what an equation makes of free operands, which are the same in both programs."""
    if same_parameters(eqn, one, shapes=False):
        return None
    name = eqn.primitive.name
    if name not in SPREADS or not same_parameters(eqn, one, shapes=True):
        return UNKNOWN
    shape, alone = shape_of(eqn.outvars[0]), shape_of(one.outvars[0])
    if name == "iota" and shape[eqn.params["dimension"]] != alone[eqn.params["dimension"]]:
        return UNKNOWN
    rows = spread(shape, alone, size, count)
    return firm(rows) if name == "tile" else rows  # a tile of several rows is not constant


def agrees(state: State, shape: Shape, alone: Shape, size: int, count: int) -> bool:
    """Whether the value for `count` examples has the shape that so many rows of the batch have."""
    if not isinstance(state, Batch):
        return shape == alone
    if len(state.places) > 1 and count > 1:
        return False
    rows = list(shape)
    for place in state.places:
        if place.axis >= 0:
            rows[place.axis] = rows[place.axis] // place.size * count
    return state.examples == size and tuple(rows) == alone


def writes_rows(eqn: JaxprEqn, state: State) -> bool:
    """Whether an equation writes into some rows of an axis along which a batch lies.

    Which rows is a matter of their numbers: `y.at[0].set(0.0)` treats the first example apart.
    """
    shape, written = shape_of(eqn.invars[0]), shape_of(eqn.invars[-1])
    if eqn.primitive.name == "dynamic_update_slice":
        whole = [k for k, n in enumerate(shape_of(eqn.invars[1])) if n == shape[k]]
    else:
        d = eqn.params["dimension_numbers"]
        dropped = (*d.inserted_window_dims, *d.operand_batching_dims)
        window = [k for k in range(len(shape)) if k not in dropped]
        pairs = zip(d.update_window_dims, window, strict=True)
        whole = [k for i, k in pairs if written[i] == shape[k]] + list(d.operand_batching_dims)
    return isinstance(state, Batch) and any(place.axis not in whole for place in state.places)


def constants(batch: Sequence[Any], one: Sequence[Any], *, size: int, count: int) -> list[State]:
    """The states of the arrays that a program holds: closed over, or made while it was traced."""
    if len(batch) != len(one):
        return [UNKNOWN] * len(batch)
    return [_constant(a, b, size, count) for a, b in zip(batch, one, strict=True)]


def _constant(a: Any, b: Any, size: int, count: int) -> State:
    if equal(a, b):
        return None
    state = spread(np.shape(a), np.shape(b), size, count)
    if not isinstance(state, Batch) or state.places[0].stride != 1:
        return UNKNOWN
    try:
        rows = [np.moveaxis(np.asarray(c), state.places[0].axis, 0) for c in (a, b)]
    except (TypeError, jax.errors.TracerArrayConversionError):
        return UNKNOWN
    equal_rows = (_equal_arrays(np.broadcast_to(rows[0][:1], r.shape), r) for r in rows)
    return state if all(equal_rows) and rows[0].dtype == rows[1].dtype else UNKNOWN

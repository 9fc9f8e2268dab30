"""For each primitive that does no more to a batch than send axes to axes: where every axis goes.

`AXES` maps the name of a primitive to a function of its equation that returns, for each operand,
axis of the operand ↦ axis of the output. `COUPLED` says that all rows of the axis meet, `UNKNOWN`
that a batch on this axis cannot be followed. Axes not named stay.
"""

from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex, TypeAlias

from jax.extend.core import JaxprEqn

from jaxnn.kernels.batch_layout import COUPLED, UNKNOWN, Axes, Lost
from jaxnn.types import Shape

Rule: TypeAlias = Callable[[JaxprEqn], list[Axes]]


def shape_of(atom: Any) -> Shape:
    """The shape of a variable or literal of a jaxpr; () for tokens."""
    return getattr(atom.aval, "shape", ())


def dtype_of(atom: Any) -> Any:
    """The dtype of a variable or literal of a jaxpr, extended ones (keys) included."""
    return atom.aval.dtype


def _fate(axes: Iterable[SupportsIndex], fate: Lost) -> dict[int, int | Lost]:
    return {int(k): fate for k in axes}


def _elementwise(eqn: JaxprEqn) -> list[Axes]:
    ndim = len(shape_of(eqn.outvars[0]))
    odd = _fate(range(ndim), UNKNOWN)
    return [{} if len(shape_of(operand)) in (0, ndim) else odd for operand in eqn.invars]


def _leading(eqn: JaxprEqn) -> list[Axes]:
    return [{} for _ in eqn.invars]


def _along(parameter: str) -> Rule:
    """All rows of the axes that `parameter` names meet; the others stay."""

    def axes(eqn: JaxprEqn) -> list[Axes]:
        named = eqn.params[parameter]
        named = named if isinstance(named, tuple | list) else [named]
        ndims = [len(shape_of(operand)) for operand in eqn.invars]
        return [_fate([k % n for k in named], COUPLED) for n in ndims]

    return axes


def _removed(parameter: str) -> Rule:
    """As `_along`, and the output is without the axes named."""

    def axes(eqn: JaxprEqn) -> list[Axes]:
        named = _fate(eqn.params[parameter], COUPLED)
        ndims = [len(shape_of(operand)) for operand in eqn.invars]
        kept = [[k for k in range(n) if k not in named] for n in ndims]
        return [named | {k: i for i, k in enumerate(axes)} for axes in kept]

    return axes


def _last(*counts: int) -> Rule:
    """The last axes, `counts` of them for each operand, meet: vectors and matrices."""

    def axes(eqn: JaxprEqn) -> list[Axes]:
        ndims = [len(shape_of(operand)) for operand in eqn.invars]
        return [_fate(range(n - c, n), COUPLED) for n, c in zip(ndims, counts, strict=True)]

    return axes


def _collective(eqn: JaxprEqn) -> list[Axes]:
    # Under vmap, the name of an axis has become its number.
    axes = eqn.params["axes"]
    if any(isinstance(axis, str) for axis in axes):
        return [_fate(range(len(shape_of(operand))), UNKNOWN) for operand in eqn.invars]
    return _removed("axes")(eqn)


def _fft(eqn: JaxprEqn) -> list[Axes]:
    return _last(len(eqn.params["fft_lengths"]))(eqn)


def _triangular_solve(eqn: JaxprEqn) -> list[Axes]:
    n = len(shape_of(eqn.invars[0]))
    equations = n - 2 if eqn.params["left_side"] else n - 1
    return [_fate((n - 2, n - 1), COUPLED), {equations: COUPLED}]


def _bitcast(eqn: JaxprEqn) -> list[Axes]:
    n = len(shape_of(eqn.invars[0]))
    return [{n - 1: COUPLED} if len(shape_of(eqn.outvars[0])) < n else {}]


def _transpose(eqn: JaxprEqn) -> list[Axes]:
    return [{k: i for i, k in enumerate(eqn.params["permutation"])}]


def _broadcast_in_dim(eqn: JaxprEqn) -> list[Axes]:
    return [
        dict(enumerate(map(int, eqn.params["broadcast_dimensions"]))),
        *({} for _ in eqn.invars[1:]),
    ]


def _pad(eqn: JaxprEqn) -> list[Axes]:
    padded = [k for k, widths in enumerate(eqn.params["padding_config"]) if any(widths)]
    return [_fate(padded, UNKNOWN), {}]


def _window(eqn: JaxprEqn) -> list[Axes]:
    ones = (1,) * len(shape_of(eqn.invars[0]))
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    factors = zip(*(eqn.params.get(name) or ones for name in names), strict=True)
    each = enumerate(zip(factors, eqn.params["padding"], strict=True))
    return [_fate([k for k, (n, pad) in each if max(n) > 1 or any(pad)], UNKNOWN)] * len(eqn.invars)


def _dot_general(eqn: JaxprEqn) -> list[Axes]:
    contracted, batch = eqn.params["dimension_numbers"]
    moves: list[Axes] = []
    following = len(batch[0])
    for operand, summed, shared in zip(eqn.invars, contracted, batch, strict=True):
        free = [k for k in range(len(shape_of(operand))) if k not in (*summed, *shared)]
        targets = {k: i for i, k in enumerate(shared)}
        targets |= {k: following + i for i, k in enumerate(free)}
        moves.append(_fate(summed, COUPLED) | targets)
        following += len(free)
    return moves


def _dynamic_slice(eqn: JaxprEqn) -> list[Axes]:
    sizes = zip(eqn.params["slice_sizes"], shape_of(eqn.invars[0]), strict=True)
    cut = [k for k, (taken, size) in enumerate(sizes) if taken != size]
    return [_fate(cut, UNKNOWN), *({} for _ in eqn.invars[1:])]


def _dynamic_update_slice(eqn: JaxprEqn) -> list[Axes]:
    sizes = zip(shape_of(eqn.invars[1]), shape_of(eqn.invars[0]), strict=True)
    cut = [k for k, (written, size) in enumerate(sizes) if written != size]
    return [{}, _fate(cut, UNKNOWN), *({} for _ in eqn.invars[2:])]


def _gather(eqn: JaxprEqn) -> list[Axes]:
    d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, index = shape_of(eqn.invars[0]), len(shape_of(eqn.invars[1])) - 1
    rows = [k for k in range(len(shape_of(eqn.outvars[0]))) if k not in d.offset_dims]
    dropped = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    window = zip([k for k in range(len(shape)) if k not in dropped], d.offset_dims, strict=True)
    paired = zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True)
    operand = _fate(range(len(shape)), UNKNOWN)
    operand |= {k: out for k, out in window if sizes[k] == shape[k]}
    operand |= {k: rows[i] for k, i in paired}
    return [operand, {**dict(enumerate(rows)), index: COUPLED}]


def _scatter(eqn: JaxprEqn) -> list[Axes]:
    d = eqn.params["dimension_numbers"]
    shape, index, written = (shape_of(operand) for operand in eqn.invars)
    dropped = (*d.inserted_window_dims, *d.operand_batching_dims)
    window = [k for k in range(len(shape)) if k not in dropped]
    whole = zip(d.update_window_dims, window, strict=True)
    rows = [k for k in range(len(written)) if k not in d.update_window_dims]
    paired = dict(zip(d.scatter_indices_batching_dims, d.operand_batching_dims, strict=True))
    updates = _fate(range(len(written)), UNKNOWN)
    updates |= {k: out for k, out in whole if written[k] == shape[out]}
    updates |= {rows[i]: out for i, out in paired.items()}
    return [{}, _fate(range(len(index)), UNKNOWN) | paired, updates]


def _table(*groups: tuple[str, Rule]) -> dict[str, Rule]:
    return {name: rule for names, rule in groups for name in names.split()}


AXES = _table(
    (
        "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt "
        "ceil clamp clz complex conj convert_element_type copy cos cosh digamma div eq eq_to erf "
        "erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow "
        "is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul name ne neg "
        "nextafter not one_minus_square or polygamma population_count pow random_fold_in "
        "random_gamma_grad real reduce_precision regularized_incomplete_beta rem round rsqrt "
        "select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign "
        "sin sinh sqrt square stop_gradient sub tan tanh threefry2x32 tile xor zeta",
        _elementwise,
    ),
    ("random_bits random_seed random_split random_unwrap", _leading),
    (
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum "
        "reduce_xor",
        _removed("axes"),
    ),
    ("pmax pmin psum", _collective),
    ("reduce squeeze", _removed("dimensions")),
    ("cumlogsumexp cummax cummin cumprod cumsum top_k", _along("axis")),
    ("approx_top_k", _along("reduction_dimension")),
    ("rev", _along("dimensions")),
    ("sort", _along("dimension")),
    (
        "reduce_window reduce_window_max reduce_window_min reduce_window_sum "
        "select_and_gather_add select_and_scatter_add",
        _window,
    ),
    ("scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub", _scatter),
    ("cholesky eig eigh hessenberg lu qr schur svd tridiagonal", _last(2)),
    ("lu_pivots_to_permutation random_wrap", _last(1)),
    ("householder_product", _last(2, 1)),
    ("bitcast_convert_type", _bitcast),
    ("broadcast_in_dim", _broadcast_in_dim),
    ("dot_general", _dot_general),
    ("dynamic_slice", _dynamic_slice),
    ("dynamic_update_slice", _dynamic_update_slice),
    ("fft", _fft),
    ("gather", _gather),
    ("pad", _pad),
    ("transpose", _transpose),
    ("triangular_solve", _triangular_solve),
)

WRITES = frozenset({"dynamic_update_slice", *(name for name in AXES if name.startswith("scatter"))})
"""Primitives that put rows beside each other: rows of different examples do not meet there."""

ELEMENTWISE = frozenset(name for name, rule in AXES.items() if rule is _elementwise) - {"tile"}
"""Primitives whose output at a position reads the operands there, or scalars."""

"""The structure of a network's gradients: which parameters have factors, and how to get them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core.primitives import conv_general_dilated_p

from jaxnn.jaxprs.nesting import equations
from jaxnn.kernels.channels import Channel, ChannelFactors, channel, channel_factors, joins
from jaxnn.kernels.contractions import Part, Parts
from jaxnn.kernels.cost import GradientShape, PartShape
from jaxnn.kernels.mesh_axes import manual_axes, over
from jaxnn.kernels.program import Program, Taps, run, zero_taps
from jaxnn.kernels.taps import Path, Site, fold, leaf_uses
from jaxnn.kernels.unfolding import trace
from jaxnn.kernels.views import leaf_views
from jaxnn.precision import wide, wide_dtype
from jaxnn.types import Array, PyTree


class Member(NamedTuple):
    """One product among those that a term is made of."""

    path: Path
    site: Site
    loops: tuple[str, ...]
    scale: Any
    transposed: bool


class Term(NamedTuple):
    """Parameter entries that are multiplied as one matrix, everywhere that is done.

    leaves   positions of the parameters
    entries  (B, C, K) numbers of parameter entries, counted through all parameters
    members  the products, all with the same entries (or their transpose)
    channel  the other way in which the parameter acts, if there is one
    """

    leaves: frozenset[int]
    entries: np.ndarray
    members: tuple[Member, ...]
    channel: Channel | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, C, K) of the matrix."""
        blocks, rows, columns = self.entries.shape
        return blocks, rows, columns


class Structure(NamedTuple):
    """What `analysis` finds in a program.

    terms   have factored gradients; distinct terms share no parameter entry
    direct  positions of the parameters whose gradients are formed explicitly
    """

    program: Program
    terms: tuple[Term, ...]
    direct: tuple[int, ...]


class Factors(NamedTuple):
    """The gradients of a batch: factors for every term, arrays (N, O, size) for direct ones.

    channels   for every term, what its channel adds; None for most
    """

    terms: tuple[tuple[tuple[Array, Array], ...], ...]
    channels: tuple[ChannelFactors | None, ...]
    direct: tuple[Array, ...]


def analysis(
    f: Callable[..., Sequence[Array]],
    leaves: Sequence[Any],
    example: Any,
    *,
    formed: frozenset[int] = frozenset(),
    apart: bool = False,
) -> Structure:
    """Find the factored gradients of f(*leaves, *leaves of example), a list of one flat output.

    The gradients of the leaves in `formed` are formed in any case; so are those of leaves that
    are joined into one matrix, if `apart` asks for every leaf's contribution by itself.

    >>> def f(w, b, x): return [b * jnp.tanh(x @ (2.0 * w).T)]
    >>> found = analysis(f, [jnp.ones((3, 2)), jnp.ones(3)], jnp.ones(2))
    >>> found.terms[0].shape, found.direct
    ((1, 2, 3), (1,))
    """
    program = trace(f, leaves, jax.tree.leaves(example))
    views = dict(zip(program.inputs, leaf_views(list(leaves)), strict=False))
    found, loose = leaf_uses(program, views)
    ends = {leaf: [i for i in loose if leaf in program.sources[i]] for leaf in range(len(leaves))}
    direct = formed.union(leaf for leaf, values in ends.items() if len(values) > 1)
    while True:
        terms: list[Term] = []
        conflict: frozenset[int] = frozenset()
        for path, use in found.items():
            if use.leaves & direct or (apart and len(use.leaves) > 1):
                conflict |= use.leaves - direct
                continue
            assert use.view is not None
            conflict |= _place(terms, path, use)
        open_ends = {leaf: v[0] for leaf, v in ends.items() if v and leaf not in direct | conflict}
        conflict |= _without_channel(program, leaves, terms, open_ends, apart=apart)
        if not conflict:
            break
        direct |= conflict
    return Structure(program, tuple(terms), tuple(sorted(direct)))


def _place(terms: list[Term], path: Path, use: Any) -> frozenset[int]:
    """Add a use to the term of the same entries, or make one; leaves in conflict are returned."""
    index, scale = use.view
    for number, term in enumerate(terms):
        if not term.leaves & use.leaves:
            continue
        same = np.array_equal(index, term.entries)
        if same or np.array_equal(index.swapaxes(1, 2), term.entries):
            member = Member(path, use.site, use.loops, scale, not same)
            leaves = term.leaves | use.leaves
            terms[number] = term._replace(leaves=leaves, members=(*term.members, member))
            return frozenset()
        if np.intersect1d(index, term.entries).size:
            return term.leaves | use.leaves
    member = Member(path, use.site, use.loops, scale, False)
    terms.append(Term(use.leaves, index, (member,)))
    return frozenset()


def _without_channel(
    program: Program,
    leaves: Sequence[Any],
    terms: list[Term],
    ends: dict[int, int],
    *,
    apart: bool,
) -> frozenset[int]:
    """Open channels to the values by which leaves act besides; leaves that have none are returned.

    ends  leaf -> number of the value
    """
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    used = frozenset().union(*(term.leaves for term in terms))
    remaining = set(ends)
    for number, term in enumerate(terms):
        for leaf in term.leaves & ends.keys() if len(term.leaves) == 1 else ():
            found = channel(program, leaves, leaf, ends[leaf], term.entries - starts[leaf])
            if found is None:
                continue
            others = [k for k in ends if k not in used and ends[k] == ends[leaf] and not apart]
            joined = tuple(k for k in others if joins(found, program, leaves, k))
            terms[number] = term._replace(
                leaves=term.leaves.union(joined), channel=found._replace(joined=joined)
            )
            remaining -= {leaf, *joined}
    return frozenset(remaining)


def gradient_shapes(structure: Structure, factors: Factors) -> tuple[GradientShape, ...]:
    """The shape of every term, from the (abstract) factors of a batch."""
    shapes = []
    for term, arrays in zip(structure.terms, factors.terms, strict=True):
        parts = tuple(
            PartShape(row.shape[2], looks_up, transposed)
            for (row, _), (looks_up, transposed) in zip(arrays, _kinds(term), strict=True)
        )
        shapes.append(GradientShape(*term.shape, parts))
    return tuple(shapes)


def parts(term: Term, arrays: tuple[tuple[Array, Array], ...]) -> Parts:
    """The factors of a term as the parts that `contractions` works on."""
    return tuple(
        Part(row, column, looks_up, transposed)
        for (row, column), (looks_up, transposed) in zip(arrays, _kinds(term), strict=True)
    )


def factors(structure: Structure, leaves: Sequence[Array], x: PyTree) -> Factors:
    """The factors of the gradients of all outputs in all examples: one batched backward pass."""
    of_one = partial(_factors_of_one, structure, leaves)
    if _goes_wrong_when_sharded(structure) and not manual_axes(leaves, x):
        return jax.lax.map(of_one, x)
    return jax.vmap(of_one)(x)


def _goes_wrong_when_sharded(structure: Structure) -> bool:
    """Whether a gradient by the weights of a convolution is formed, and batches may be sharded.

    XLA (jaxlib 0.10 to 0.12, CPU) computes it wrongly, without a word, for a batch of examples that
    is sharded over devices. Which batches are is not known within `jit`.
    """
    if not structure.direct or jax.device_count() == 1:
        return False
    inside = equations(structure.program.equations)
    return any(equation.primitive is conv_general_dilated_p for equation in inside)


def _factors_of_one(structure: Structure, leaves: Sequence[Array], example: PyTree) -> Factors:
    program = structure.program
    tapped: Taps = {}
    for term in structure.terms:
        for member in term.members:
            _insert(tapped, member.path)
        if term.channel is not None:
            _insert(tapped, (term.channel.equation,))

    def outputs(taps: Taps, direct: tuple[Array, ...]) -> tuple[Array, Taps]:
        arguments = [*leaves, *jax.tree.leaves(example)]
        for position, leaf in zip(structure.direct, direct, strict=True):
            arguments[position] = leaf
        (y,), operands = run(program, arguments, taps)
        return y, operands

    axes = manual_axes(leaves, example)
    taps = over(axes, zero_taps(program, tapped))
    direct = tuple(leaves[i] for i in structure.direct)
    y, pull_back, operands = jax.vjp(outputs, taps, direct, has_aux=True)
    units = over(manual_axes(y), jnp.eye(y.size, dtype=y.dtype))
    cotangents, gradients = jax.vmap(pull_back)(units)
    found = tuple(_term_factors(term, leaves, operands, cotangents) for term in structure.terms)
    channels = tuple(
        None
        if term.channel is None
        else channel_factors(
            term.channel, program, leaves, parts(term, arrays), cotangents[term.channel.equation]
        )
        for term, arrays in zip(structure.terms, found, strict=True)
    )
    return Factors(found, channels, tuple(wide(g).reshape(y.size, -1) for g in gradients))


def _term_factors(
    term: Term, leaves: Sequence[Array], operands: Taps, cotangents: Taps
) -> tuple[tuple[Array, Array], ...]:
    dtype = wide_dtype(*(leaves[i] for i in term.leaves))
    rows: dict[tuple[bool, bool], list[Array]] = {kind: [] for kind in _kinds(term)}
    columns: dict[tuple[bool, bool], list[Array]] = {kind: [] for kind in _kinds(term)}
    for member in term.members:
        row_of, column_of = member.site.row, member.site.column
        for _ in member.loops:
            row_of, column_of = jax.vmap(row_of), jax.vmap(column_of)
        row = fold(row_of(_at(operands, member.path)), member.loops)
        cotangent = _at(cotangents, member.path)
        column = jax.vmap(lambda g, of=column_of, m=member: fold(of(g), m.loops))(cotangent)
        kind = _kind(member)
        row, column = _real(row, column, member.scale, dtype)
        rows[kind].append(row if kind[0] else row.astype(dtype))
        columns[kind].append(column)
    return tuple(
        (jnp.concatenate(rows[kind], axis=1), jnp.concatenate(columns[kind], axis=2))
        for kind in rows
    )


def _real(row: Array, column: Array, scale: Any, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Real factors of Re(scale Σ_t row ⊗ column), the gradient of real parameters.

    Where both factors are complex, their imaginary parts become positions of their own.
    """
    with jax.numpy_dtype_promotion("standard"):
        column = column.astype(jnp.promote_types(column.dtype, dtype)) * scale
    if jnp.iscomplexobj(column) and jnp.iscomplexobj(row):
        column = jnp.concatenate([column.real, -column.imag], axis=2)
        row = jnp.concatenate([row.real, row.imag], axis=1)
    return row.real, column.real.astype(dtype)


def _kind(member: Member) -> tuple[bool, bool]:
    return member.site.kind == "look-up", member.transposed


def _kinds(term: Term) -> tuple[tuple[bool, bool], ...]:
    return tuple(dict.fromkeys(_kind(member) for member in term.members))


def _insert(tapped: Taps, path: Path) -> None:
    first, *rest = path
    if rest:
        _insert(tapped.setdefault(first, {}), tuple(rest))
    else:
        tapped[first] = None


def _at(taps: Taps, path: Path) -> Any:
    for number in path:
        taps = taps[number]
    return taps

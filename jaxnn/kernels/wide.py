"""Kernels of infinitely wide networks, in tiles of pairs."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Shaped

from jaxnn.errors import invalid
from jaxnn.kernels.tiles import starts, tile_size
from jaxnn.nn import Kernel, Layer, Sequences, limit
from jaxnn.precision import inexact_dtype
from jaxnn.types import Array

# Arrays of a tile's size that are alive at once: the moments before and after an activation, and
# what its dual needs in between.
ALIVE = 8


def infinite(
    net: Layer,
    x1: Shaped[Array, "N1 *features"] | Sequences,
    x2: Shaped[Array, "N2 *features"] | Sequences | None = None,
    *,
    max_bytes: int = 2**22,
) -> Kernel:
    """The NNGP and NTK that `net` has at infinite width, between the inputs x1 and x2.

    K(x, x') = E[f(x)f(x')] and Θ(x, x') = E[Σ_θ ∂f(x)/∂θ · ∂f(x')/∂θ] at random weights, per
    output, as `Kernel.nngp` and `Kernel.ntk` of shape (N1, N2). Inputs are (N, d), images
    (N, *spatial, C), sequences (N, T, d), or `nn.Sequences` of unequal lengths, whose padding the
    layers treat as in the finite network; an output that keeps positions has them first,
    (*S, N1, N2), or (*S, *S, N1, N2) of a network that mixes positions or of `nn.Sequences`. In the
    standard parametrization Θ grows with the widths that `net` states; in the NTK parametrization
    it does not. With x2=None one triangle is computed, and the diagonal has no cancellation error:
    there the angle is exactly 0. Pairs are cut into tiles whose intermediates take about
    `max_bytes`. Integers are promoted to the default float; of half precision the kernels are
    computed in float32 and cast at the end. Inside `jax.shard_map` the inputs are those of the
    device; of arrays on a mesh with explicit axes the kernels are replicated.

    Errors: a net that is no `nn.Layer`, inputs that are no arrays, x2 of other features than x1,
    max_bytes < 1, a layer without a limit (by its name).

    Source: Jacot, Gabriel & Hongler (2018), theorem 1; Lee et al. (2018), equation 5.

    >>> from jaxnn import nn
    >>> net = nn.serial(nn.dense(512, parametrization="ntk"), nn.relu(),
    ...                 nn.dense(1, parametrization="ntk"))
    >>> infinite(net, jnp.eye(2)).ntk
    Array([[2.        , 0.31830987],
           [0.31830987, 2.        ]], dtype=float32)
    """
    _require_layer(net)
    x1, x2 = _of_one_length(x1, x2)
    _require_inputs(x1, x2)
    if max_bytes < 1:
        raise invalid(
            "infinite(max_bytes)", got=max_bytes, expected="at least 1", remedy="It is a budget."
        )
    mesh = jax.typeof(_values(x1)).sharding.mesh
    explicit = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    ]
    tiled = partial(_in_tiles, net, max_bytes=max_bytes)
    if explicit:
        # Entries of the kernel pair two examples of the sharded axis.
        options = {"axes": tuple(explicit), "out_sharding": PartitionSpec()}
        tiled = jax.sharding.auto_axes(**options)(tiled)
        with jax.sharding.use_abstract_mesh(mesh):
            kernel = tiled(x1, x2)
    else:
        kernel = tiled(x1, x2)
    dtype = inexact_dtype(*(_values(x) for x in (x1, x2) if x is not None))
    return kernel.map(lambda k: k.astype(dtype))


def _in_tiles(
    net: Layer, x1: Array | Sequences, x2: Array | Sequences | None, *, max_bytes: int
) -> Kernel:
    """The kernel by tiles of pairs, whose intermediates take `max_bytes` each."""
    values1, values2 = _values(x1), _values(x1 if x2 is None else x2)
    n1, n2 = len(values1), len(values2)
    crossed = net.mixes_positions or isinstance(x1, Sequences)
    between = partial(_between, net, crossed)
    size = math.prod(values1.shape[1:-1]) ** (2 if crossed else 1)
    itemsize = jnp.dtype(inexact_dtype(values1, values2)).itemsize
    entry = ALIVE * max(size, 1) * max(itemsize, 4)
    tile = tile_size(max(n1, n2), lambda t: entry * min(t, n1) * min(t, n2) <= max_bytes)
    if tile >= max(n1, n2):
        return between(x1, x2)
    t1, t2 = min(tile, n1), min(tile, n2)
    rows, columns = starts(n1, t1), starts(n2, t2)
    cut = lambda x, at, size: jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, at, size), x)
    empty = _empty(between, x1, x1 if x2 is None else x2, (t1, t2), (n1, n2))

    if x2 is not None:

        def step(total: Kernel, at: Array) -> tuple[Kernel, None]:
            return _put(total, between(cut(x1, at[0], t1), cut(x2, at[1], t2)), at), None

        pairs = np.array([(i, j) for i in rows for j in columns], np.int32)
        return lax.scan(step, empty, jnp.asarray(pairs))[0]

    def above(total: Kernel, at: Array) -> tuple[Kernel, None]:
        block = between(cut(x1, at[0], t1), cut(x1, at[1], t1))
        return _put(_put(total, block, at), _mirrored(block), at[::-1]), None

    def diagonal(total: Kernel, at: Array) -> tuple[Kernel, None]:
        return _put(total, between(cut(x1, at, t1), None), jnp.stack([at, at])), None

    # Diagonal tiles last: if N is no multiple of the tile size the last tile overlaps earlier ones,
    # and only diagonal tiles (x2=None) know which entries pair an input with itself.
    pairs = np.array(list(combinations(rows, 2)), np.int32)
    total = lax.scan(above, empty, jnp.asarray(pairs))[0]
    total = lax.scan(diagonal, total, jnp.asarray(rows, jnp.int32))[0]
    return replace(total, twins=True)


def _between(
    net: Layer, crossed: bool, x1: Array | Sequences, x2: Array | Sequences | None
) -> Kernel:
    if not isinstance(x1, Sequences):
        other = None if x2 is None else _values(x2)
        return net.kernel(limit.inputs(x1, other, crossed=crossed))
    values2, lengths2 = x2 if isinstance(x2, Sequences) else (None, None)
    inputs = limit.inputs(
        x1.values, values2, crossed=crossed, lengths1=x1.lengths, lengths2=lengths2
    )
    return net.kernel(inputs)


def _empty(
    between: Callable[..., Kernel],
    x1: Array | Sequences,
    x2: Array | Sequences,
    tile: tuple[int, int],
    counts: tuple[int, int],
) -> Kernel:
    """Zeros for the moments of all pairs, of the kernel that `between` gives for a tile."""
    blocks = []

    def moments(x1: Array | Sequences, x2: Array | Sequences) -> dict[str, Array]:
        blocks.append(between(x1, x2))
        return {name: getattr(blocks[0], name) for name in limit.MOMENTS}

    first = (jax.tree.map(lambda a, n=n: a[:n], x) for x, n in zip((x1, x2), tile, strict=True))
    shapes = jax.eval_shape(moments, *first)
    n1, n2 = counts
    pairs = {"covariance1": (n1, 1), "covariance2": (1, n2)}
    # Inside shard_map tiles differ between devices, and so must the zeros that scans start from:
    # zeros "like" the data do.
    zero = sum(lax.full_like(a, 0, jnp.float32, shape=()) for a in jax.tree.leaves((x1, x2)))
    zeros = {
        name: jnp.broadcast_to(
            jnp.asarray(zero).astype(s.dtype), (*s.shape[:-2], *pairs.get(name, counts))
        )
        for name, s in shapes.items()
    }
    lengths = {}
    if blocks[0].lengths1 is not None and isinstance(x1, Sequences) and isinstance(x2, Sequences):
        lengths = {"lengths1": x1.lengths, "lengths2": x2.lengths}
    return replace(blocks[0], **zeros, **lengths, twins=False)


def _require_layer(net: Layer) -> None:
    if not callable(getattr(net, "kernel", None)) or not hasattr(net, "mixes_positions"):
        raise invalid(
            "infinite(net)",
            got=f"a {type(net).__name__}",
            expected="an nn.Layer, whose .kernel is its limit of infinite width",
            remedy="Build the network of nn.dense, nn.relu, ... by nn.serial; for any other "
            "function f(params, x) there is the finite kernels.ntk(f, params, x).",
        )


def _require_inputs(x1: Array | Sequences, x2: Array | Sequences | None) -> None:
    remedy = "Both hold examples of one shape, batch axis first."
    for name, x in (("x1", x1), ("x2", x2)):
        for part in x if isinstance(x, Sequences) else (x,):
            if part is not None and not hasattr(part, "shape"):
                raise invalid(
                    f"infinite({name})",
                    got=f"a {type(part).__name__}",
                    expected="an array (N, *features) or nn.Sequences(values, lengths)",
                    remedy="Convert lists by jnp.asarray(x); join several inputs to one array.",
                )
    first, second = _values(x1), None if x2 is None else _values(x2)
    if first.ndim < 2:
        raise invalid(
            "infinite(x1)", got=f"shape {first.shape}", expected="(N, *features)", remedy=remedy
        )
    if isinstance(x1, Sequences) and first.ndim != 3:
        raise invalid(
            "infinite(x1)",
            got=f"nn.Sequences of shape {first.shape}",
            expected="values (N, T, d)",
            remedy="Join what belongs to one time in the last axis.",
        )
    if second is not None and isinstance(x1, Sequences) != isinstance(x2, Sequences):
        raise invalid(
            "infinite(x2)",
            got=f"a {type(x2).__name__}",
            expected=f"a {type(x1).__name__}, as x1 is",
            remedy="Pass both as nn.Sequences, or neither.",
        )
    if second is not None and second.shape[1:] != first.shape[1:]:
        expected = f"(N, {', '.join(map(str, first.shape[1:]))})"
        raise invalid("infinite(x2)", got=f"shape {second.shape}", expected=expected, remedy=remedy)


def _values(x: Array | Sequences) -> Array:
    return x.values if isinstance(x, Sequences) else x


def _of_one_length(
    x1: Array | Sequences, x2: Array | Sequences | None
) -> tuple[Array | Sequences, Array | Sequences | None]:
    """Both padded to the longer one, if they are sequences of unequal lengths."""
    if not (isinstance(x1, Sequences) and isinstance(x2, Sequences)):
        return x1, x2
    if x1.values.ndim != 3 or x2.values.ndim != 3:
        return x1, x2
    times = max(x1.values.shape[1], x2.values.shape[1])

    def padded(x: Sequences) -> Sequences:
        more = times - x.values.shape[1]
        return x._replace(values=jnp.pad(x.values, [(0, 0), (0, more), (0, 0)])) if more else x

    return padded(x1), padded(x2)


def _put(total: Kernel, block: Kernel, at: Array) -> Kernel:
    """`total` with the moments of a block of pairs that begin at (i, j)."""
    i, j = at
    zero = jnp.zeros_like(i)
    corners = {"covariance1": (i, zero), "covariance2": (zero, j)}

    def update(name: str) -> Array:
        moment = getattr(total, name)
        corner = corners.get(name, (i, j))
        start = (zero,) * (moment.ndim - 2) + corner
        return lax.dynamic_update_slice(moment, getattr(block, name), start)

    return replace(total, **{name: update(name) for name in limit.MOMENTS})


def _mirrored(block: Kernel) -> Kernel:
    """The block with x and x' exchanged, and their positions."""
    count = len(block.positions.shape)

    def swap(k: Array) -> Array:
        order = list(range(k.ndim))
        if block.positions.crossed:
            order[: 2 * count] = [*order[count : 2 * count], *order[:count]]
        order[-2:] = [order[-1], order[-2]]
        return jnp.transpose(k, order)

    return replace(
        block,
        nngp=swap(block.nngp),
        ntk=swap(block.ntk),
        covariance1=swap(block.covariance2),
        covariance2=swap(block.covariance1),
    )

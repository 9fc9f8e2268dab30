"""Layers made of layers: one after another, side by side, around a shortcut."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxnn.errors import invalid
from jaxnn.nn import limit
from jaxnn.nn.layers import Layer, Sequences, identity
from jaxnn.nn.limit import Kernel
from jaxnn.precision import common
from jaxnn.types import Array, Key, Params, Shape


def serial(*layers: Layer) -> Layer:
    """The composition: each layer is applied to what the one before returns.

    Params and stats are tuples with an entry per layer; a key is split among them.

    >>> from jaxnn import nn
    >>> net = serial(nn.dense(512), nn.relu(), nn.dense(10))
    >>> params, out_shape = net.init(jax.random.key(0), (784,))
    >>> net.apply(params, jnp.ones((2, 784))).shape
    (2, 10)
    """

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        params, shape = [], in_shape
        for layer_key, layer in zip(_split(key, layers), layers, strict=True):
            layer_params, shape = layer.init(layer_key, shape)
            params.append(layer_params)
        return tuple(params), shape

    def apply(
        params: Params, x: Array | Sequences, *, key: Key | None = None, stats: Params = None
    ) -> Array | Sequences:
        for layer, p, k, s in _each("serial", layers, params, key, stats):
            x = _applied(layer, p, x, k, s)
        return x

    def kernel(kernel: Kernel) -> Kernel:
        for layer in layers:
            kernel = layer.kernel(kernel)
        return kernel

    return _joined(init, apply, kernel, "serial", layers, serial)


def parallel(*layers: Layer, combine: Literal["sum", "product", "concatenate"] = "sum") -> Layer:
    """Branches that read the same input; the outputs are summed, multiplied or joined (last axis).

    Params and stats are tuples with an entry per branch; a key is split among them.

    Errors: no branch, outputs of different shapes (but for the last axis of a concatenation).

    >>> from jaxnn import nn
    >>> net = parallel(nn.dense(3), nn.dense(4), combine="concatenate")
    >>> net.init(jax.random.key(0), (2,))[1]
    (7,)
    """
    if not layers:
        raise invalid(
            "parallel(*layers)", got="no layer", expected="at least one", remedy="Pass branches."
        )
    if combine not in ("sum", "product", "concatenate"):
        raise invalid(
            "parallel(combine)",
            got=repr(combine),
            expected="'sum', 'product' or 'concatenate'",
            remedy="Combine the outputs of the branches in one of these ways.",
        )
    elementwise = combine != "concatenate"

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        branches = [
            layer.init(k, in_shape) for k, layer in zip(_split(key, layers), layers, strict=True)
        ]
        params, shapes = zip(*branches, strict=True)
        same = {shape if elementwise else shape[:-1] for shape in shapes}
        if len(same) > 1 or (not elementwise and () in shapes):
            raise invalid(
                f"parallel(combine={combine!r}).init: the outputs of the branches",
                got=f"shapes {list(shapes)}",
                expected="equal shapes" if elementwise else "shapes equal but for the last axis",
                remedy="Give the branches the same number of features, or a shortcut with "
                "nn.dense of the right size.",
            )
        last = shapes[0][-1:] if elementwise else (sum(shape[-1] for shape in shapes),)
        return params, (*shapes[0][:-1], *last)

    def join(branches: list[Array]) -> Array:
        if elementwise:
            return reduce(jnp.add if combine == "sum" else jnp.multiply, common(*branches))
        same = len({jnp.result_type(b) for b in branches}) == 1
        return jnp.concatenate(branches if same else common(*branches), axis=-1)

    def apply(
        params: Params, x: Array | Sequences, *, key: Key | None = None, stats: Params = None
    ) -> Array | Sequences:
        branches = [
            _applied(layer, p, x, k, s)
            for layer, p, k, s in _each("parallel", layers, params, key, stats)
        ]
        if all(isinstance(b, Sequences) for b in branches):
            return Sequences(join([b.values for b in branches]), branches[0].lengths)
        return join(branches)

    def kernel(kernel: Kernel) -> Kernel:
        branches = tuple(layer.kernel(kernel) for layer in layers)
        if combine == "concatenate":
            return limit.concatenate(branches, layer="parallel")
        combined = limit.add if combine == "sum" else limit.multiply
        return combined(kernel, branches, layer="parallel")

    join_like = partial(parallel, combine=combine)
    return _joined(init, apply, kernel, "parallel", layers, join_like)


def residual(layer: Layer, shortcut: Layer | None = None) -> Layer:
    """layer(x) + shortcut(x), the shortcut being the identity unless given.

    Params are those of `parallel(layer, shortcut)`. Source: He et al. (2016), equation 1.

    >>> from jaxnn import nn
    >>> net = residual(serial(nn.relu(), nn.dense(3)))
    >>> net.init(jax.random.key(0), (3,))[1]
    (3,)
    """
    return parallel(layer, identity() if shortcut is None else shortcut)


def _joined(
    init, apply, kernel, name: str, parts: tuple[Layer, ...], join: Callable[..., Layer]
) -> Layer:
    mixes = any(part.mixes_positions for part in parts)
    return Layer(
        *(init, apply, kernel, name, parts),
        reads_lengths=True,
        mixes_positions=mixes,
        join=join,
    )


def _applied(
    layer: Layer, params: Params, x: Array | Sequences, key: Key | None, stats: Params
) -> Any:
    if isinstance(x, Sequences) and not layer.reads_lengths:
        return x._replace(values=layer.apply(params, x.values, key=key, stats=stats))
    return layer.apply(params, x, key=key, stats=stats)


def _split(key: Key, layers: tuple[Layer, ...]) -> list[Key]:
    return list(jax.random.split(key, len(layers))) if layers else []


def _each(
    name: str, layers: tuple[Layer, ...], params: Params, key: Key | None, stats: Params
) -> list[tuple]:
    nothing = [None] * len(layers)
    stats = nothing if stats is None else stats
    for argument, value in (("params", params), ("stats", stats)):
        listed = isinstance(value, (tuple, list))
        if not listed or len(value) != len(layers):
            raise invalid(
                f"{name}.apply: {argument}",
                got=f"{len(value)} entries" if listed else type(value).__name__,
                expected=f"one entry for each of {len(layers)} layers",
                remedy="Pass what this network's own init returned.",
            )
    keys = nothing if key is None else _split(key, layers)
    return list(zip(layers, params, keys, stats, strict=True))

"""The guard against coupled examples: what it says of a function is held to the definition.

Every case is also decided by brute force: an example is replaced, and the outputs of the others are
looked at. "independent" is an exact promise. "coupled" may be said only where data meet, "unknown"
of anything.

More than 500 lines, as it is one table of cases by primitive, each too small for a file.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import equinox as eqx
import flax.linen as linen
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxnn import nn
from jaxnn.kernels.batch_layout import (
    UNKNOWN,
    Lost,
    Place,
    joined,
    placed,
    reshaped,
    rows,
    whole,
)
from jaxnn.kernels.coupling import Coupling, coupling, require_independent

N = 4  # also a size of features, so that nothing is told apart by its size


def dependence(f, params, x):
    """[j, i]: whether the output of example i changes when example j is replaced."""
    run = jax.jit(f).lower(params, x).compile({"xla_backend_optimization_level": 0})
    before = jax.tree.leaves(run(params, x))
    changed = np.zeros((N, N), bool)
    for j in range(N):
        for out, other in zip(before, jax.tree.leaves(run(params, replaced(x, j))), strict=True):
            same = np.isclose(out, other, rtol=1e-5, atol=1e-6, equal_nan=True)
            changed[j] |= ~same.reshape(N, -1).all(axis=1)
    return changed


def replaced(x, j):
    def leaf(a):
        if jnp.issubdtype(a.dtype, jnp.integer):
            return a.at[j].set((a[j] + 1) % 3)
        return a.at[j].set(a[j] * -0.6 + jnp.linspace(0.3, 1.9, a[j].size).reshape(a[j].shape))

    return jax.tree.map(leaf, x)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class Case(NamedTuple):
    f: object  # f(params, x), or f(x)
    x: object
    kind: str


PARAMS = {
    "w": normal(4, 4, seed=1),
    "v": normal(4, 3, seed=2),
    "b": normal(4, seed=3),
    "table": normal(7, 5, seed=4),
}
TOKENS = jnp.asarray(np.random.default_rng(5).integers(0, 3, size=(N, 6)))
ROWS, SEQUENCE, IMAGE = normal(N, 4), normal(N, 6, 4), normal(N, 6, 5, 3)
KEY, SUM = jax.random.key(0), float(ROWS.sum())
POSITIVE = jnp.abs(ROWS) % 0.9 + 0.05


# What a list of functions of x (N, 4) is to be.

INDEPENDENT = {
    "dense": lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"],
    "layer norm": lambda p, x: (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-3),
    "the data itself": lambda p, x: x,
    "a pytree": lambda p, x: {"a": x @ p["v"], "b": [x.sum(1), x > 0]},
    "parameters alone": lambda p, x: jnp.broadcast_to(p["b"], (N, 4)),
    "beside an unused mean": lambda p, x: (x.mean(0), x * 2)[1],
    "features first": lambda p, x: (p["v"].T @ jnp.sin(p["w"] @ x.T)).T,
    "features first, normalized": lambda p, x: (x.T - x.T.mean(0)).T,
    "swapped twice": lambda p, x: x[None].swapaxes(0, 1).swapaxes(1, 2)[:, :, 0],
    "einsum": lambda p, x: jnp.einsum("ni,ij,nj->n", x, p["w"], x),
    "einsum, outer": lambda p, x: jnp.einsum("ni,nj->nij", x, x),
    "einsum, batch last": lambda p, x: jnp.einsum("ni,ij->jn", x, p["v"]).T,
    "index of the largest": lambda p, x: jnp.argmax(x, axis=1),
    "variadic reduce": lambda p, x: lax.reduce(
        (x, x * 2), (0.0, 0.0), lambda a, b: (a[0] + b[0], jnp.maximum(a[1], b[1])), (1,)
    ),
    "cumulative": lambda p, x: jnp.cumsum(x, 1) + lax.cummax(x, axis=1) + jnp.cumprod(x, 1),
    "sorted": lambda p, x: jnp.sort(x, axis=1),
    "ranked": lambda p, x: jnp.argsort(x, axis=1),
    "median": lambda p, x: jnp.median(x, axis=1),
    "two largest": lambda p, x: lax.top_k(x, 2),
    "approximately largest": lambda p, x: lax.approx_max_k(x, 2),
    "logsumexp": lambda p, x: jax.nn.logsumexp(x, axis=1),
    "one-hot": lambda p, x: jax.nn.one_hot(jnp.argmax(x, 1), 4) @ p["v"],
    "taken along": lambda p, x: jnp.take_along_axis(x, jnp.argsort(x, axis=1), axis=1),
    "some features": lambda p, x: x[:, jnp.array([2, 0])] + x[:, 1:3] * x[:, ::2],
    "reversed features": lambda p, x: x[:, ::-1] + jnp.roll(x, 1, axis=1),
    "features set": lambda p, x: x.at[:, 1].set(0.0).at[:, 2].add(x[:, 0]),
    "row set": lambda p, x: x.at[2].set(0.0),
    "diagonal within": lambda p, x: jnp.diagonal(x[:, :, None] * p["w"], axis1=1, axis2=2),
    "split and joined": lambda p, x: jnp.concatenate(jnp.split(x, 2, axis=1)[::-1], axis=1),
    "tiled and repeated": lambda p, x: jnp.tile(jnp.repeat(x, 2, axis=1), (1, 3)),
    "padded": lambda p, x: jnp.pad(x, ((0, 0), (1, 2))) + jnp.pad(x, ((0, 0), (3, 0)), mode="edge"),
    "dynamic slice": lambda p, x: lax.dynamic_slice_in_dim(x, jnp.argmax(p["b"]), 2, axis=1),
    "dynamic update": lambda p, x: lax.dynamic_update_slice(p["w"], x[:, 1:3], (0, 1)),
    "within halves of the batch": lambda p, x: jnp.concatenate([jnp.sin(x[:1]), jnp.sin(x[1:])]),
    "two batches in one": lambda p, x: sum(jnp.split(jnp.concatenate([x, 2 * x]) @ p["w"], 2)),
    "a loop in Python": lambda p, x: jnp.stack([jnp.tanh(p["w"] @ e) for e in x]),
    "repeated rows": lambda p, x: jnp.tanh(jnp.repeat(x, 3, axis=0)).reshape(N, 3, 4).sum(1),
    "tiled rows": lambda p, x: jnp.tanh(jnp.tile(x, (3, 1))).reshape(3, N, 4).sum(0),
    "microbatches": lambda p, x: jnp.tanh(x.reshape(2, 2, 4) @ p["w"]).reshape(N, 4),
    "solve": lambda p, x: jnp.linalg.solve(p["w"], x.T).T,
    "solve per example": lambda p, x: jnp.linalg.solve(
        p["w"] + jax.vmap(jnp.diag)(x), x[..., None]
    ),
    "triangular": lambda p, x: lax.linalg.triangular_solve(p["w"], x, lower=True),
    "matrices of an example": lambda p, x: jnp.linalg.cholesky(
        jnp.einsum("ni,nj->nij", x, x) + 2 * jnp.eye(4)
    ),
    "determinant": lambda p, x: jnp.linalg.det(p["w"] + jax.vmap(jnp.diag)(x)),
    "eigenvalues": lambda p, x: jnp.linalg.eigvalsh(p["w"] @ p["w"].T + jax.vmap(jnp.diag)(x)),
    "qr": lambda p, x: jnp.linalg.qr(p["w"] + jax.vmap(jnp.diag)(x))[1],
    "Fourier": lambda p, x: jnp.abs(jnp.fft.rfft(x, axis=1)),
    "bits": lambda p, x: lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int8), "float32"),
    "mapped": lambda p, x: lax.map(lambda e: jnp.tanh(p["w"] @ e), x),
    "mapped in chunks": lambda p, x: lax.map(lambda e: p["w"] @ e, x, batch_size=2),
    "mapped in ragged chunks": lambda p, x: lax.map(lambda e: p["w"] @ e, x, batch_size=3),
    "mapped twice": lambda p, x: lax.map(lambda e: lax.map(jnp.sin, e) * e, x),
    "vmapped": lambda p, x: jax.vmap(lambda e: jnp.sort(p["w"] @ e) * e.sum())(x),
    "vmapped over features": lambda p, x: jax.vmap(jnp.sin, in_axes=1, out_axes=1)(x),
    "looped": lambda p, x: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["w"]) + i * x, x),
    "stacked layers": lambda p, x: lax.scan(
        lambda h, w: (jnp.tanh(h @ w), h.sum(1)), x, jnp.stack([p["w"]] * 3)
    )[0],
    "layers' activations": lambda p, x: (
        lax.scan(lambda h, w: (jnp.tanh(h @ w), h.sum(1)), x, jnp.stack([p["w"]] * 3))[1].T
    ),
    "while on parameters": lambda p, x: lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x)
    )[1],
    "while per example": lambda p, x: jax.vmap(
        lambda e: lax.while_loop(lambda h: jnp.abs(h).sum() > 1, lambda h: 0.7 * h, e)
    )(x),
    "while in a map": lambda p, x: lax.map(
        lambda e: lax.while_loop(lambda h: jnp.abs(h).sum() > 1, lambda h: 0.7 * h, e), x
    ),
    "cond on parameters": lambda p, x: lax.cond(p["b"][0] > 0, jnp.sin, jnp.cos, x),
    "cond per example": lambda p, x: jax.vmap(
        lambda e: lax.cond(e.sum() > 0, lambda: 2 * e, lambda: e.mean() * e)
    )(x),
    "cond in a map": lambda p, x: lax.map(
        lambda e: lax.switch(jnp.argmax(e), [jnp.sin, jnp.cos, jnp.tanh, jnp.exp], e), x
    ),
    "jit": lambda p, x: jax.jit(lambda a, b: (b @ a, b.sum(1)))(p["w"], x),
    "remat": lambda p, x: jax.checkpoint(lambda w, h: jnp.sin(h @ w))(p["w"], x),
    "closed over": lambda p, x: x * PARAMS["b"] + np.arange(4.0, dtype=np.float32),
    "gradient of the input": lambda p, x: jax.grad(lambda z: jnp.tanh(z @ p["w"]).sum())(x),
    "tangent": lambda p, x: jax.jvp(lambda z: jnp.tanh(z @ p["w"]), (x,), (x * x,))[1],
    "selected": lambda p, x: jnp.where(x.sum(1, keepdims=True) > 0, jnp.sin(x), p["b"]),
    "clipped": lambda p, x: jnp.clip(x, -(p["b"][0] ** 2), x.max(1, keepdims=True) / 2),
    "dropout, fixed key": lambda p, x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape),
    "a key per example": lambda p, x: (
        x
        + jax.vmap(partial(jax.random.normal, shape=(4,)))(
            jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.argmax(x, 1))
        )
    ),
    "searched": lambda p, x: jnp.searchsorted(jnp.sort(p["b"]), x),
    "interpolated": lambda p, x: jnp.interp(x, jnp.sort(p["b"]), p["w"][0]),
    "position of the row": lambda p, x: x * jnp.arange(4.0)[:, None],
    "barrier": lambda p, x: lax.optimization_barrier((x, p["b"]))[0],
}
POINTWISE = {  # every activation, and the special functions, all in one program each
    jax.nn: "celu elu gelu glu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid log_softmax "
    "mish relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus sparse_sigmoid "
    "squareplus standardize tanh",
    nn: "abs cos elu erf gelu identity leaky_relu relu selu sigmoid sin softmax softplus swish "
    "tanh",
    jnp: "arccos arccosh arctan cbrt ceil exp2 expm1 floor frexp i0 isnan log1p nan_to_num rint "
    "sign signbit sinc sqrt trunc",
    jax.scipy.special: "digamma erf erfinv expit gammaln i1e logit ndtri",
}
ARITHMETIC = {
    "powers": lambda x: jnp.arctan2(x, 1 + x) ** 2 % 0.7 // 0.1 + jnp.power(x, 2.5) ** -3,
    "integers": lambda x: ((x * 9).astype(int) << 2 | 3) ^ 5 & ~(x * 7).astype(int),
    "complex": lambda x: jnp.abs(jnp.exp(1j * x) * lax.complex(x, -x)).real,
    "gamma": lambda x: jax.scipy.special.gammainc(x, 0.5) + jax.scipy.special.betainc(x, x, 0.3),
    "low precision": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
    "stopped": lax.stop_gradient,
}


def pointwise(module, names):
    if module is nn:
        layers = [getattr(nn, name)() for name in names.split()]
        return lambda p, x: [layer.apply(layer.init(KEY, (4,))[0], x) for layer in layers]
    return lambda p, x: [getattr(module, name)(x) for name in names.split()]


COUPLED = {
    "mean": lambda p, x: x - x.mean(0),
    "batch norm": lambda p, x: jax.nn.standardize(x, axis=0) * p["b"],
    "outer product": lambda p, x: x @ x.T,
    "features meet examples": lambda p, x: x @ x,
    "attention over the batch": lambda p, x: jax.nn.softmax(x @ x.T) @ x,
    "softmax over the batch": lambda p, x: jax.nn.softmax(x, axis=0),
    "cumulative over the batch": lambda p, x: jnp.cumsum(x, axis=0),
    "sorted over the batch": lambda p, x: jnp.sort(x, axis=0),
    "largest of the batch": lambda p, x: x * (jnp.argmax(x, axis=0) + 1),
    "top of the batch": lambda p, x: x + lax.top_k(x.T, 1)[0][:, 0],
    "approximate top of the batch": lambda p, x: x + lax.approx_max_k(x.T, 1)[0].T,
    "flipped": lambda p, x: x[::-1],
    "first row": lambda p, x: x - x[0],
    "last row": lambda p, x: x - x[-1:],
    "one row for all": lambda p, x: jnp.broadcast_to(x[1], (N, 4)),
    "halves meet": lambda p, x: jnp.concatenate([x[:2] + x[2:], x[2:]]),
    "pairs": lambda p, x: jnp.sum(jnp.abs(x[:, None] - x[None]), axis=-1),
    "transposed": lambda p, x: x + x.T,
    "mixed parameters": lambda p, x: p["w"] @ x,
    "Fourier over the batch": lambda p, x: jnp.abs(jnp.fft.fft(x, axis=0)),
    "solved for triangles": lambda p, x: lax.linalg.triangular_solve(
        p["w"], x, left_side=True, lower=True
    ),
    "coordinates from many": lambda p, x: normal(2, 2, 2, 2)[tuple((x > 0).astype(int))],
    "whitened": lambda p, x: jnp.linalg.qr(x)[0],
    "cond on the batch": lambda p, x: lax.cond(x.sum() > SUM + 0.1, jnp.sin, jnp.cos, x),
    "while on the batch": lambda p, x: lax.while_loop(
        lambda h: jnp.sum(h * h) > 0.5, lambda h: 0.98 * h, x
    ),
    "carried over the batch": lambda p, x: lax.scan(lambda h, e: (h + e, h), p["b"], x)[1],
    "summed over the batch": lambda p, x: x + lax.scan(lambda h, e: (h + e, None), p["b"], x)[0],
    "a map that sees all": lambda p, x: lax.map(lambda e: x @ e, x),
    "microbatch statistics": lambda p, x: jax.nn.standardize(x.reshape(2, 2, 4), axis=1).reshape(
        N, 4
    ),
    "mean in jit": lambda p, x: jax.jit(lambda h: h - h.mean(0))(x),
    "mean in remat": lambda p, x: jax.checkpoint(lambda h: jnp.sin(h - h.mean(0)))(x),
    "mean in a loop": lambda p, x: lax.fori_loop(0, 2, lambda i, h: h - h.mean(0) * 0.3, x),
    "mean over a named axis": lambda p, x: jax.vmap(
        lambda e: e - lax.pmean(e, "batch"), axis_name="batch"
    )(x),
}
# Nothing is claimed; the second word is the truth.
UNKNOWN_CASES = {
    "a loop over examples": (
        "independent",
        lambda p, x: lax.fori_loop(0, N, lambda i, out: out.at[i].set(jnp.sin(x[i])), x),
    ),
    "its own row, by index": ("independent", lambda p, x: x[jnp.arange(N), jnp.argmax(x, 1)]),
    "rows in another order": ("coupled", lambda p, x: x[jnp.array([1, 0, 3, 2])]),
    "rolled": ("coupled", lambda p, x: jnp.roll(x, 1, axis=0)),
    "every second row": ("coupled", lambda p, x: jnp.repeat(x[::2], 2, axis=0)),
    "moving average": (
        "coupled",
        lambda p, x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 1), (1, 1), "SAME"),
    ),
    "summed by segment": (
        "coupled",
        lambda p, x: jax.ops.segment_sum(x, jnp.array([0, 0, 1, 1]), N),
    ),
    # Shifted by a row, where all sizes are still multiples of N.
    "shifted, padding": ("coupled", lambda p, x: jnp.pad(x, ((1, 3), (0, 0)))[:N]),
    "shifted, slice": (
        "coupled",
        lambda p, x: lax.dynamic_slice(twice(x), (jnp.argmax(p["b"]) * 0 + 1, 0), (N, 4)),
    ),
    "shifted, slices": (
        "coupled",
        lambda p, x: jax.vmap(lambda i: lax.dynamic_slice_in_dim(twice(x), i, N))(jnp.ones(1, int))[
            0
        ],
    ),
    "shifted, written": (
        "coupled",
        lambda p, x: lax.dynamic_update_slice(jnp.zeros((2 * N, 4)), x, (1, 0))[:N],
    ),
    "shifted, scattered": ("coupled", lambda p, x: jnp.zeros((2 * N, 4)).at[1 : N + 1].set(x)[:N]),
    "spread out": ("coupled", lambda p, x: twice(x)[::2]),
    "a convolution over examples": (
        "coupled",
        lambda p, x: lax.conv_general_dilated(x.T[:1, None], normal(1, 1, 2), (1,), "SAME").ravel(),
    ),
    "reshape that mixes": ("coupled", lambda p, x: (x[:, :3].reshape(3, 4).sum(0)) + x[:, 0]),
    "reshape there and back": (
        "independent",
        lambda p, x: jnp.sin(x[:, :3].reshape(3, 4)).reshape(4, 3),
    ),
    "solved over the batch": ("coupled", lambda p, x: jnp.linalg.solve(p["w"], x)),
    "one of two layouts": (
        "coupled",
        lambda p, x: lax.cond(p["b"][0] < 9, lambda: x.T, lambda: x),
    ),
    "turned in a loop": ("coupled", lambda p, x: lax.fori_loop(0, 3, lambda i, h: h.T, x)),
    "by way of the host": (
        "independent",
        lambda p, x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    ),
    "a mutable array": ("coupled", lambda p, x: through_a_ref(x)),
}


def twice(x):
    return jnp.concatenate([x, x])


def through_a_ref(x):
    ref = jax.new_ref(jnp.zeros((4,)))
    ref[...] = x.sum(0)
    return x * ref[...]


# Convolutions, pooling, sequences, tokens.


def conv(*, space=2, groups=1, batch_groups=1, **options):
    """A convolution with the batch first in x, under other orders of the axes within."""

    def f(p, x):
        names = "HWD"[:space]
        orders = options.get("orders", ("N" + names + "C", names + "IO", "N" + names + "C"))
        x = x.reshape(N, *((6, 5, 3) if space == 2 else (30, 3) if space == 1 else (3, 5, 2, 3)))
        channels = 3
        if groups > 1:
            x, channels = jnp.concatenate([x, x * x], axis=-1), 6
        canonical = "N" + names + "C"
        x = jnp.transpose(x, [canonical.index(c) for c in orders[0]])
        kernel = normal(*(2,) * space, channels // groups, 2 * groups * batch_groups)
        kernel = jnp.transpose(kernel, [(names + "IO").index(c) for c in orders[1]])
        y = lax.conv_general_dilated(
            x,
            kernel,
            options.get("strides", (1,) * space),
            options.get("padding", "SAME"),
            lhs_dilation=options.get("dilation"),
            dimension_numbers=orders,
            feature_group_count=groups,
            batch_group_count=batch_groups,
        )
        return jnp.moveaxis(y, orders[2].index("N"), 0)

    return f


def weight_gradients(p, x):
    """Per-example gradients of a convolution's kernel: vmap of a convolution with groups."""
    w = normal(3, 2, 3, 4)
    loss = lambda w, e: jnp.sum(jnp.sin(conv_valid(e[None], w)))
    return jax.vmap(jax.grad(loss), (None, 0))(w, x)


def conv_valid(x, w, groups=1):
    return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


IMAGES = {
    "conv 1d": (conv(space=1), "independent"),
    "conv 2d, strided": (conv(strides=(2, 1), padding="VALID"), "independent"),
    "conv 3d": (conv(space=3), "independent"),
    "conv, channels first": (conv(orders=("NCHW", "OIHW", "NCHW")), "independent"),
    "conv, batch last": (conv(orders=("HWCN", "IOHW", "CNHW")), "independent"),
    "conv, grouped": (conv(groups=3, orders=("CHWN", "OHWI", "HNWC")), "independent"),
    "conv, transposed": (conv(dilation=(2, 2), padding=((1, 2), (0, 1))), "independent"),
    "conv over groups of the batch": (
        lambda p, x: jnp.tile(conv(batch_groups=2)(p, x), (2, 1, 1, 1)),
        "coupled",
    ),
    "conv with the batch as channels": (
        lambda p, x: jnp.moveaxis(conv_valid(jnp.moveaxis(x, 0, -1), normal(2, 2, N, N)), -1, 0),
        "coupled",
    ),
    "conv with the batch as separate channels": (
        lambda p, x: jnp.moveaxis(conv_valid(jnp.moveaxis(x, 0, -1), normal(2, 2, 1, N), N), -1, 0),
        "independent",
    ),
    "conv with the batch in space": (
        lambda p, x: conv_valid(x.reshape(1, N, 30, 3), normal(1, 3, 3, 2))[0],
        "independent",
    ),
    "conv per example, vmapped": (
        lambda p, x: jax.vmap(lambda e: conv_valid(e[None], normal(2, 2, 3, 4))[0])(x),
        "independent",
    ),
    "kernels made from the example": (
        lambda p, x: jax.vmap(lambda e: conv_valid(e[None], e[:2, :2, :, None] * normal(4)))(x),
        "independent",
    ),
    "kernels made from the example, grouped": (
        lambda p, x: jax.vmap(
            lambda e: conv_valid(e[None], e[:2, :2, :1, None] * normal(6), groups=3)
        )(x),
        "independent",
    ),
    "kernels made from the batch": (lambda p, x: conv_valid(x, x[:, :2, :3]), "coupled"),
    "gradients of the kernel": (weight_gradients, "independent"),
    "max pool": (lambda p, x: linen.max_pool(x, (2, 2), (2, 2)), "independent"),
    "mean pool": (lambda p, x: linen.avg_pool(x, (3, 2), (1, 2), "SAME"), "independent"),
    "gradient of max pool": (
        lambda p, x: jax.grad(lambda z: jnp.sum(linen.max_pool(z, (2, 2), (2, 2)) ** 2))(x),
        "independent",
    ),
    "global pool": (lambda p, x: x.mean((1, 2)), "independent"),
    "flattened": (lambda p, x: x.reshape(N, -1) @ normal(90, 2), "independent"),
    "patches": (
        lambda p, x: (
            x[:, :, :4]
            .reshape(N, 3, 2, 2, 2, 3)
            .swapaxes(2, 3)
            .reshape(N * 6, 12)
            .dot(normal(12, 5))
            .reshape(N, 6, 5)
        ),
        "independent",
    ),
    "group norm": (
        lambda p, x: jax.nn.standardize(x.reshape(N, 6, 5, 1, 3), axis=(1, 2, 4)).reshape(x.shape),
        "independent",
    ),
    "batch norm over space": (lambda p, x: jax.nn.standardize(x, axis=(0, 1, 2)), "coupled"),
    "resized": (lambda p, x: jax.image.resize(x, (N, 3, 10, 3), "bilinear"), "independent"),
    "resized over the batch": (
        lambda p, x: (
            jax.image.resize(x, (N, 3, 10, 3), "bilinear")
            + jax.image.resize(x, (2, 3, 10, 3), "bilinear").mean(0)
        ),
        "coupled",
    ),
}
SEQUENCES = {
    "dense over merged axes": (
        lambda p, x: jnp.tanh(x.reshape(-1, 4) @ p["w"]).reshape(N, 6, 4),
        "independent",
    ),
    "dense over merged axes, time first": (
        lambda p, x: jnp.tanh(x.swapaxes(0, 1).reshape(-1, 4) @ p["w"]).reshape(6, N, 4)[-1],
        "independent",
    ),
    "norm over merged axes": (
        lambda p, x: jax.nn.standardize(x.reshape(-1, 4), axis=0).reshape(x.shape),
        "coupled",
    ),
    "attention": (lambda p, x: attention(x), "independent"),
    "attention over all": (
        lambda p, x: attention(x.reshape(1, -1, 4)).reshape(x.shape),
        "coupled",
    ),
    "causal": (
        lambda p, x: jax.nn.dot_product_attention(*[x[:, :, None]] * 3, is_causal=True),
        "independent",
    ),
    "a token of parameters": (
        lambda p, x: attention(
            jnp.concatenate([jnp.broadcast_to(p["b"], (N, 1, 4)), x + normal(6, 4)], axis=1)
        )[:, 0],
        "independent",
    ),
    "recurrent": (lambda p, x: recurrent(p, x)[0], "independent"),
    "recurrent, all states, backward": (
        lambda p, x: recurrent(p, x[:, ::-1])[1].swapaxes(0, 1),
        "independent",
    ),
    "recurrent per example": (
        lambda p, x: jax.vmap(lambda e: recurrent(p, e[None])[0][0])(x),
        "independent",
    ),
    "recurrent with batch statistics": (
        lambda p, x: lax.scan(
            lambda h, e: (jnp.tanh(h - h.mean(0) + e), None), jnp.zeros((N, 4)), x.swapaxes(0, 1)
        )[0],
        "coupled",
    ),
    "scan over merged axes": (
        lambda p, x: lax.map(lambda e: p["w"] @ e, x.reshape(-1, 4)).reshape(x.shape),
        "independent",
    ),
    "unrolled": (lambda p, x: sum(jnp.sin(x[:, t]) * t for t in range(6)), "independent"),
}
TOKEN_CASES = {
    "embedding": (lambda p, x: p["table"][x], "independent"),
    "embedding, taken": (lambda p, x: jnp.take(p["table"], x, axis=0).mean(1), "independent"),
    "embedding as one-hot": (lambda p, x: jax.nn.one_hot(x, 7) @ p["table"], "independent"),
    "integers out": (lambda p, x: x.sum(1), "independent"),
    "counts": (
        lambda p, x: jax.vmap(lambda e: jnp.zeros(7).at[e].add(1.0))(x),
        "independent",
    ),
    "counts of the batch": (
        lambda p, x: jax.nn.one_hot(x, 7).sum(0).mean(0) * x[:, :1],
        "coupled",
    ),
}


def attention(x):
    scores = jnp.einsum("nqi,nki->nqk", x, x) / 2
    return jnp.einsum("nqk,nki->nqi", jax.nn.softmax(scores), x)


def recurrent(p, x):
    def step(carry, e):
        h, c = carry
        c = jax.nn.sigmoid(e @ p["w"]) * c + jnp.tanh(h @ p["w"] + p["b"])
        h = jax.nn.sigmoid(e) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[0], 4))
    (h, _), hs = lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
    return h, hs


def cases():
    yield from ((name, Case(f, ROWS, "independent")) for name, f in INDEPENDENT.items())
    yield from ((name, Case(f, ROWS, "coupled")) for name, f in COUPLED.items())
    for module, names in POINTWISE.items():
        yield module.__name__, Case(pointwise(module, names), POSITIVE, "independent")
    everything = lambda p, x: [f(x) for f in ARITHMETIC.values()]
    yield "arithmetic", Case(everything, POSITIVE, "independent")
    for table, x in ((IMAGES, IMAGE), (SEQUENCES, SEQUENCE), (TOKEN_CASES, TOKENS)):
        yield from ((name, Case(f, x, kind)) for name, (f, kind) in table.items())


CASES = dict(cases())
assert len(CASES) == len(list(cases()))


def check(f, params, x, kind):
    found = coupling(f, params, x)
    truth = dependence(f, params, x)
    others = truth & ~np.eye(N, dtype=bool)
    assert others.any() == (kind == "coupled"), "the case itself is not what it says"
    assert found.kind == kind, found
    assert bool(found.where) == (kind == "coupled")


@pytest.mark.parametrize("name", CASES)
def test_says_what_brute_force_says(name, standard_promotion):
    f, x, kind = CASES[name]
    check(f, PARAMS, x, kind)


# Models of the libraries in use: name -> () -> (f, params, x, kind).


class LinenResNet(linen.Module):
    train: bool

    @linen.compact
    def __call__(self, x):
        normalized = partial(linen.BatchNorm, use_running_average=not self.train)
        h = linen.relu(normalized()(linen.Conv(4, (3, 3), use_bias=False)(x)))
        h = normalized(scale_init=linen.initializers.zeros)(linen.Conv(4, (3, 3))(h))
        x = linen.max_pool(linen.relu(h + linen.Conv(4, (1, 1))(x)), (2, 2), (2, 2))
        return linen.Dense(3)(linen.GroupNorm(2)(x).mean((1, 2)))


class LinenViT(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (2, 2), strides=(2, 2))(x)
        x = x.reshape(x.shape[0], -1, 8)
        token = self.param("token", linen.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("position", linen.initializers.normal(), (1, *x.shape[1:]))
        h = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=True)(h, h)
        x = x + linen.Dense(8)(linen.gelu(linen.Dense(16)(linen.LayerNorm()(x))))
        return linen.Dense(3)(x[:, 0])


class LinenLSTM(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        x = linen.Embed(7, 5)(tokens)
        x = linen.RNN(linen.OptimizedLSTMCell(4))(x)
        lengths = jnp.full(x.shape[0], 5)
        x = linen.Bidirectional(linen.RNN(linen.GRUCell(4)), linen.RNN(linen.GRUCell(4)))(
            x, seq_lengths=lengths
        )
        return linen.Dense(3)(x[:, -1])


def filled(structure):
    """Positive random numbers: zeros at initialization would hide what is behind them."""

    def leaf(s):
        if not isinstance(s, jax.ShapeDtypeStruct):
            return s
        if jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            return KEY
        return jnp.asarray(np.abs(normal(*s.shape)) + np.float32(0.1), s.dtype)

    return jax.tree.map(leaf, structure)


def of_linen(model, x, kind, **options):
    def build():
        variables = filled(jax.eval_shape(model.init, KEY, x))
        outputs = lambda v, x: model.apply(v, x, **options)
        f = (lambda v, x: outputs(v, x)[0]) if options else outputs
        return f, variables, x, kind

    return build


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.recurrent = nnx.RNN(nnx.LSTMCell(4, 4, rngs=rngs))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = self.recurrent(self.attention(x.reshape(x.shape[0], -1, 4)))
        return self.out(self.dropout(x[:, -1]))


def of_nnx(mode, kind):
    def build():
        model = nnx.eval_shape(lambda: NnxBlock(nnx.Rngs(0)))
        getattr(model, mode)()
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        params, rest = filled(params), filled(rest)
        return lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), params, IMAGE, kind

    return build


def of_equinox(make, apply, x, kind="independent"):
    def build():
        params, static = eqx.partition(filled(eqx.filter_eval_shape(make)), eqx.is_inexact_array)
        return lambda p, x: apply(eqx.combine(p, static), x), params, x, kind

    return build


def eqx_conv():
    keys = jax.random.split(KEY, 3)
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(6, 4, 3, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.GroupNorm(2, 4),
            eqx.nn.MaxPool2d(2),
            eqx.nn.ConvTranspose2d(4, 2, 2, key=keys[1]),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.LayerNorm(6),
            eqx.nn.Linear(6, 3, key=keys[2]),
        ]
    )


def eqx_attention():
    return eqx.nn.MultiheadAttention(2, 4, key=KEY)


def over_time(cell, e):
    return lax.scan(lambda h, z: (cell(z, h), None), jnp.zeros(4), e)[0]


over_batch = partial(jax.vmap, axis_name="batch", in_axes=(0, None), out_axes=(0, None))


def eqx_batch_norm(train):
    def build():
        model, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="ema")
        state = over_batch(model)(ROWS, state)[1]
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def f(p, x):
            norm = eqx.nn.inference_mode(eqx.combine(p, static), not train)
            return over_batch(norm)(x, state)[0]

        return f, params, ROWS, "coupled" if train else "independent"

    return build


def of_haiku(net, x, kind="independent", wrap=lambda f: f):
    def build():
        pure = hk.transform_with_state(net)
        params, state = filled(jax.eval_shape(pure.init, KEY, x))
        return wrap(lambda p, x: pure.apply(p, state, KEY, x)[0]), params, x, kind

    return build


def hk_residual(x, train=False):
    # The running statistics exist once they have been trained.
    train = train or hk.running_init()
    h = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(3, 3)(x), is_training=train)
    return hk.Linear(3)(
        hk.Flatten()(hk.avg_pool(jax.nn.relu(h + x), (2, 2, 1), (2, 2, 1), "VALID"))
    )


def hk_recurrent(x):
    x = hk.BatchApply(hk.Sequential([hk.Linear(4), jax.nn.relu]))(x.swapaxes(0, 1))
    x, _ = hk.dynamic_unroll(hk.LSTM(4), x, hk.LSTM(4).initial_state(x.shape[1]))
    return hk.BatchApply(hk.Linear(3))(x).swapaxes(0, 1)


def hk_transformer(x):
    x = x + hk.MultiHeadAttention(2, 2, w_init=hk.initializers.RandomNormal())(x, x, x)
    return hk.nets.MLP([8, 4])(hk.LayerNorm(-1, True, True)(x))


def of_jaxnn(net, x, kind="independent"):
    params = lambda: filled(jax.eval_shape(lambda key: net.init(key, x.shape[1:])[0], KEY))
    return lambda: (net.apply, params(), x, kind)


TRAINING = {"mutable": ["batch_stats"]}
MODELS = {
    "jaxnn residual": of_jaxnn(
        nn.serial(nn.residual(nn.mlp((4, 4))), nn.relu(), nn.dense(2)), ROWS
    ),
    "linen ResNet, training": of_linen(LinenResNet(True), IMAGE, "coupled", **TRAINING),
    "linen ResNet": of_linen(LinenResNet(False), IMAGE, "independent"),
    "linen ViT": of_linen(LinenViT(), IMAGE, "independent"),
    "linen LSTM": of_linen(LinenLSTM(), TOKENS, "independent"),
    "nnx, training": of_nnx("train", "coupled"),
    "nnx": of_nnx("eval", "independent"),
    "equinox MLP": of_equinox(
        lambda: eqx.nn.MLP(4, 3, 8, 2, key=KEY), lambda m, x: jax.vmap(m)(x), ROWS
    ),
    "equinox GRU": of_equinox(
        lambda: eqx.nn.GRUCell(4, 4, key=KEY),
        lambda m, x: jax.vmap(partial(over_time, m))(x),
        SEQUENCE,
    ),
    "equinox CNN": of_equinox(eqx_conv, lambda m, x: jax.vmap(m)(x), IMAGE),
    "equinox attention": of_equinox(
        eqx_attention, lambda m, x: jax.vmap(lambda e: m(e, e, e))(x), SEQUENCE
    ),
    "equinox attention over the batch": of_equinox(
        eqx_attention, lambda m, x: m(x, x, x), ROWS, "coupled"
    ),
    "equinox batch norm, training": eqx_batch_norm(True),
    "equinox batch norm": eqx_batch_norm(False),
    "haiku CNN": of_haiku(hk_residual, IMAGE),
    "haiku CNN, training, jit": of_haiku(
        partial(hk_residual, train=True), IMAGE, "coupled", wrap=jax.jit
    ),
    "haiku LSTM, jit": of_haiku(hk_recurrent, SEQUENCE, wrap=jax.jit),
    "haiku transformer": of_haiku(hk_transformer, SEQUENCE),
}


@pytest.mark.parametrize("name", MODELS)
def test_follows_models_of_every_library(name, standard_promotion):
    check(*MODELS[name]())


@pytest.mark.parametrize("name", UNKNOWN_CASES)
def test_claims_nothing_where_it_cannot_follow(name, standard_promotion):
    truth, f = UNKNOWN_CASES[name]
    assert dependence(f, PARAMS, ROWS)[~np.eye(N, dtype=bool)].any() == (truth == "coupled")
    found = coupling(f, PARAMS, ROWS)
    assert found.kind == "unknown"
    assert "test_coupling.py:" in found.where


# What is said of outputs and inputs.


def centered(p, x):
    return x - x.mean(0, keepdims=True)


def network(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]


@pytest.mark.parametrize(
    "f",
    [
        lambda p, x: x.T,
        lambda p, x: jnp.sum(p["w"]),
        lambda p, x: (x, p["v"][:3]),
        lambda p, x: x[:3],
        lambda p, x: jnp.tile(x, (2, 1)),
        lambda p, x: {"rows": x, "first": x[0]},
    ],
)
def test_every_output_holds_one_row_per_example(f):
    kind, where = coupling(f, PARAMS, ROWS)
    assert kind == "coupled"
    assert where.startswith("the output f(params, x)")
    assert "axis 0" in where


def test_names_where_examples_meet():
    def f(p, x):
        return x - jnp.mean(x, axis=0, keepdims=True)

    kind, where = coupling(f, PARAMS, ROWS)
    line = f.__code__.co_firstlineno + 1
    assert kind == "coupled"
    assert where.startswith("reduce_sum at ")
    assert f"test_coupling.py:{line}:" in where


def test_one_example_is_independent():
    assert coupling(centered, PARAMS, ROWS[:1]) == Coupling("independent", "")


def test_needs_no_values():
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (PARAMS, ROWS))
    assert coupling(centered, *shapes).kind == "coupled"
    assert coupling(INDEPENDENT["solve"], *shapes).kind == "independent"
    kinds = []

    @jax.jit
    def inside(p, x):
        kinds.append(coupling(network, p, x).kind)
        kinds.append(coupling(lambda p, z: z + x.sum(), p, x).kind)  # x is a constant here
        require_independent(network, p, x)
        return x

    inside(PARAMS, ROWS)
    assert kinds == ["independent", "independent"]


def test_inputs_may_be_pytrees():
    x = {"image": IMAGE, "keys": jax.random.split(KEY, N), "tokens": TOKENS}

    def f(p, x, mix=lambda a: a):
        noise = jax.vmap(lambda key: jax.random.normal(key, (6,)))(x["keys"])
        return x["image"].mean((1, 2, 3))[:, None] * noise + mix(p["table"][x["tokens"]].sum(2))

    assert coupling(f, PARAMS, x).kind == "independent"
    assert coupling(partial(f, mix=lambda a: a[::-1]), PARAMS, x).kind == "coupled"
    require_independent(f, PARAMS, x)


@pytest.mark.parametrize("x", [(), jnp.ones(()), (ROWS, jnp.ones((3, 4))), {"a": ROWS, "b": 1.0}])
def test_inputs_share_an_axis_of_examples(x):
    with pytest.raises(
        ValueError, match=r"x: got leaves of shapes .* expected arrays \(N, \.\.\.\)"
    ):
        coupling(lambda p, x: x, PARAMS, x)


# The guard.


def test_guard_passes_what_is_independent(dtype):
    x = ROWS.astype(dtype)
    params = jax.tree.map(lambda a: a.astype(dtype), PARAMS)
    require_independent(network, params, x)
    require_independent(hidden(lambda x: jnp.sin(x)), params, x)


def test_guard_names_place_and_remedy():
    with pytest.raises(ValueError, match="examples that meet in reduce_sum at ") as error:
        require_independent(centered, PARAMS, ROWS)
    for words in (
        "f(params, x): got",
        "expected a function that treats",
        "nn.calibrate",
        "coupled=True",
    ):
        assert words in str(error.value)


def hidden(f):
    """f, by a way through which the batch cannot be followed."""
    order = np.array([2, 0, 3, 1])

    def g(params, x):
        index = order[order < len(x)]
        return jax.tree.map(lambda out: out[np.argsort(index)], f(x[index]))

    return g


def test_guard_compares_values_where_it_cannot_follow(dtype):
    x = ROWS.astype(dtype)
    for f in (
        lambda x: x - x.mean(0, keepdims=True),
        lambda x: {"a": x, "b": (x > x.mean(0, keepdims=True)).astype(int)},
        lambda x: jnp.where(x > x.mean(0, keepdims=True), jnp.nan, x),
        lambda x: jnp.where(x > x.mean(0, keepdims=True), jnp.inf, x),
        lambda x: x[:, 0] > x[:, 0].mean(),
        lambda x: lax.complex(x, x.sum(0, keepdims=True) + 0 * x),
        lambda x: jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.argsort(x[:, 0])),
    ):
        assert coupling(hidden(f), PARAMS, x).kind == "unknown"
        with pytest.raises(
            ValueError, match=r"outputs that change by .* cannot be followed past gather"
        ):
            require_independent(hidden(f), PARAMS, x)
    for f in (
        lambda x: {"a": x * 2, "b": jnp.argmax(x, 1), "c": x > 0},
        lambda x: jnp.where(x > 0, jnp.nan, jnp.where(x < -1, jnp.inf, x)),
        lambda x: lax.complex(x, jnp.sin(x)),
        lambda x: jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.argmax(x, 1)),
    ):
        assert coupling(hidden(f), PARAMS, x).kind == "unknown"
        require_independent(hidden(f), PARAMS, x)


def test_guard_sees_behind_parameters_that_are_zero():
    gated = lambda p, x: hidden(lambda x: x + p["gate"] * x.mean(0, keepdims=True))(p, x)
    params = {"gate": jnp.zeros(()), "steps": 3}
    alone = gated(params, ROWS[1:2])[0]
    np.testing.assert_array_equal(gated(params, ROWS)[1], alone)
    with pytest.raises(ValueError, match="gradients that change by"):
        require_independent(gated, params, ROWS)


def test_guard_raises_under_a_trace_what_it_cannot_know():
    f = lambda p, x: jnp.sin(hidden(lambda x: x)(p, x)) * p[None]
    for transform in (jax.jit, lambda g: jax.grad(lambda p, x: g(p, x).sum())):
        with pytest.raises(ValueError, match=r"under a trace.*outside jit.*coupled=True"):
            transform(lambda p, x: (require_independent(f, p, x), f(p, x))[1])(PARAMS["b"], ROWS)


def test_guard_explains_a_function_of_whole_batches_only():
    f = lambda p, x: x[jnp.array([1, 0, 3, 2])].reshape(N, 2, 2)[:, 0] + jnp.ones((N, 2))
    with pytest.raises(ValueError, match="by a function that fails on a single example"):
        require_independent(lambda p, x: hidden(lambda x: x.reshape(2, 8))(p, x)[:1], {}, ROWS)
    with pytest.raises(ValueError, match="outputs that change by"):
        require_independent(f, {}, ROWS)


# The algebra of layouts, against arrays that hold the index of the example in every entry.


def examples(state, shape):
    index, weight = np.full(shape, state.first), 1
    for axis, stride, size in reversed(state.places):
        index += np.indices(shape)[axis] // stride % size * weight
        weight *= size
    return index


def layouts(seed, count=300):
    """Random layouts of 12 examples: (state, shape)."""
    rng = np.random.default_rng(seed)
    splits = ((12,), (3, 4), (2, 6), (2, 2, 3), (1, 12))
    for _ in range(count):
        digits = splits[rng.integers(len(splits))]
        axes = [*digits, *rng.integers(1, 4, size=2)]
        order = [int(k) for k in rng.permutation(len(axes))]
        shape = tuple(int(axes[k]) for k in order)
        places = [Place(order.index(i), 1, n) for i, n in enumerate(digits) if n > 1]
        state, cut = placed(0, places), int(rng.integers(1, len(shape)))
        merged = (*shape[: cut - 1], shape[cut - 1] * shape[cut], *shape[cut + 1 :])
        once = reshaped(state, shape, merged)
        yield (state, shape) if isinstance(once, Lost) else (once, merged)


def shapes_of_size(size, rng):
    shape = []
    while size > 1:
        shape.append(int(rng.choice([d for d in range(2, size + 1) if size % d == 0])))
        size //= shape[-1]
    return tuple(int(n) for n in rng.permutation(shape))


def test_reshape_follows_the_memory():
    rng, followed = np.random.default_rng(0), 0
    for state, shape in layouts(1):
        new = shapes_of_size(int(np.prod(shape)), rng)
        after = reshaped(state, shape, new)
        if after != UNKNOWN:
            followed += 1
            np.testing.assert_array_equal(examples(after, new), examples(state, shape).reshape(new))
            assert reshaped(after, new, shape) == state
    assert followed > 100


def test_rows_and_joins_follow_the_examples():
    rng, counts = np.random.default_rng(2), np.zeros(3, int)
    for state, shape in layouts(3):
        axis = int(rng.integers(len(shape)))
        bounds = np.unique([0, *rng.integers(0, shape[axis] + 1, size=2), shape[axis]]).tolist()
        parts, sizes, index = [], [], examples(state, shape)
        for start, stop in pairwise(bounds):
            part = rows(state, axis, start, stop)
            taken = index.take(range(start, stop), axis)
            parts.append(part)
            sizes.append(stop - start)
            if part != UNKNOWN:
                counts[0] += 1
                np.testing.assert_array_equal(examples(part, taken.shape), taken)
        if UNKNOWN not in parts:
            counts[1] += 1
            again = joined(parts, sizes, axis)
            counts[2] += again != UNKNOWN
            if again != UNKNOWN:
                np.testing.assert_array_equal(examples(again, shape), index)
    assert min(counts) > 100


def test_joins_only_what_follows_one_another():
    first, second = rows(whole(4), 0, 0, 2), rows(whole(4), 0, 2, 4)
    assert joined([first, second], [2, 2], 0) == whole(4)
    assert joined([second, first], [2, 2], 0) == UNKNOWN
    assert joined([first, first], [2, 2], 0) == first
    assert joined([first, None], [2, 3], 0) == UNKNOWN
    assert joined([first, None], [2, 4], 0) == first
    assert joined([whole(4), None], [4, 4], 1) == whole(4)

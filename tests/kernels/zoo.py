"""Small functions of every kind that a kernel is to be exact on: name -> (f, params, x1, x2).

Sizes differ along every axis and between the batches, so that no transposition goes unnoticed.
Everything is drawn in JAX's default float at the time of the call.
"""

import math

import composed
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn import nn

N1, N2 = 3, 2


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def bias(b, like):
    return jnp.broadcast_to(b, like.shape)


def vectors(size=5):
    return normal(90, N1, size), normal(91, N2, size)


def sequences(steps=4, size=5):
    return normal(92, N1, steps, size), normal(93, N2, steps, size)


def images(height=5, width=6, channels=4):
    return normal(94, N1, height, width, channels), normal(95, N2, height, width, channels)


def tokens(length=4, vocabulary=7):
    return tuple(
        jax.random.randint(jax.random.key(seed), (n, length), 0, vocabulary)
        for seed, n in ((96, N1), (97, N2))
    )


W, V = lambda: normal(1, 5, 4), lambda: normal(3, 4, 3)

VECTOR_FUNCTIONS = {
    # name: (f, params)
    "dense": lambda: (lambda p, x: x @ p, W()),
    "mlp": lambda: (
        lambda p, x: jnp.tanh(x @ p["W"] + bias(p["b"], x @ p["W"])) @ p["V"],
        {"W": W(), "b": normal(2, 4), "V": V()},
    ),
    "scalar output": lambda: (lambda p, x: jnp.tanh(x @ p[0]) @ p[1], (W(), normal(2, 4))),
    "matrix output": lambda: (lambda p, x: jnp.tanh(x @ p).reshape(-1, 2, 2), W()),
    "pytree output": lambda: (
        lambda p, x: {"a": jnp.tanh(x @ p[0]), "b": (x @ p[0]) @ p[1]},
        (W(), V()),
    ),
    "scaled": lambda: (lambda p, x: jnp.tanh(x @ (0.5 * p[0])) @ (p[1] / -3.0), (W(), V())),
    "negated": lambda: (lambda p, x: jnp.tanh(x @ -p[0]) @ p[1], (W(), V())),
    "transposed": lambda: (lambda p, x: jnp.tanh(x @ p[0].T) @ p[1], (normal(1, 4, 5), V())),
    "weight on the left": lambda: (
        lambda p, x: jnp.tanh((p[0] @ x.T).T) @ p[1],
        (normal(1, 4, 5), V()),
    ),
    "reshaped": lambda: (
        lambda p, x: jnp.tanh(x @ p[0].reshape(5, 4)) @ p[1],
        (normal(1, 2, 10), V()),
    ),
    "sliced": lambda: (lambda p, x: jnp.tanh(x @ p[0][1:6, ::2]) @ p[1], (normal(1, 7, 8), V())),
    "reversed": lambda: (lambda p, x: jnp.tanh(x @ p[0][::-1]) @ p[1], (W(), V())),
    "concatenated": lambda: (
        lambda p, x: jnp.tanh(x @ jnp.concatenate(p[:2], axis=1)) @ p[2],
        (normal(1, 5, 1), normal(2, 5, 3), V()),
    ),
    "stacked rows": lambda: (
        lambda p, x: jnp.tanh(x @ jnp.stack(p[:5])) @ p[5],
        (*(normal(i, 4) for i in range(5)), V()),
    ),
    "padded": lambda: (
        lambda p, x: jnp.tanh(x @ jnp.pad(p[0], ((1, 0), (0, 1)))) @ p[1],
        (normal(1, 4, 3), V()),
    ),
    "gathered constant rows": lambda: (
        lambda p, x: jnp.tanh(x @ p[0][jnp.array([3, 0, 1, 5, 2])]) @ p[1],
        (normal(1, 6, 4), V()),
    ),
    "repeated rows": lambda: (
        lambda p, x: jnp.tanh(x @ p[0][jnp.array([0, 0, 1, 1, 2])]) @ p[1],
        (normal(1, 3, 4), V()),
    ),
    "selected": lambda: (
        lambda p, x: jnp.tanh(x @ jnp.where(np.arange(20).reshape(5, 4) % 2 == 0, p[0], p[1])),
        (W(), normal(2, 5, 4)),
    ),
    "tied twice": lambda: (
        lambda p, x: jnp.tanh(jnp.tanh(x @ p) @ p),
        normal(1, 5, 5),
    ),
    "tied autoencoder": lambda: (lambda p, x: jnp.tanh(jnp.tanh(x @ p) @ p.T) @ p, W()),
    "tied, scaled apart": lambda: (
        lambda p, x: jnp.tanh(jnp.tanh(x @ (2.0 * p)) @ (0.3 * p)),
        normal(1, 5, 5),
    ),
    "overlapping slices": lambda: (
        lambda p, x: jnp.tanh(x @ p[:5]) + jnp.tanh(x @ p[1:6]),
        normal(1, 7, 4),
    ),
    "disjoint slices": lambda: (
        lambda p, x: jnp.tanh(x @ p[:5]) * jnp.tanh(x @ p[5:]),
        normal(1, 10, 4),
    ),
    "split product": lambda: (
        lambda p, x: sum(jnp.sin(h) for h in jnp.split(x @ p, 3, axis=1)),
        normal(1, 5, 12),
    ),
    "bias only": lambda: (lambda p, x: jnp.tanh(x[:, :4] + bias(p, x[:, :4])), normal(2, 4)),
    "scale only": lambda: (lambda p, x: jnp.tanh(x * bias(p, x)), normal(2, 5)),
    "parameters returned": lambda: (
        lambda p, x: jnp.broadcast_to(jnp.sin(p), (x.shape[0], 4)),
        normal(2, 4),
    ),
    "parameters added at the end": lambda: (
        lambda p, x: x @ p[1] + jnp.broadcast_to(p[0] ** 2, (x.shape[0], 4)),
        (normal(2, 4), W()),
    ),
    "unused parameter": lambda: (lambda p, x: x @ p[0], (W(), normal(2, 4))),
    "no parameter used": lambda: (lambda p, x: jnp.sin(x), (W(),)),
    "prelu": lambda: (
        lambda p, x: nn.activations.leaky_relu(x @ p[0], p[1]) @ p[2],
        (W(), jnp.asarray(0.3), V()),
    ),
    "relu": lambda: (lambda p, x: jax.nn.relu(x @ p[0]) @ p[1], (W(), V())),
    "remat": lambda: (
        lambda p, x: jax.checkpoint(lambda h: jnp.tanh(h @ p[0]))(x) @ p[1],
        (W(), V()),
    ),
    "jit": lambda: (
        lambda p, x: jax.jit(lambda h, w: jnp.tanh(h @ w))(x, p[0]) @ p[1],
        (W(), V()),
    ),
    "custom_vjp": lambda: (lambda p, x: jnp.tanh(clipped(x @ p[0])) @ p[1], (W(), V())),
    "custom_vjp of a parameter": lambda: (lambda p, x: jnp.tanh(x @ clipped(p[0])), (W(),)),
    "custom_jvp product": lambda: (lambda p, x: jnp.tanh(doubled_product(x, p)), W()),
    "layer norm": lambda: (
        lambda p, x: normalized(x @ p["W"]) * bias(p["gamma"], x @ p["W"]),
        {"W": W(), "gamma": normal(2, 4)},
    ),
    "sort": lambda: (lambda p, x: jnp.sort(jnp.tanh(x @ p[0]), axis=1) @ p[1], (W(), V())),
    "cond on parameters": lambda: (
        lambda p, x: lax.cond(p[0, 0] > 0, lambda: jnp.tanh(x @ p), lambda: x @ p),
        W(),
    ),
    "fori_loop": lambda: (
        lambda p, x: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p), x),
        normal(1, 5, 5),
    ),
    "stacked layers": lambda: (
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w["W"] + bias(w["b"], h)), None), x, p)[0],
        {"W": normal(1, 3, 5, 5), "b": normal(2, 3, 5)},
    ),
    "stacked layers, reversed and scaled": lambda: (
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ (0.7 * w.T)), None), x, p, reverse=True)[
            0
        ],
        normal(1, 3, 5, 5),
    ),
    "one layer repeated": lambda: (
        lambda p, x: lax.scan(lambda h, _: (jnp.tanh(h @ p), None), x, length=3)[0],
        normal(1, 5, 5),
    ),
    "nested scans": lambda: (
        lambda p, x: lax.scan(
            lambda h, w: (
                lax.scan(lambda g, u: (jnp.tanh(g @ u), None), h, w)[0],
                None,
            ),
            x,
            p,
        )[0],
        normal(1, 2, 3, 5, 5),
    ),
    "scan carrying parameters": lambda: (
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), bias(p[0], x) + 0 * x, p[1])[0],
        (normal(1, 5), normal(2, 2, 5, 5)),
    ),
    "lax.map over features": lambda: (
        lambda p, x: lax.map(lambda w: jnp.tanh(x @ w), p).T,
        normal(1, 4, 5),
    ),
    "vmap over heads": lambda: (
        lambda p, x: jax.vmap(lambda w: jnp.tanh(x @ w), out_axes=1)(p),
        normal(1, 3, 5, 4),
    ),
    "outer product of parameters": lambda: (
        lambda p, x: jnp.tanh(x @ jnp.outer(p[0], p[1])),
        (normal(1, 5), normal(2, 4)),
    ),
    "quadratic form": lambda: (lambda p, x: jnp.einsum("ni,ij,nj->n", x, p, x), normal(1, 5, 5)),
    "mixture": lambda: (
        lambda p, x: jax.nn.softmax(x @ p[0]) * jnp.tanh(x @ p[1]),
        (W(), normal(2, 5, 4)),
    ),
}

SEQUENCE_FUNCTIONS = {
    "dense at every position": lambda: (
        lambda p, x: jnp.tanh(jnp.einsum("ntd,dk->ntk", x, p[0])).mean(1) @ p[1],
        (W(), V()),
    ),
    "weights per position": lambda: (
        lambda p, x: jnp.einsum("nti,tik->ntk", jnp.tanh(x), p),
        normal(1, 4, 5, 2),
    ),
    "one attention head": lambda: (
        lambda p, x: (jax.nn.softmax(jnp.einsum("ntd,dk,nsk->nts", x, p[0], x)) @ (x @ p[1])).sum(
            1
        ),
        (normal(1, 5, 5), W()),
    ),
    "recurrence": lambda: (recurrence, (W(), normal(2, 4, 4), V())),
    "gated recurrence": lambda: (gated, (normal(1, 9, 12), normal(2, 12), V())),
    "unrolled recurrence": lambda: (unrolled, (W(), normal(2, 4, 4), V())),
    "1-d convolution": lambda: (
        lambda p, x: jnp.tanh(
            lax.conv_general_dilated(x, p, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        ).sum(1),
        normal(1, 3, 5, 2),
    ),
    "cumulative sum": lambda: (
        lambda p, x: jnp.cumsum(jnp.tanh(x @ p), axis=1)[:, -1],
        W(),
    ),
}


def convolution(dimensions=("NHWC", "HWIO", "NHWC"), **options):
    settings = {"window_strides": (1, 1), "padding": "SAME", **options}

    def f(w, x):
        y = lax.conv_general_dilated(x, w, dimension_numbers=dimensions, **settings)
        return jnp.tanh(y).reshape(y.shape[0], -1)[:, ::7]

    return f


IMAGE_FUNCTIONS = {
    "convolution": lambda: (convolution(), normal(1, 3, 3, 4, 2)),
    "valid, strided": lambda: (
        convolution(window_strides=(2, 1), padding="VALID"),
        normal(1, 3, 2, 4, 2),
    ),
    "grouped": lambda: (convolution(feature_group_count=2), normal(1, 3, 3, 2, 6)),
    "depthwise": lambda: (convolution(feature_group_count=4), normal(1, 3, 3, 1, 4)),
    "dilated, padded": lambda: (
        convolution(
            window_strides=(1, 2),
            rhs_dilation=(2, 1),
            lhs_dilation=(1, 2),
            padding=((1, 2), (0, 1)),
        ),
        normal(1, 3, 2, 4, 2),
    ),
    "channels first": lambda: (
        convolution(("NCHW", "OIHW", "NCHW")),
        normal(1, 2, 5, 3, 3),
    ),
    "negative padding": lambda: (
        convolution(padding=((-1, 1), (2, -1))),
        normal(1, 2, 3, 4, 2),
    ),
    "scaled, transposed window": lambda: (
        lambda w, x: convolution()(0.4 * w.transpose(1, 0, 2, 3), x),
        normal(1, 3, 2, 4, 2),
    ),
    "bias of all positions": lambda: (
        lambda p, x: jnp.tanh(convolution_map(p[0], x) + p[1].reshape(1, 1, 1, -1)).sum((1, 2)),
        (normal(1, 3, 3, 4, 2), normal(2, 2)),
    ),
    "bias of all channels": lambda: (
        lambda p, x: jnp.tanh(p[1].reshape(1, 5, 6, 1) + convolution_map(p[0], x)).sum((1, 2)),
        (normal(1, 3, 3, 4, 2), normal(2, 5, 6)),
    ),
    "pooled": lambda: (
        lambda w, x: nn_pool(convolution_map(w, x)),
        normal(1, 3, 3, 4, 2),
    ),
    "residual": lambda: (
        lambda p, x: (x + jax.nn.relu(convolution_map(p, x))).mean((1, 2)),
        normal(1, 3, 3, 4, 4),
    ),
}

TOKEN_FUNCTIONS = {
    "embedding": lambda: (
        lambda p, x: jnp.tanh(p[0][x].reshape(x.shape[0], -1)) @ p[1],
        (normal(1, 7, 3), normal(2, 12, 2)),
    ),
    "scaled embedding": lambda: (
        lambda p, x: jnp.tanh(jnp.take(2.0 * p[0], x, axis=0).mean(1)) @ p[1],
        (normal(1, 7, 3), normal(2, 3, 2)),
    ),
    "embedding, out of range": lambda: (
        lambda p, x: jnp.take(p, x + 3, axis=0, mode="fill", fill_value=0.0).sum(1),
        normal(1, 7, 3),
    ),
    "embedding, clipped": lambda: (
        lambda p, x: jnp.tanh(jnp.take(p, x + 3, axis=0, mode="clip").sum(1)),
        normal(1, 7, 3),
    ),
    "embedding by columns": lambda: (
        lambda p, x: jnp.tanh(jnp.take(p, x, axis=1).sum(2)).T,
        normal(1, 3, 7),
    ),
    "tied embedding": lambda: (
        lambda p, x: jnp.tanh(p[0][x].mean(1) @ p[1]) @ p[0].T,
        (normal(1, 7, 3), normal(2, 3, 3)),
    ),
    "two look-ups": lambda: (
        lambda p, x: jnp.tanh(p[x[:, 0]] * p[x[:, 1]]),
        normal(1, 7, 3),
    ),
    "one-hot": lambda: (
        lambda p, x: jnp.tanh(jax.nn.one_hot(x, 7, dtype=p.dtype).mean(1) @ p),
        normal(1, 7, 3),
    ),
}


@jax.custom_vjp
def clipped(x):
    return jnp.clip(x, -1.0, 1.0)


clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (g,))


@jax.custom_jvp
def doubled_product(x, w):
    return x @ w


@doubled_product.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return x @ w, 2.0 * (dx @ w + x @ dw)


def normalized(h):
    mean = h.mean(1, keepdims=True)
    return (h - jnp.broadcast_to(mean, h.shape)) / jnp.broadcast_to(
        jnp.sqrt(h.var(1, keepdims=True) + 1e-3), h.shape
    )


def recurrence(p, x):
    def step(h, x_t):
        return jnp.tanh(x_t @ p[0] + h @ p[1]), None

    h, _ = lax.scan(step, jnp.zeros((x.shape[0], 4), x.dtype), jnp.swapaxes(x, 0, 1))
    return h @ p[2]


def unrolled(p, x):
    h = jnp.zeros((x.shape[0], 4), x.dtype)
    for t in range(x.shape[1]):
        h = jnp.tanh(x[:, t] @ p[0] + h @ p[1])
    return h @ p[2]


def gated(p, x):
    def step(carry, x_t):
        h, c = carry
        z = jnp.concatenate([x_t, h], axis=1) @ p[0]
        i, f, o = jnp.split(z + bias(p[1], z), 3, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros((x.shape[0], 4), x.dtype)
    (h, _), _ = lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))
    return h @ p[2]


def convolution_map(w, x):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def nn_pool(y):
    return lax.reduce_window(
        jnp.tanh(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    ).sum((1, 2))


FUNCTIONS = {
    **{name: (make, vectors) for name, make in VECTOR_FUNCTIONS.items()},
    **{name: (make, vectors) for name, make in composed.VECTOR_FUNCTIONS.items()},
    **{name: (make, sequences) for name, make in SEQUENCE_FUNCTIONS.items()},
    **{name: (make, images) for name, make in IMAGE_FUNCTIONS.items()},
    **{name: (make, images) for name, make in composed.IMAGE_FUNCTIONS.items()},
    **{name: (make, tokens) for name, make in TOKEN_FUNCTIONS.items()},
}


def case(name):
    """(f, params, x1, x2) of a function of the zoo."""
    make, inputs = FUNCTIONS[name]
    return (*make(), *inputs())


def jacobian_kernel(f, params, x1, x2):
    """Σ_θ ∂f_a(x)/∂θ ∂f_b(x')/∂θ from the Jacobian of the whole batch, (N1, N2, O, O)."""

    def rows(x):
        def vector(p):
            return jnp.concatenate(
                [y.reshape(x.shape[0], -1) for y in jax.tree.leaves(f(p, x))], axis=1
            )

        leaves = jax.tree.leaves(jax.jacrev(vector)(params))
        return jnp.concatenate([j.reshape(*j.shape[:2], -1) for j in leaves], axis=2)

    return jnp.einsum("nax,mbx->nmab", rows(x1), rows(x2))


def flat(kernel):
    """A full kernel, of a pytree of outputs too, as (N1, N2, O, O)."""
    if isinstance(kernel, dict):
        rows = [jnp.concatenate([flat(k) for k in row.values()], axis=3) for row in kernel.values()]
        return jnp.concatenate(rows, axis=2)
    n, m, *out = kernel.shape
    first = math.prod(out[: len(out) // 2])
    return kernel.reshape(n, m, first, -1)


def together(functions, names=None):
    """(f, params) of functions name -> (f, params) side by side: one vector, and kernels apart."""
    chosen = {name: functions[name] for name in names or functions}
    params = {name: params for name, (_, params) in chosen.items()}

    def f(p, x):
        outputs = [f(p[name], x).reshape(len(x), -1) for name, (f, _) in chosen.items()]
        return jnp.concatenate(outputs, axis=1)

    return f, params

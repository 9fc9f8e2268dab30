"""Functions whose weights are computed from parameters, name -> (f, params), as those of `zoo`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


W, V = lambda: normal(1, 5, 4), lambda: normal(3, 4, 3)


def norm(w, axis=0):
    return jnp.sqrt(jnp.sum(w**2, axis=axis, keepdims=True))


def convolved(x, w, groups=1):
    y = lax.conv_general_dilated(
        x,
        w,
        (1, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return jnp.tanh(y).sum((1, 2))


def scanned(p, x):
    h, _ = lax.scan(lambda h, v: (jnp.tanh(h @ (v / norm(v))), None), x, p)
    return h


FROZEN = np.cos(np.arange(20.0).reshape(5, 4))
COLUMNS = np.array([1.0, -2.0, 0.5, 3.0])
ROWS = np.array([1.0, -2.0, 0.5, 3.0, 0.0])[:, None]

VECTOR_FUNCTIONS = {
    # Regrouped: every parameter becomes a factor.
    "low rank": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] @ p[1])) @ p[2],
        (normal(1, 5, 2), normal(2, 2, 4), V()),
    ),
    "low rank, transposed": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] @ p[1]).T) @ p[2],
        (normal(1, 4, 2), normal(2, 2, 5), V()),
    ),
    "product of three": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] @ p[1] @ p[2].T)),
        (normal(1, 5, 2), normal(2, 2, 6), normal(3, 4, 6)),
    ),
    "product of blocks": lambda: (
        lambda p, x: jnp.tanh(
            jnp.einsum("nhd,hdk->nhk", x[:, :4].reshape(-1, 2, 2), jnp.matmul(p[0], p[1]))
        ),
        (normal(1, 2, 2, 6), normal(2, 2, 6, 3)),
    ),
    "frozen plus low rank": lambda: (
        lambda p, x: jnp.tanh(x @ (FROZEN.astype(x.dtype) + 0.3 * (p[0] @ p[1]))) @ p[2],
        (normal(1, 5, 2), normal(2, 2, 4), V()),
    ),
    "difference": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] - 2.0 * p[1].T)),
        (W(), normal(2, 4, 5)),
    ),
    "symmetrized": lambda: (lambda p, x: jnp.tanh(x @ (p + p.T)), normal(1, 5, 5)),
    "scaled by constant columns": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] * COLUMNS[None].astype(p[0].dtype))) @ p[1],
        (W(), V()),
    ),
    "scaled by constant rows": lambda: (
        lambda p, x: jnp.tanh(x @ (ROWS.astype(p[0].dtype) * p[0])) @ p[1],
        (W(), V()),
    ),
    "weight norm by rows": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] * p[1][:, None])) @ p[2],
        (W(), normal(2, 5), V()),
    ),
    "learned scale": lambda: (lambda p, x: jnp.tanh(x @ (p[0] * p[1])), (normal(1), W())),
    # With a channel: a parameter acts as a matrix, and through a number for every column.
    "weight norm": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] / norm(p[0]) * p[1][None])) @ p[2],
        (W(), normal(2, 4), V()),
    ),
    "weight norm, factors joined": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] * (p[1] / jnp.linalg.norm(p[0], axis=0))[None])),
        (W(), normal(2, 4)),
    ),
    "weight norm, outputs first": lambda: (
        lambda p, x: jnp.tanh(x @ (p[0] / norm(p[0], 1) * p[1][:, None]).T),
        (normal(1, 4, 5), normal(2, 4)),
    ),
    "weight norm of a square": lambda: (
        lambda p, x: jnp.tanh(x @ (p / norm(p))),
        normal(1, 5, 5),
    ),
    "weight norm of heads": lambda: (
        lambda p, x: jnp.tanh(jnp.einsum("nd,dhk->nhk", x, p / norm(p))),
        normal(1, 5, 2, 3),
    ),
    "spectral norm": lambda: (lambda p, x: jnp.tanh(x @ (p / jnp.sqrt(jnp.sum(p**2)))), W()),
    "norm of a number": lambda: (
        lambda p, x: jnp.tanh(x @ (p[1] * p[0] / jnp.sqrt(jnp.sum(p[0] ** 2)))),
        (W(), normal(2)),
    ),
    "tied, normalized once": lambda: (
        lambda p, x: jnp.tanh(jnp.tanh(x @ (p / norm(p))) @ p.T),
        W(),
    ),
    "tied, normalized twice": lambda: (
        lambda p, x: (lambda w: jnp.tanh(jnp.tanh(x @ w) @ w))(p / norm(p)),
        normal(1, 5, 5),
    ),
    # Formed: no such structure, or more of it than is looked for.
    "rows normalized in a square": lambda: (
        lambda p, x: jnp.tanh(x @ (p / norm(p, 1))),
        normal(1, 5, 5),
    ),
    "columns scaled by norms of rows": lambda: (
        lambda p, x: jnp.tanh(x @ (p / norm(p, 1).T)),
        normal(1, 5, 5),
    ),
    "columns scaled by other norms": lambda: (
        lambda p, x: jnp.tanh(x @ (p / norm(p)[:, ::-1])),
        W(),
    ),
    "centered and scaled": lambda: (
        lambda p, x: jnp.tanh(x @ ((p - p.mean(0)[None]) / jnp.std(p, axis=0)[None])),
        W(),
    ),
    "softmax of columns": lambda: (lambda p, x: x @ jax.nn.softmax(p, axis=0), W()),
    "one of the columns normalizes": lambda: (
        lambda p, x: jnp.tanh(x @ (p * p[0][None])),
        W(),
    ),
    "normalized layers in a scan": lambda: (scanned, normal(1, 3, 5, 5)),
    "masked": lambda: (
        lambda p, x: jnp.tanh(x @ (p * (np.arange(20).reshape(5, 4) % 3 > 0).astype(p.dtype))),
        W(),
    ),
}

IMAGE_FUNCTIONS = {
    "convolution, weight norm": lambda: (
        lambda p, x: convolved(x, p[0] * (p[1] / norm(p[0], (0, 1, 2)))),
        (normal(1, 3, 2, 4, 3), normal(2, 1, 1, 1, 3)),
    ),
    "convolution, groups normalized": lambda: (
        lambda p, x: convolved(x, p / norm(p, (0, 1, 2)), groups=2),
        normal(1, 3, 2, 2, 6),
    ),
    "convolution, sum": lambda: (
        lambda p, x: convolved(x, p[0] + 0.5 * p[1]),
        (normal(1, 3, 2, 4, 3), normal(2, 3, 2, 4, 3)),
    ),
    "convolution, inputs scaled": lambda: (
        lambda p, x: convolved(x, p[0] * p[1]),
        (normal(1, 3, 2, 4, 3), normal(2, 1, 1, 4, 1)),
    ),
    "convolution, outputs first": lambda: (
        lambda p, x: convolved(x, (p / norm(p, (1, 2, 3))).transpose(2, 3, 1, 0)),
        normal(1, 3, 4, 3, 2),
    ),
}

FACTORED = (
    "low rank",
    "low rank, transposed",
    "product of three",
    "product of blocks",
    "frozen plus low rank",
    "difference",
    "symmetrized",
    "scaled by constant columns",
    "scaled by constant rows",
    "convolution, sum",
)
"""Those in which every parameter has factors."""

CHANNELED = (
    "weight norm",
    "weight norm, factors joined",
    "weight norm, outputs first",
    "weight norm of a square",
    "weight norm of heads",
    "spectral norm",
    "norm of a number",
    "tied, normalized once",
    "tied, normalized twice",
    "convolution, weight norm",
    "convolution, groups normalized",
    "convolution, outputs first",
)
"""Those in which a matrix has a channel."""

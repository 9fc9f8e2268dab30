"""Boltzmann machines by brute force: every joint state, its energy by loops, in NumPy float64."""

import itertools

import numpy as np


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-np.asarray(z, float)))


def binary(units):
    return np.array(list(itertools.product([0.0, 1.0], repeat=units))).reshape(-1, units)


def rbm_params(seed, visible, hidden, dtype="float64", std=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"W": (visible, hidden), "b": (visible,), "c": (hidden,)}
    return {name: (std * rng.normal(size=s)).astype(dtype) for name, s in shapes.items()}


def rbm_energy(params, v, h):
    total = 0.0
    for i in range(len(v)):
        total -= params["b"][i] * v[i]
        for j in range(len(h)):
            total -= params["W"][i, j] * v[i] * h[j]
    return float(total - sum(params["c"][j] * h[j] for j in range(len(h))))


def rbm_joint(params):
    """(visible states, hidden states, exp(-E) of every pair)."""
    params = {name: np.asarray(a, float) for name, a in params.items()}
    v, h = (binary(params[name].size) for name in "bc")
    return v, h, np.exp([[-rbm_energy(params, a, b) for b in h] for a in v])


def dbm_params(seed, sizes, dtype="float64", std=1.0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (std * rng.normal(size=shape)).astype(dtype)
    return {
        "W": tuple(draw(m, n) for m, n in itertools.pairwise(sizes)),
        "b": tuple(draw(n) for n in sizes),
    }


def dbm_table(params):
    """(visible states, all hidden layers' states, exp(-E) of every pair): (2^v, 2^hidden)."""
    sizes = [b.size for b in params["b"]]
    starts = np.cumsum([0, *sizes])
    visible, hidden = binary(sizes[0]), binary(sum(sizes[1:]))
    table = np.zeros((len(visible), len(hidden)))
    for r, v in enumerate(visible):
        for s, h in enumerate(hidden):
            x = np.concatenate([v, h])
            layers = [x[a:b] for a, b in itertools.pairwise(starts)]
            minus = sum(np.float64(b @ y) for b, y in zip(params["b"], layers, strict=True))
            for W, (below, above) in zip(params["W"], itertools.pairwise(layers), strict=True):
                minus += below @ W @ above
            table[r, s] = np.exp(minus)
    return visible, hidden, table

"""Objectives whose critical points are known, in closed form or by scipy."""

import itertools

import jax.numpy as jnp
import numpy as np
from scipy.optimize import fsolve


def himmelblau(p):
    x, y = p
    return (x**2 + y - 11.0) ** 2 + (x + y**2 - 7.0) ** 2


def himmelblau_points():
    """Its nine critical points (9, 2), and the Hessians there, from derivatives by hand."""
    gradient = lambda p: [
        4 * p[0] * (p[0] ** 2 + p[1] - 11) + 2 * (p[0] + p[1] ** 2 - 7),
        2 * (p[0] ** 2 + p[1] - 11) + 4 * p[1] * (p[0] + p[1] ** 2 - 7),
    ]
    found = {}
    for start in itertools.product(np.linspace(-4.5, 4.5, 13), repeat=2):
        point, info, status, _ = fsolve(gradient, start, full_output=True, xtol=1e-14)
        if status == 1 and np.abs(info["fvec"]).max() < 1e-9:
            found[tuple(np.round(point, 6) + 0.0)] = point
    points = np.array(list(found.values()))
    x, y = points.T
    xx, yy, xy = 12 * x**2 + 4 * y - 42, 12 * y**2 + 4 * x - 26, 4 * (x + y)
    return points, np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)


def rotated(seed, values):
    """A symmetric matrix with these eigenvalues, in a random basis."""
    values = np.asarray(values, float)
    n = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return (q * values) @ q.T


VARIANCES = np.array([5.0, 3.5, 2.0, 1.2, 0.6])


class Autoencoder:
    """½ E‖x - W₂W₁x‖² for a covariance with the eigenvalues VARIANCES, and its critical points."""

    def __init__(self, seed, width):
        self.width, d = width, len(VARIANCES)
        self.basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
        self.covariance = (self.basis * VARIANCES) @ self.basis.T

    def loss(self, params, covariance):
        rest = jnp.eye(len(covariance), dtype=covariance.dtype) - params["W2"] @ params["W1"]
        return 0.5 * jnp.sum((rest @ covariance) * rest)

    def gradient_norm(self, w1, w2):
        error = (w2 @ w1 - np.eye(len(VARIANCES))) @ self.covariance
        return np.hypot(np.linalg.norm(w2.T @ error), np.linalg.norm(error @ w1.T))

    def subsets(self):
        sizes = range(self.width + 1)
        return [s for k in sizes for s in itertools.combinations(range(len(VARIANCES)), k)]

    def value_and_index(self, subset):
        """Baldi & Hornik (1989): what the critical points of a subset have in common."""
        outside = [j for j in range(len(VARIANCES)) if j not in subset]
        better = sum(VARIANCES[j] > VARIANCES[i] for i in subset for j in outside)
        free = self.width - len(subset)
        index = better + free * len(outside)
        return 0.5 * VARIANCES[outside].sum(), index

    def point(self, subset, seed):
        """W₂W₁ projects onto the eigenvectors of the subset; between them any basis does."""
        mixing = np.random.default_rng(seed).normal(size=(self.width, self.width))
        chosen = np.zeros((len(VARIANCES), self.width))
        chosen[:, : len(subset)] = self.basis[:, list(subset)]
        return {"W1": mixing @ chosen.T, "W2": chosen @ np.linalg.inv(mixing)}

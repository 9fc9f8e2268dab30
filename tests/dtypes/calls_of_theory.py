"""Calls of kernels, curvature, linear algebra, optimizers and training."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from calls import Call, data, floats, kernel, labels, parameters, share, small

from jaxnn import curvature, kernels, linalg, losses, nn, optimizers, training, tree
from jaxnn.precision import inexact

KEY = jax.random.key(0)
NET = nn.serial(nn.dense(4), nn.tanh(), nn.dense(2))
PARAMS = parameters(NET, (3,))
X, OTHER, Y = small(4, 3), small(2, 3), small(4, 2)
K, CROSS = kernel(4), small(2, 4)
HALF = {"ulps": 16.0}
NO_HALF = {"ulps": None}  # a decomposition or an integration to a tolerance: float32 at least


def objective(params, x, y):
    return jnp.mean(losses.half_squared_error(NET.apply(params, x), y))


def of_objective(f, **options) -> Call:
    """A function of an objective whose data are integers."""
    return Call(lambda p, x, y: f(objective, p, x, y), (PARAMS, X, Y), **{**NO_HALF, **options})


def dots(x1, x2=None):
    """A kernel function: 1 + ⟨x, x'⟩."""
    x1, x2 = inexact(x1), inexact(x1 if x2 is None else x2)
    return SimpleNamespace(nngp=1.0 + x1 @ x2.T, ntk=1.0 + x1 @ x2.T)


def kept(f, *args, **options) -> Call:
    return Call(f, args, "kept", **options)


KERNELS = {
    "kernels.alignment": Call(kernels.alignment, (data(4, 5), data(4, 5))),
    "kernels.centered_alignment": Call(kernels.centered_alignment, (K, kernel(4)), **HALF),
    "kernels.class_targets": kept(
        lambda y: kernels.class_targets(y, 3), labels(5, classes=3), **NO_HALF
    ),
    "kernels.effective_rank": Call(kernels.effective_rank, (K,), **HALF),
    "kernels.eigenmodes": Call(lambda k: kernels.eigenmodes(k).eigenvalues, (K,), **HALF),
    "kernels.ensemble_predictor": Call(
        lambda x, y: kernels.ensemble_predictor(dots, x, y, noise=1)(2, x[:2])[0],
        (X, Y),
        slow=True,
        **NO_HALF,
    ),
    "kernels.gp_posterior": Call(
        lambda k, y, c, o: tuple(kernels.gp_posterior(k, y, c, o, noise=1)[:2]),
        (K, Y, small(2, 4), np.full(2, 9.0, np.float32)),
        **NO_HALF,
    ),
    "kernels.gradient_descent": Call(
        lambda k, y, c: kernels.gradient_descent(k, y, 3, learning_rate=0.01, cross=c),
        (K, Y, CROSS),
        **NO_HALF,
    ),
    "kernels.gradient_flow": Call(
        lambda k, y, c: kernels.gradient_flow(k, y, 3, cross=c), (K, Y, CROSS), **NO_HALF
    ),
    "kernels.gradient_flow_of_loss": Call(
        lambda k, y, o: kernels.gradient_flow_of_loss(
            k, losses.half_squared_error, y, 1, outputs=o
        )[0],
        (K, small(4, 1), floats(4, 1)),
        **NO_HALF,
    ),
    "kernels.infinite": Call(lambda x1, x2: kernels.infinite(NET, x1, x2), (X, OTHER), **NO_HALF),
    "kernels.integrate": Call(
        lambda y: kernels.integrate(lambda t, y: -y, y, 0, 1)[0], (small(3),), **NO_HALF
    ),
    "kernels.linearize": Call(
        lambda p, x: kernels.linearize(NET.apply, PARAMS)(p, x), (PARAMS, X), **NO_HALF
    ),
    "kernels.log_marginal_likelihood": Call(
        lambda k, y: kernels.log_marginal_likelihood(k, y, noise=1), (K, Y), **NO_HALF
    ),
    "kernels.max_learning_rate": Call(kernels.max_learning_rate, (K,), **HALF),
    "kernels.monte_carlo": Call(
        lambda x: tuple(kernels.monte_carlo(NET, KEY, x, num_samples=2))[:2],
        (X,),
        slow=True,
        **NO_HALF,
    ),
    "kernels.nngp": Call(lambda p, x: kernels.nngp(NET.apply, p, x), (PARAMS, X), **HALF),
    "kernels.ntk": Call(
        lambda p, x, z: kernels.ntk(NET.apply, p, x, z), (PARAMS, X, OTHER), slow=True, **HALF
    ),
    "kernels.ntk_ensemble": Call(
        lambda k, t, y, c: kernels.ntk_ensemble(
            k, t, y, 2, cross_nngp=c, cross_ntk=c, own_nngp=9 * jnp.eye(2)
        ),
        (K, K, Y, CROSS),
        **NO_HALF,
    ),
    "kernels.ntk_operator": Call(
        lambda p, x: kernels.ntk_operator(NET.apply, p, x) @ jnp.ones((4, 2)),
        (PARAMS, X),
        **NO_HALF,
    ),
    "kernels.ntk_trajectory": Call(
        lambda p, x: kernels.ntk_trajectory(NET.apply, jax.tree.map(lambda a: a[None], p), x),
        (PARAMS, X),
        slow=True,
        **NO_HALF,
    ),
    "kernels.pivoted_cholesky": Call(
        lambda k: kernels.pivoted_cholesky(lambda i: k[:, i], jnp.diagonal(k), 3), (K,), **NO_HALF
    ),
    "kernels.relative_change": Call(kernels.relative_change, (data(3, 4, 4),), **HALF),
    "kernels.solve": Call(lambda k, b: kernels.solve(k, b, noise=1), (K, Y), **NO_HALF),
    "kernels.solve_iteratively": Call(
        lambda x, b: kernels.solve_iteratively(lambda a, b: dots(a, b).nngp, x, b, noise=1.0)[0],
        (X, Y),
        **NO_HALF,
    ),
    "kernels.taylor": Call(
        lambda p, x: kernels.taylor(NET.apply, PARAMS, 2)(p, x), (PARAMS, X), **NO_HALF
    ),
    "kernels.trained_parameters": Call(
        lambda p, x, c: kernels.trained_parameters(NET.apply, p, x, c), (PARAMS, X, Y), **NO_HALF
    ),
}

SPECTRUM = np.sort(np.abs(floats(6)))
VECTOR = tree.scale(0.5, PARAMS)


KFAC = partial(curvature.kfac, NET)


def matrix(operator):
    return operator @ VECTOR


CURVATURE = {
    "curvature.hessian": of_objective(lambda f, p, x, y: matrix(curvature.hessian(f, p, x, y))),
    "curvature.gauss_newton": Call(
        lambda p, x, y: matrix(
            curvature.gauss_newton(NET.apply, losses.half_squared_error, p, x, y)
        ),
        (PARAMS, X, Y),
        **NO_HALF,
    ),
    "curvature.fisher": Call(
        lambda p, x: matrix(curvature.fisher(NET.apply, p, x)), (PARAMS, X), **NO_HALF
    ),
    "curvature.kfac": Call(
        lambda p, x: [(factors.A, factors.G) for factors in KFAC(p, x).values()],
        (PARAMS, X),
        **NO_HALF,
    ),
    "curvature.drawn_labels": Call(
        lambda p, x: curvature.drawn_labels(NET.apply, p, x, KEY), (PARAMS, X), "kept", None
    ),
    "curvature.line_slice": Call(
        lambda p, x, y, d: curvature.line_slice(objective, p, VECTOR, d, x, y),
        (PARAMS, X, Y, small(3)),
        **NO_HALF,
    ),
    "curvature.plane_slice": Call(
        lambda p, x, y, d: curvature.plane_slice(objective, p, VECTOR, VECTOR, d, d, x, y),
        (PARAMS, X, Y, small(3)),
        **NO_HALF,
    ),
    "curvature.bezier": Call(
        lambda a, b, c, t: curvature.bezier(a, b, c, t),
        (floats(3), floats(3, seed=2), floats(3, seed=3), share()),
    ),
    "curvature.principal_directions": Call(
        curvature.principal_directions, (data(4, 3),), "refused", None
    ),
    "curvature.effective_dimension": Call(
        lambda s: curvature.effective_dimension(s, 1.0)[0], (data(6),), **HALF
    ),
    "curvature.effective_rank": Call(lambda s: curvature.effective_rank(s)[0], (data(6),), **HALF),
    "curvature.participation_ratio": Call(
        lambda s: curvature.participation_ratio(s)[0], (data(6),), **HALF
    ),
    "curvature.stable_rank": Call(lambda s: curvature.stable_rank(s)[0], (data(6),), **HALF),
    "curvature.outliers": Call(lambda s: curvature.outliers(s)[0], (data(6),), "kept", None),
    "curvature.filter_normalized": Call(
        curvature.filter_normalized, (data(3, 2), floats(3, 2)), "refused", 16.0
    ),
    "curvature.random_direction": Call(
        lambda p: curvature.random_direction(KEY, p), (data(3, 2),), "refused", None
    ),
}

DOUBLE = partial(tree.scale, 2.0)
DENSITY = linalg.SpectralDensity(
    nodes=jnp.array([[1.0, 2.0]]),
    weights=jnp.array([[0.5, 0.5]]),
    moments=jnp.array([[1.5, 2.5]]),
    size=2,
    products=2,
    symmetric=jnp.array(True),
)

LINALG = {
    "linalg.cg": Call(lambda b: linalg.cg(DOUBLE, b)[0], (small(4),), **NO_HALF),
    "linalg.minres": Call(lambda b: linalg.minres(DOUBLE, b)[0], (small(4),), **NO_HALF),
    "linalg.minres_qlp": Call(lambda b: linalg.minres_qlp(DOUBLE, b)[0], (small(4),), **NO_HALF),
    "linalg.from_dense": Call(linalg.from_dense, (K,), "refused", None),
    "linalg.mean_over_batches": Call(
        lambda x: linalg.mean_over_batches(lambda x: jnp.mean(x.astype(float)), (x,), 2),
        (data(4),),
        **NO_HALF,
    ),
    "linalg.hessian": of_objective(lambda f, p, x, y: matrix(linalg.hessian(f, p, x, y))),
    "linalg.jacobian": Call(
        lambda p, x: matrix(linalg.jacobian(NET.apply, p, x)), (PARAMS, X), **NO_HALF
    ),
    "linalg.coordinates": Call(lambda x: linalg.coordinates(x).ravel(x), (data(3),), **NO_HALF),
    "linalg.density": Call(
        lambda grid: linalg.density(DENSITY, grid, width=1.0), (small(4),), **NO_HALF
    ),
}

TREE = {
    "tree.dot": Call(tree.dot, ([data(300), data(2, 2)], [data(300), data(2, 2)])),
    "tree.norm": Call(tree.norm, ([data(300), data(2, 2)],)),
    "tree.largest_entry": Call(tree.largest_entry, ([data(300), data(2, 2)],)),
    "tree.cast": kept(lambda x: tree.cast(x, x), [data(3)]),
    "tree.all_finite": kept(tree.all_finite, [data(3)]),
    "tree.where": kept(lambda x, y: tree.where(True, x, y), [data(3)], [data(3)]),
    "tree.strong": kept(tree.strong, [data(3)]),
    "tree.add": kept(tree.add, [small(3)], [small(3)]),
    "tree.sub": kept(tree.sub, [np.arange(3)], [np.ones(3, int)]),
    "tree.scale": Call(lambda x: tree.scale(0.5, x), ([data(3)],), "refused"),
    "tree.axpy": Call(lambda x: tree.axpy(0.5, x, x), ([data(3)],), "refused"),
    "tree.random_like": kept(
        lambda x: tree.random_like(KEY, x, jax.random.rademacher), [np.ones(3, np.int32)], **NO_HALF
    ),
}


def updated(optimizer) -> Call:
    """A step of an optimizer: parameters and gradients are real floating point."""

    def step(grads):
        return optimizer.update(grads, optimizer.init(grads), grads, value=1.0)[0]

    return Call(step, ([data(3), data(2, 2)],), "refused", None)


OPTIMIZERS = {
    f"optimizers.{name}": updated(getattr(optimizers, name)(0.1))
    for name in (
        *("adagrad", "adam", "adamw", "amsgrad", "gradient_descent", "momentum", "nesterov"),
        *("rmsprop",),
    )
} | {
    "optimizers.clipped": updated(optimizers.clipped(optimizers.adam(0.1), norm=1.0)),
    "optimizers.noisy": updated(optimizers.noisy(optimizers.adam(0.1), KEY, 0.1)),
    "optimizers.perturbed_gradient_descent": updated(
        optimizers.perturbed_gradient_descent(0.1, 1.0, 1.0, 2, key=KEY)
    ),
}


def trained(run):
    return lambda p, x, y: run(
        NET.apply, p, losses.half_squared_error, (x, y), optimizers.adam(0.01), steps=2
    )


TRAINING = {
    "training.fit": Call(
        lambda p, x, y: trained(training.fit)(p, x, y).params, (PARAMS, X, Y), slow=True, **NO_HALF
    ),
    "training.descend": Call(trained(training.descend), (PARAMS, X, Y), slow=True, **NO_HALF),
}

CALLS = {**KERNELS, **CURVATURE, **LINALG, **TREE, **OPTIMIZERS, **TRAINING}

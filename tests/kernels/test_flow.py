"""Training of linear models against matrix exponentials, and against training itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked
from scipy.linalg import expm

from jaxnn import kernels, nn


def model(seed, n=4, m=2, o=2, p=11):
    """J (n, o, p), J_* (m, o, p), f₀, f₀*, y of a linear model in float64."""
    rng = np.random.default_rng(seed)
    j, new = rng.normal(size=(n, o, p)) / 3, rng.normal(size=(m, o, p)) / 3
    return j, new, *(jnp.asarray(rng.normal(size=(k, o)) + 0.3) for k in (n, m, n))


def kernels_of(j, new):
    return tuple(jnp.asarray(np.einsum("nap,mbp->nmab", a, j)) for a in (j, new))


@pytest.mark.parametrize("t", [0.0, 0.7, 30.0, np.inf])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_flow_is_the_matrix_exponential(seed, t, float64):
    j, new, f0, g0, y = model(seed)
    theta, cross = kernels_of(j, new)
    found = jax.jit(kernels.gradient_flow)(
        theta, y, t, outputs=f0, cross=jnp.asarray(cross), test_outputs=g0
    )
    flat = j.reshape(8, -1)
    decay = expm(-flat @ flat.T * t) if np.isfinite(t) else np.zeros((8, 8))
    error = (f0 - y).ravel()
    np.testing.assert_allclose(found.train.ravel(), y.ravel() + decay @ error, atol=1e-10)
    change = -flat.T @ np.linalg.solve(flat @ flat.T, error - decay @ error)
    np.testing.assert_allclose(
        found.test.ravel(), g0.ravel() + new.reshape(4, -1) @ change, atol=1e-9
    )
    np.testing.assert_allclose(-flat.T @ found.coefficients.ravel(), change, atol=1e-9)
    assert found.rank == 8


def test_one_kernel_for_all_outputs_acts_on_each(float64):
    j, new, *_, y = model(2, o=1)
    theta, cross = (k[..., 0, 0] for k in kernels_of(j, new))
    both = jnp.concatenate([y, 2.0 - y], axis=1)
    found = kernels.gradient_flow(theta, both, 0.4, cross=cross)
    for column in (0, 1):
        alone = kernels.gradient_flow(theta, both[:, column], 0.4, cross=cross)
        np.testing.assert_allclose(found.train[:, column], alone.train, rtol=1e-12)
        np.testing.assert_allclose(found.test[:, column], alone.test, rtol=1e-12)


def test_times_are_mapped_over_one_decomposition(float64):
    j, new, f0, _, y = model(3)
    theta, _ = kernels_of(j, new)
    times = jnp.asarray([0.0, 0.5, jnp.inf])
    at = lambda t: kernels.gradient_flow(jnp.asarray(theta), y, t, outputs=f0).train
    together = jax.jit(jax.vmap(at))(times)
    for found, t in zip(together, times, strict=True):
        np.testing.assert_allclose(found, at(t), atol=1e-12)
    assert str(jax.make_jaxpr(jax.vmap(at))(times)).count("f64[8,8] = eigh") <= 1


def test_a_singular_kernel_learns_what_it_can(dtype):
    # More outputs than parameters: least squares, of least distance from the start.
    j, new, f0, g0, y = model(4, p=5)
    theta, cross = kernels_of(j, new)
    arguments = (np.asarray(a, dtype) for a in (theta, y))
    found = jax.jit(kernels.gradient_flow)(
        *arguments, jnp.inf,
        outputs=np.asarray(f0, dtype), cross=np.asarray(cross, dtype),
        test_outputs=np.asarray(g0, dtype),
    )  # fmt: skip
    flat = j.reshape(8, -1)
    change = np.linalg.lstsq(flat, (y - f0).ravel(), rcond=None)[0]
    tolerance = 2e-4 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(found.train.ravel(), f0.ravel() + flat @ change, atol=tolerance)
    exact = g0.ravel() + new.reshape(4, -1) @ change
    np.testing.assert_allclose(found.test.ravel(), exact, atol=tolerance)
    assert found.rank == 5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 100])
def test_gradient_descent_is_its_loop(steps, momentum, float64):
    j, new, f0, g0, y = model(5)
    theta, cross = kernels_of(j, new)
    flat, rate = j.reshape(8, -1), 0.3
    assert rate < kernels.max_learning_rate(jnp.asarray(theta), momentum=momentum)
    change, velocity = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
    for _ in range(steps):
        gradient = flat.T @ (f0.ravel() + flat @ change - y.ravel())
        velocity = momentum * velocity + gradient
        change = change - rate * velocity
    options = {"outputs": f0, "cross": cross, "test_outputs": g0}
    descent = jax.jit(kernels.gradient_descent)
    found = descent(theta, y, steps, learning_rate=rate, momentum=momentum, **options)
    np.testing.assert_allclose(found.train.ravel(), f0.ravel() + flat @ change, atol=1e-10)
    exact = g0.ravel() + new.reshape(4, -1) @ change
    np.testing.assert_allclose(found.test.ravel(), exact, atol=1e-10)


def test_the_stable_learning_rate_is_where_descent_starts_to_diverge(float64):
    j, new, f0, _, y = model(6)
    theta = jnp.asarray(kernels_of(j, new)[0])
    for momentum in (0.0, 0.8):
        limit = kernels.max_learning_rate(theta, momentum=momentum)
        for share, grows in ((0.97, False), (1.03, True)):
            found = kernels.gradient_descent(
                theta, y, 3000, learning_rate=share * limit, momentum=momentum, outputs=f0
            )
            assert (np.linalg.norm(found.train - y) > 1e6) == grows


def test_a_linearized_network_trains_as_its_kernel_says(float64):
    # Function space, parameter space, and steps of jax.grad on the linearized network.
    net = nn.mlp((6, 2), activation=nn.tanh(), parametrization="ntk")
    rng = np.random.default_rng(7)
    x, new, y = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (2, 3), (4, 2)))
    params, _ = net.init(jax.random.key(0), (3,))
    linear = kernels.linearize(net.apply, params)
    full = lambda a, b=None: kernels.ntk(net.apply, params, a, b, outputs="full")
    options = {"outputs": net.apply(params, x), "test_outputs": net.apply(params, new)}
    found = kernels.gradient_descent(
        full(x), y, 30, learning_rate=0.05, momentum=0.5, cross=full(new, x), **options
    )

    @jax.jit
    def step(_, state):
        p, v = state
        loss = lambda p: 0.5 * jnp.sum((linear(p, x) - y) ** 2)
        v = jax.tree.map(lambda v, g: 0.5 * v + g, v, jax.grad(loss)(p))
        return jax.tree.map(lambda p, v: p - 0.05 * v, p, v), v

    state = params, jax.tree.map(jnp.zeros_like, params)
    trained, _ = jax.lax.fori_loop(0, 30, step, state)
    np.testing.assert_allclose(found.train, linear(trained, x), atol=1e-10)
    np.testing.assert_allclose(found.test, linear(trained, new), atol=1e-10)
    predicted = kernels.trained_parameters(net.apply, params, x, found.coefficients)
    for a, b in zip(jax.tree.leaves(predicted), jax.tree.leaves(trained), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("t", [0.8, np.inf])
def test_the_ensemble_has_the_moments_of_trained_random_models(t, float64):
    # f = Jθ with θ ~ N(0, 1) has K = Θ = JJᵀ; the trained model is affine in θ.
    j, new, _, _, y = model(8, o=1)
    j, new, y = j[:, 0], new[:, 0], y[:, 0]
    k, cross, own = (jnp.asarray(a @ b.T) for a, b in ((j, j), (new, j), (new, new)))
    mean, covariance = kernels.ntk_ensemble(
        k, k, y, t, cross_nngp=cross, cross_ntk=cross, own_nngp=own
    )
    decay = expm(-k * t) if np.isfinite(t) else np.zeros((4, 4))
    hat = cross @ np.linalg.solve(k, np.eye(4) - decay)
    # f_t* = J_*θ - A(Jθ - y), linear in θ: its covariance is that of J_* - AJ.
    np.testing.assert_allclose(mean, hat @ y, atol=1e-10)
    factor = new - hat @ j
    np.testing.assert_allclose(covariance, factor @ factor.T, atol=1e-10)


def test_shapes_that_do_not_fit():
    with unchecked():
        for y, outputs in [(jnp.ones(2), None), (jnp.ones(3), jnp.ones((3, 1)))]:
            with pytest.raises(ValueError, match="the targets y, and outputs: got shapes"):
                kernels.gradient_flow(jnp.eye(3), y, 1.0, outputs=outputs)

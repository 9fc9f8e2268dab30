import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exhaustive import sigmoid

from jaxnn import optimizers
from jaxnn.generative import gan


def central(f, x, h=1e-6):
    x = np.asarray(x, float)
    steps = h * np.eye(x.size).reshape(-1, *x.shape)
    return np.array([(f(x + s) - f(x - s)) / (2 * h) for s in steps]).reshape(x.shape)


def test_losses_and_their_gradients_equal_the_formulas(dtype):
    rng = np.random.default_rng(0)
    real, fake = (3 * rng.normal(size=n) for n in (5, 3))
    r, f = jnp.asarray(real, dtype), jnp.asarray(fake, dtype)
    tolerance = {"rtol": 20 * np.finfo(dtype).eps}
    exact = -np.mean(np.log(sigmoid(real))) - np.mean(np.log(1 - sigmoid(fake)))
    np.testing.assert_allclose(gan.discriminator_loss(r, f), exact, **tolerance)
    slopes = jax.grad(gan.discriminator_loss, (0, 1))(r, f)
    np.testing.assert_allclose(slopes[0], -sigmoid(-real) / 5, **tolerance)
    np.testing.assert_allclose(slopes[1], sigmoid(fake) / 3, **tolerance)
    for kind, value, slope in (
        ("original", np.mean(np.log(1 - sigmoid(fake))), -sigmoid(fake) / 3),
        ("non_saturating", -np.mean(np.log(sigmoid(fake))), -sigmoid(-fake) / 3),
    ):
        loss = gan.generator_loss(f, kind)
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss, value, **tolerance)
        np.testing.assert_allclose(jax.grad(gan.generator_loss)(f, kind), slope, **tolerance)
    assert np.isfinite(gan.discriminator_loss(-1e4 * jnp.ones(2), 1e4 * jnp.ones(2)))


def test_the_penalty_and_its_gradient(float64):
    rng = np.random.default_rng(1)
    x, w, u = rng.normal(size=(4, 3)), rng.normal(size=(3, 5)), rng.normal(size=5)

    def discriminator(params, x):
        return (jnp.tanh(x @ params[0]) @ params[1])[:, None]

    def formula(w, u):
        slopes = ((1 - np.tanh(x @ w) ** 2) * u) @ w.T
        return 0.5 * np.mean(np.sum(slopes**2, axis=1))

    penalty = lambda p: gan.r1_penalty(discriminator, p, jnp.asarray(x))
    params = (jnp.asarray(w), jnp.asarray(u))
    np.testing.assert_allclose(penalty(params), formula(w, u), rtol=1e-12)
    slope = jax.grad(penalty)(params)
    np.testing.assert_allclose(slope[0], central(lambda w: formula(w, u), w), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(slope[1], central(lambda u: formula(w, u), u), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match=r"got shape \(4, 5\), expected \(4,\) or \(4, 1\)"):
        gan.r1_penalty(lambda p, x: x @ p, params[0], jnp.asarray(x))


def test_the_best_discriminator_reaches_the_optimal_value(float64):
    rng = np.random.default_rng(0)
    p, q = (jnp.asarray(rng.dirichlet(np.ones(6))) for _ in range(2))
    value = lambda d: float(p @ np.log(sigmoid(d)) + q @ np.log(1 - sigmoid(d)))
    best = np.log(p) - np.log(q)
    np.testing.assert_allclose(gan.optimal_value(p, q), value(best), rtol=1e-12)
    for _ in range(20):
        assert value(best + rng.normal(size=6)) < value(best) - 1e-6
    m = (np.asarray(p) + np.asarray(q)) / 2
    kl = lambda a, b: np.sum(a * np.log(a / b))
    np.testing.assert_allclose(
        gan.jensen_shannon_divergence(p, q), (kl(np.asarray(p), m) + kl(np.asarray(q), m)) / 2
    )
    np.testing.assert_allclose(
        gan.jensen_shannon_divergence(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])), np.log(2)
    )


DIRAC = (lambda theta, z: jnp.broadcast_to(theta, z.shape), lambda psi, x: x @ psi)


@pytest.mark.parametrize("kind", ["original", "non_saturating"])
@pytest.mark.parametrize("simultaneous", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_a_step_of_two_points_is_the_recurrence(kind, simultaneous, weight, float64):
    """Data at 1, the generator a point θ, the discriminator ψx: every update by hand."""
    theta, psi, eta = 0.4, -1.3, 0.2
    descent = gan.Players(optimizers.gradient_descent(eta), optimizers.gradient_descent(2 * eta))
    run = gan.fit(
        *DIRAC,
        gan.Players(jnp.array([theta]), jnp.array([psi])),
        jnp.ones((4, 1)),
        descent,
        latent=1,
        steps=3,
        batch_size=2,
        key=jax.random.key(0),
        kind=kind,
        r1_weight=weight,
        simultaneous=simultaneous,
    )
    history = []
    for _ in range(3):
        history.append(-np.log(sigmoid(psi)) - np.log(1 - sigmoid(theta * psi)))
        slope = -sigmoid(-psi) + sigmoid(theta * psi) * theta + weight * psi
        after = psi - 2 * eta * slope
        judge = psi if simultaneous else after
        d = theta * judge
        theta = theta + eta * judge * (sigmoid(d) if kind == "original" else sigmoid(-d))
        psi = after
    np.testing.assert_allclose(run.params.generator, [theta], rtol=1e-12)
    np.testing.assert_allclose(run.params.discriminator, [psi], rtol=1e-12)
    np.testing.assert_allclose(run.history["discriminator"], history, rtol=1e-12)
    assert not run.diverged


@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_stopped():
    maker = {"scale": jnp.array([[0.5]]), "shift": jnp.array([[0.0]])}
    start = gan.Players(maker, {"w": jnp.array([0.1])})
    generator = lambda p, z: z @ p["scale"] + jnp.broadcast_to(p["shift"], z.shape)
    discriminator = lambda p, x: x @ p["w"]
    x = 2.0 + jax.random.normal(jax.random.key(0), (50, 1))
    adam = gan.Players(optimizers.adam(0.01), optimizers.adam(0.02))
    options = {"latent": 1, "batch_size": 8, "r1_weight": 1.0}
    key = jax.random.key(1)
    whole = gan.fit(generator, discriminator, start, x, adam, steps=20, key=key, **options)
    first = gan.fit(generator, discriminator, start, x, adam, steps=13, key=key, **options)
    second = gan.fit(
        generator, discriminator, first.params, x, adam, steps=7, state=first.state, **options
    )
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gan_refuses_what_it_cannot_do():
    descent = gan.Players(*(optimizers.gradient_descent(0.1),) * 2)
    start, x = gan.Players(jnp.zeros(1), jnp.zeros(1)), jnp.ones((4, 1))
    for options, message in (
        ({"latent": 0}, r"gan.fit\(latent\): got 0"),
        ({"kind": "wgan"}, r"generator_loss\(kind\)|kind"),
    ):
        settings = {"latent": 1, "steps": 1, "key": jax.random.key(0)} | options
        with pytest.raises((ValueError, TypeError), match=message):
            gan.fit(*DIRAC, start, x, descent, **settings)

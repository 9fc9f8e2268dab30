"""Augmentation and noise: held to SciPy, NumPy and the statistics that they promise."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from oracles import unchecked

from jaxnn import data, losses, nn, optimizers, training

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(0.5, 1.0, (6, 7, 10, 2))
KEY = jax.random.key(3)


def test_displaced_pixels_are_those_of_scipy(dtype):
    field = RNG.normal(0.4, 2.0, (6, 7, 10, 2))
    field[0] = [2.0, -3.0]  # whole pixels, and beyond the border
    found = jax.jit(data.displace)(jnp.asarray(IMAGES, dtype), jnp.asarray(field, dtype))
    assert found.dtype == dtype
    grid = np.stack(np.meshgrid(np.arange(7), np.arange(10), indexing="ij"), axis=-1)
    for image, u, result in zip(IMAGES, field, found, strict=True):
        places = np.moveaxis(grid + u, -1, 0)
        for c in range(2):
            expected = scipy.ndimage.map_coordinates(
                image[..., c], places, order=1, mode="grid-constant"
            )
            tolerance = 1e-4 if dtype == jnp.float32 else 1e-12
            np.testing.assert_allclose(result[..., c], expected, atol=tolerance)


def test_beyond_the_border_is_the_fill():
    x = jnp.asarray(IMAGES, jnp.float32)
    far = data.displace(x, jnp.full((6, 7, 10, 2), 50.0), fill=0.25)
    np.testing.assert_array_equal(far, 0.25)


@pytest.mark.slow
def test_rotations_are_those_of_numpy_and_scipy(float64):
    square = jnp.asarray(RNG.normal(size=(4, 5, 5, 3)))
    quarters = data.rotated(square, 0.5 * np.pi * jnp.arange(4.0))
    for k in range(4):
        np.testing.assert_allclose(quarters[k], np.rot90(square[k], k), atol=1e-12)
    angle = 0.3
    found = data.rotated(jnp.asarray(IMAGES), jnp.full(6, angle))
    expected = scipy.ndimage.rotate(
        IMAGES, np.degrees(angle), axes=(1, 2), reshape=False, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_angles_are_uniform_and_each_image_has_its_own():
    # A dot right of the center, off by (0, 4), tells the angle that it was turned by.
    dot = np.zeros((21, 21), np.float32)
    dot[9:12, 13:16] = 1.0
    x = jnp.broadcast_to(jnp.asarray(dot)[None, :, :, None], (400, 21, 21, 1))
    turned = np.asarray(jax.jit(data.rotate)(KEY, x, 1.2))[..., 0]
    rows, columns = np.indices((21, 21)) - 10
    mass = turned.sum(axis=(1, 2))
    angles = np.arctan2(-(turned * rows).sum((1, 2)) / mass, (turned * columns).sum((1, 2)) / mass)
    assert np.abs(angles).max() < 1.25
    assert abs(angles.mean()) < 4 * 1.2 / np.sqrt(3 * 400)
    assert abs(angles.std() / (1.2 / np.sqrt(3)) - 1) < 0.1
    np.testing.assert_array_equal(data.rotate(KEY, x[:2], 0.0), x[:2])


def test_flips_mirror_the_chosen_share_of_images():
    x = jnp.broadcast_to(jnp.asarray(IMAGES[:1], jnp.float32), (1000, 7, 10, 2))
    for axis, number in (("horizontal", 2), ("vertical", 1)):
        found = jax.jit(partial(data.flip, axis=axis, probability=0.3))(KEY, x)
        mirrored = np.all(found == jnp.flip(x, number), axis=(1, 2, 3))
        same = np.all(found == x, axis=(1, 2, 3))
        assert np.all(mirrored ^ same)
        assert abs(mirrored.mean() - 0.3) < 4 * np.sqrt(0.21 / 1000)
    pixels = jnp.asarray(RNG.integers(0, 256, (3, 2, 2, 1)), jnp.uint8)
    assert data.flip(KEY, pixels).dtype == jnp.uint8


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crops_are_windows_at_every_place(mode):
    x = jnp.broadcast_to(jnp.asarray(IMAGES[:1], jnp.float32), (500, 7, 10, 2))
    cut = jax.jit(partial(data.crop, size=(6, 9), padding=1, mode=mode))
    found = np.asarray(cut(KEY, x))
    padded = np.pad(np.float32(IMAGES[0]), ((1, 1), (1, 1), (0, 0)), mode=mode)
    windows = {padded[i : i + 6, j : j + 9].tobytes(): (i, j) for i in range(4) for j in range(4)}
    counts = np.zeros((4, 4))
    for image in found:
        counts[windows[image.tobytes()]] += 1
    assert counts.min() > 500 / 16 - 4 * np.sqrt(500 / 16)
    whole = data.crop(KEY, x[:3], (7, 10))
    np.testing.assert_array_equal(whole, x[:3])


@pytest.mark.slow
def test_a_warp_has_the_size_and_the_smoothness_that_was_asked_for():
    # On a ramp the warped value is the displacement itself.
    ramp = jnp.broadcast_to(jnp.arange(40.0)[None, :, None, None], (200, 40, 40, 1))
    warped = jax.jit(partial(data.warp, displacement=1.5, smoothness=3.0))(KEY, ramp)
    u = np.asarray(warped - ramp)[:, 8:32, 8:32, 0]
    assert abs(u.std() / 1.5 - 1) < 0.03
    assert abs(u.mean()) < 0.05
    for lag in (1, 4):
        products = [u[:, lag:] * u[:, :-lag], u[:, :, lag:] * u[:, :, :-lag]]
        correlation = np.mean([p.mean() for p in products]) / u.var()
        assert abs(correlation - np.exp(-(lag**2) / 36)) < 0.03
    np.testing.assert_array_equal(
        data.warp(KEY, ramp[:2], displacement=0.0, smoothness=3.0), ramp[:2]
    )


def test_augmentations_in_turn_have_keys_of_their_own():
    x = jnp.zeros((4, 3, 3, 1))
    noise = partial(data.perturb, std=1.0)
    twice = data.compose(noise, noise)(KEY, x)
    first, second = jax.random.split(KEY)
    np.testing.assert_allclose(twice, noise(first, x) + noise(second, x), atol=1e-6)
    assert abs(float(jnp.std(twice)) / np.sqrt(2) - 1) < 0.4
    assert data.compose()(KEY, x) is x


def test_perturbed_trees_have_independent_noise_of_the_given_size(dtype):
    tree = {"a": jnp.full(3000, 2.0, dtype), "b": (jnp.full(3000, -1.0, dtype),)}
    found = jax.jit(data.perturb)(KEY, tree, 0.5)
    noise = jnp.stack([found["a"] - tree["a"], found["b"][0] - tree["b"][0]])
    assert noise.dtype == dtype
    assert np.all(np.abs(np.std(noise, axis=1) / 0.5 - 1) < 4 / np.sqrt(2 * 3000))
    assert abs(np.corrcoef(noise)[0, 1]) < 4 / np.sqrt(3000)


def test_wrapped_networks_are_noisy_with_a_key_alone():
    net = nn.serial(nn.dense(4), nn.dropout(0.5), nn.dense(2))
    params, _ = net.init(jax.random.key(0), (3,))
    x = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
    noise = partial(data.perturb, std=0.3)
    plain = lambda params, x: net.apply(params, x)
    cases = {
        "inputs": (data.augmented(plain, noise), lambda a, _: net.apply(params, noise(a, x))),
        "weights": (
            data.noisy_weights(plain, 0.3),
            lambda a, _: net.apply(noise(a, params), x),
        ),
        # The network's own dropout gets the other half of the key.
        "dropout": (
            data.augmented(net.apply, noise),
            lambda a, b: net.apply(params, noise(a, x), key=b),
        ),
        "both": (
            data.noisy_weights(data.augmented(net.apply, noise), 0.3),
            lambda a, b: net.apply(
                noise(a, params), noise(jax.random.split(b)[0], x), key=jax.random.split(b)[1]
            ),
        ),
    }
    for f, expected in cases.values():
        np.testing.assert_array_equal(f(params, x), net.apply(params, x))
        np.testing.assert_array_equal(f(params, x, key=KEY), expected(*jax.random.split(KEY)))
        assert not np.allclose(f(params, x, key=KEY), f(params, x, key=jax.random.key(1)))


def test_training_on_noisy_inputs_shrinks_a_linear_map():
    """In expectation noise of variance σ² on inputs is the ridge penalty ½σ²‖w‖²."""
    x = jnp.asarray(RNG.normal(size=(200, 3)), jnp.float32)
    y = x @ jnp.array([[1.0], [-2.0], [0.5]])
    f = data.augmented(lambda w, x: x @ w, partial(data.perturb, std=0.7))
    run = training.fit(
        *(
            f,
            jnp.zeros((3, 1)),
            losses.half_squared_error,
            (x, y),
            optimizers.gradient_descent(0.01),
        ),
        **{"steps": 2000, "stochastic": True, "key": KEY, "validation": (x, y)},
    )
    ridge = np.linalg.solve(x.T @ x + 200 * 0.49 * np.eye(3), x.T @ y)
    np.testing.assert_allclose(run.params, ridge, atol=0.05)
    clean = 0.5 * np.mean((x @ run.params - y) ** 2)
    np.testing.assert_allclose(run.history["validation_loss"][-1], clean, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: data.flip(KEY, x, axis="diagonal"), r"flip\(axis\): got 'diagonal'"),
        (lambda x: data.flip(KEY, x, probability=1.5), r"flip\(probability\): got 1.5"),
        (lambda x: data.crop(KEY, x, (8, 3)), r"crop\(size, padding\): got \(8, 3\), 0"),
        (lambda x: data.crop(KEY, x, (0, 3)), r"crop\(size, padding\): got \(0, 3\), 0"),
        (lambda x: data.crop(KEY, x, (2, 2), padding=-1), r"crop\(size, padding\): got"),
        (lambda x: data.rotate(KEY, x, -0.1), r"rotate\(max_angle\): got -0.1"),
        (lambda x: data.warp(KEY, x, displacement=-1.0, smoothness=1.0), r"warp\(displacement"),
        (lambda x: data.warp(KEY, x, displacement=1.0, smoothness=0.0), r"warp\(smoothness"),
        (lambda x: data.perturb(KEY, x, -0.1), r"perturb\(std\): got -0.1"),
        (lambda x: data.perturb(KEY, x.astype(jnp.uint8), 0.1), r"perturb\(x\): got dtype uint8"),
        (lambda x: data.noisy_weights(data.flip, -1.0), r"noisy_weights\(std\): got -1.0"),
    ],
)
def test_unfit_arguments_are_refused(call, message):
    unchecked = pytest.MonkeyPatch()
    with unchecked.context() as patch:
        for name in ("flip", "crop", "rotate", "warp", "perturb", "noisy_weights"):
            patch.setattr(data, name, inspect.unwrap(getattr(data, name)))
        with pytest.raises(ValueError, match=message):
            call(jnp.ones((2, 7, 5, 1)))


def test_fields_and_angles_fit_the_images():
    x = jnp.ones((2, 3, 4, 1))
    misfit = r"displace\(field\): got shape .*, expected \(2, 3, 4, 2\)"
    with unchecked():
        for field in (jnp.zeros((1, 3, 4, 2)), jnp.zeros((2, 4, 3, 2))):
            with pytest.raises(ValueError, match=misfit):
                data.displace(x, field)
        with pytest.raises(ValueError, match=r"rotated\(angles\): got .*, expected \(2,\)"):
            data.rotated(x, jnp.zeros(3))
    assert data.rotated(x[:0], jnp.zeros(0)).shape == (0, 3, 4, 1)

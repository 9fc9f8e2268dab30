"""Masks: held to a NumPy sort, and to the procedure of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import pruning


def params_of(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "W": jnp.asarray(rng.normal(size=(7, 5)), dtype),
        "b": jnp.asarray(rng.normal(size=5), dtype),
        "out": (jnp.asarray(3 * rng.normal(size=(5, 3)), dtype), jnp.zeros((), dtype)),
    }


def expected_mask(weights, mask, fraction):
    """By sorting the magnitudes of what is left."""
    weights, mask = np.asarray(weights, float), np.asarray(mask).copy()
    left = np.flatnonzero(mask)
    order = left[np.argsort(np.abs(weights.ravel()[left]), kind="stable")]
    mask.ravel()[order[: round(fraction * len(left))]] = False
    return mask


def test_the_smallest_weights_of_every_layer_go(dtype):
    prune = jax.jit(pruning.magnitude_mask)
    for seed in range(3):
        params = params_of(seed, dtype)
        fractions = {"W": 0.3, "b": 0.9, "out": 0.15}
        mask, expected = pruning.full_mask(params), pruning.full_mask(params)
        for _ in range(3):
            mask = prune(params, fractions, mask=mask)
            expected = {
                "W": expected_mask(params["W"], expected["W"], 0.3),
                "b": expected["b"],
                "out": (expected_mask(params["out"][0], expected["out"][0], 0.15), True),
            }
            for found, right in zip(jax.tree.leaves(mask), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(found, right)
        left = int(expected["W"].sum() + expected["out"][0].sum())
        assert int(pruning.weights_left(mask)) == left
        np.testing.assert_allclose(pruning.sparsity(mask), 1 - left / 50, rtol=1e-6)


def test_globally_the_smallest_of_all_go():
    params = params_of()
    mask = pruning.magnitude_mask(params, 0.4, scope="global")
    mask = pruning.magnitude_mask(params, 0.25, mask=mask, scope="global")
    joined = np.concatenate([np.ravel(params["W"]), np.ravel(params["out"][0])])
    expected = expected_mask(joined, expected_mask(joined, np.ones(50, bool), 0.4), 0.25)
    found = np.concatenate([np.ravel(mask["W"]), np.ravel(mask["out"][0])])
    np.testing.assert_array_equal(found, expected)
    assert found[:35].mean() < found[35:].mean()  # weights of the output are larger
    assert np.all(mask["b"])


def test_equal_magnitudes_go_one_by_one():
    mask = pruning.magnitude_mask(jnp.ones((4, 5)), 0.25)
    np.testing.assert_array_equal(mask.ravel(), np.arange(20) >= 5)
    assert pruning.magnitude_mask(jnp.ones((4, 5)), 0.0).all()
    assert not pruning.magnitude_mask(jnp.ones((4, 5)), 1.0).any()


def test_random_masks_keep_as_many_of_every_layer():
    mask = pruning.magnitude_mask(params_of(), {"W": 0.3, "b": 0.0, "out": 0.6})
    drawn = [pruning.random_mask(jax.random.key(seed), mask) for seed in range(200)]
    for other in drawn[:5]:
        counts = [[int(leaf.sum()) for leaf in jax.tree.leaves(m)] for m in (mask, other)]
        assert counts[0] == counts[1]
    share = np.mean([d["W"] for d in drawn], axis=0)
    np.testing.assert_allclose(share, np.mean(mask["W"]), atol=4.5 * np.sqrt(0.21 / 200))


def test_rounds_rewind_to_the_start_and_prune_what_was_trained():
    params, seen = params_of(), []

    def train(start, mask):
        seen.append((start, mask))
        noise = params_of(seed=len(seen))
        return pruning.masked_params(jax.tree.map(jnp.add, start, noise), mask)

    tickets = list(pruning.lottery_rounds(train, params, rounds=3, fraction=0.4))
    assert len(tickets) == len(seen) == 4
    mask = pruning.full_mask(params)
    for ticket, (start, given) in zip(tickets, seen, strict=True):
        for found in (ticket.mask, given):
            assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), found, mask))
        np.testing.assert_array_equal(start["W"], np.where(mask["W"], params["W"], 0))
        mask = mask | {
            "W": expected_mask(ticket.trained["W"], mask["W"], 0.4),
            "out": (expected_mask(ticket.trained["out"][0], mask["out"][0], 0.4), True),
        }


@pytest.mark.parametrize(
    ("fraction", "options", "message"),
    [
        (1.5, {}, r"magnitude_mask\(fraction\): got 1.5"),
        ({"W": 0.1, "b": -0.2, "out": 0.1}, {}, r"magnitude_mask\(fraction\): got -0.2"),
        ({"W": 0.1, "b": 0.2, "out": 0.1}, {"scope": "global"}, r"magnitude_mask\(scope\)"),
    ],
)
def test_unfit_prunings_are_refused(fraction, options, message):
    with pytest.raises(ValueError, match=message):
        pruning.magnitude_mask(params_of(), fraction, **options)


def test_rounds_are_counted_from_zero():
    with pytest.raises(ValueError, match=r"lottery_rounds\(rounds\): got -1"):
        list(pruning.lottery_rounds(lambda p, m: p, params_of(), rounds=-1, fraction=0.2))

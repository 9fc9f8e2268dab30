import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import schedules

# name: (ours, the text's formula in NumPy, optax's schedule or None)
TABLE = {
    "constant": (
        schedules.constant(0.3),
        lambda t: 0.3 + 0 * t,
        optax.constant_schedule(0.3),
    ),
    "step_decay": (
        schedules.step_decay(0.3, factor=0.7, steps=9),
        lambda t: 0.3 * 0.7 ** np.floor(t / 9),
        optax.exponential_decay(0.3, transition_steps=9, decay_rate=0.7, staircase=True),
    ),
    "exponential_decay": (
        schedules.exponential_decay(0.3, factor=0.7, steps=9),
        lambda t: 0.3 * np.exp(np.log(0.7) * t / 9),
        optax.exponential_decay(0.3, transition_steps=9, decay_rate=0.7),
    ),
    "inverse_time_decay": (
        schedules.inverse_time_decay(0.3, tau=7.5),
        lambda t: 0.3 * 7.5 / (7.5 + t),
        None,
    ),
    "polynomial_decay": (
        schedules.polynomial_decay(0.3, steps=21, end=0.05, power=2.5),
        lambda t: 0.05 + 0.25 * ((21 - np.minimum(t, 21)) / 21) ** 2.5,
        optax.polynomial_schedule(0.3, 0.05, power=2.5, transition_steps=21),
    ),
    "linear_decay": (
        schedules.linear_decay(0.3, steps=21, end=0.05),
        lambda t: np.interp(t, [0, 21], [0.3, 0.05]),
        optax.linear_schedule(0.3, 0.05, transition_steps=21),
    ),
    "cosine_decay": (
        schedules.cosine_decay(0.3, steps=21, end=0.06),
        lambda t: 0.06 + 0.24 * np.cos(np.pi * np.minimum(t, 21) / 42) ** 2,
        optax.cosine_decay_schedule(0.3, 21, alpha=0.2),
    ),
    "warmup": (
        schedules.warmup(schedules.cosine_decay(0.3, steps=21), 8, start=0.02),
        lambda t: np.where(
            t < 8, 0.02 + 0.28 * t / 8, 0.3 * np.cos(np.pi * np.clip(t - 8, 0, 21) / 42) ** 2
        ),
        optax.warmup_cosine_decay_schedule(0.02, 0.3, warmup_steps=8, decay_steps=29),
    ),
}
STEPS = np.arange(40)


@pytest.mark.parametrize("name", TABLE)
def test_is_its_formula(name, dtype):
    schedule, formula, _ = TABLE[name]
    rates = schedule(jnp.asarray(STEPS, jnp.int32))
    assert rates.dtype == dtype
    np.testing.assert_allclose(rates, formula(STEPS), rtol=0, atol=2 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[2] is not None])
def test_equals_optax(name, dtype, standard_promotion):
    schedule, _, theirs = TABLE[name]
    # Floating-point steps, as optax rounds integer ones to float32 even where x64 is on.
    expected = jax.vmap(theirs)(jnp.asarray(STEPS, dtype))
    np.testing.assert_allclose(
        schedule(STEPS), expected, rtol=0, atol=4 * float(jnp.finfo(dtype).eps)
    )


@pytest.mark.parametrize("name", TABLE)
def test_python_traced_and_array_steps_agree(name, dtype):
    schedule, _, _ = TABLE[name]
    many = schedule(jnp.asarray(STEPS, jnp.int32))
    traced = jax.jit(schedule)
    eps = float(jnp.finfo(dtype).eps)
    for step in (0, 7, 8, 9, 21, 30):
        for rate in (schedule(step), traced(jnp.asarray(step, jnp.int32))):
            assert rate.shape == ()
            assert rate.dtype == dtype
            np.testing.assert_allclose(rate, many[step], rtol=0, atol=2 * eps)


def test_step_decay_drops_at_the_step_itself_however_late():
    # In float32 2²⁴ + 1 is no number: the division has to be a whole one.
    k = 2**24 + 1
    schedule = schedules.step_decay(1.0, factor=0.5, steps=k)
    assert [float(schedule(t)) for t in (k - 1, k, 2 * k - 1, 2 * k)] == [1.0, 0.5, 0.5, 0.25]


def test_inverse_time_decay_meets_the_conditions_of_robbins_and_monro(float64):
    tau, eta = 30.0, 0.2
    rates = np.asarray(schedules.inverse_time_decay(eta, tau=tau)(np.arange(10**6)))
    # Σ η_t ≥ ∫ grows without bound as log T; Σ η_t² stays below η₀² (1 + ∫) = η₀² (1 + τ).
    for T in (10**3, 10**4, 10**5, 10**6):
        assert rates[:T].sum() >= eta * tau * math.log1p(T / tau)
        assert (rates[:T] ** 2).sum() <= eta**2 * (1 + tau)


def test_numbers_may_be_traced(dtype):
    rates = jnp.asarray([0.1, 0.7])

    def family(rate):
        return jnp.stack(
            [
                schedules.constant(rate)(5),
                schedules.step_decay(rate, factor=rate, steps=3)(5),
                schedules.exponential_decay(rate, factor=rate, steps=3)(5),
                schedules.inverse_time_decay(rate, tau=rate)(5),
                schedules.polynomial_decay(rate, steps=9, end=rate / 2, power=rate)(5),
                schedules.linear_decay(rate, steps=9, end=rate / 2)(5),
                schedules.cosine_decay(rate, steps=9, end=rate / 2)(5),
                schedules.warmup(schedules.constant(rate), 9, start=rate / 2)(5),
            ]
        )

    separate = jnp.stack([family(float(rate)) for rate in rates])
    np.testing.assert_allclose(jax.vmap(family)(rates), separate, rtol=1e-6)
    # A float32 number meets float64 steps without implicit promotion.
    assert schedules.linear_decay(jnp.float32(0.1), steps=9)(5).dtype == dtype


def test_warmup_never_asks_for_a_negative_step():
    asked = []

    def schedule(step):
        asked.append(int(step))
        return 1.0

    rates = [float(schedules.warmup(schedule, 4)(step)) for step in range(6)]
    assert rates == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert min(asked) == 0


BAD = {
    "constant(rate)": lambda: schedules.constant(-0.1),
    "step_decay(rate)": lambda: schedules.step_decay(math.nan, factor=0.5, steps=2),
    "step_decay(factor)": lambda: schedules.step_decay(0.1, factor=1.5, steps=2),
    "step_decay(steps)": lambda: schedules.step_decay(0.1, factor=0.5, steps=0),
    "exponential_decay(rate)": lambda: schedules.exponential_decay(-1, factor=0.5),
    "exponential_decay(factor)": lambda: schedules.exponential_decay(0.1, factor=0.0),
    "exponential_decay(steps)": lambda: schedules.exponential_decay(0.1, factor=0.5, steps=-1),
    "inverse_time_decay(rate)": lambda: schedules.inverse_time_decay(math.inf, tau=1.0),
    "inverse_time_decay(tau)": lambda: schedules.inverse_time_decay(0.1, tau=0.0),
    "polynomial_decay(rate)": lambda: schedules.polynomial_decay(-0.1, steps=2),
    "polynomial_decay(end)": lambda: schedules.polynomial_decay(0.1, steps=2, end=-1.0),
    "polynomial_decay(steps)": lambda: schedules.polynomial_decay(0.1, steps=0),
    "polynomial_decay(power)": lambda: schedules.polynomial_decay(0.1, steps=2, power=0.0),
    "linear_decay(rate)": lambda: schedules.linear_decay(-0.1, steps=2),
    "linear_decay(end)": lambda: schedules.linear_decay(0.1, steps=2, end=math.nan),
    "linear_decay(steps)": lambda: schedules.linear_decay(0.1, steps=0),
    "cosine_decay(rate)": lambda: schedules.cosine_decay(-0.1, steps=2),
    "cosine_decay(end)": lambda: schedules.cosine_decay(0.1, steps=2, end=-1e-9),
    "cosine_decay(steps)": lambda: schedules.cosine_decay(0.1, steps=-3),
    "warmup(steps)": lambda: schedules.warmup(schedules.constant(0.1), 0),
    "warmup(start)": lambda: schedules.warmup(schedules.constant(0.1), 2, start=-0.1),
    # Past the type checker, as without the tests' import hook:
    "warmup(schedule)": lambda: inspect.unwrap(schedules.warmup)(0.1, 2),
    "linear_decay(steps) ": lambda: inspect.unwrap(schedules.linear_decay)(0.1, steps=2.5),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_input_is_named(argument):
    with pytest.raises(ValueError, match=r"got .*, expected .*") as error:
        BAD[argument]()
    assert str(error.value).startswith(argument.strip() + ": got ")

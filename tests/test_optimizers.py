"""Optimizers against optax, against the texts' equations, and at their edges.

More than 500 lines, as all parts share the table of problems and the runs in one scan, and the
NumPy loops of seven equations belong beside them.
"""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxnn import nn, optimizers, schedules, tree

# ---- ours and optax's, with the keywords that select optax's form -------------------------------

PAIRS = {
    "gradient_descent": (optimizers.gradient_descent, optax.sgd),
    "momentum": (
        lambda rate: optimizers.momentum(rate, rate_in_velocity=False),
        lambda rate: optax.sgd(rate, momentum=0.9),
    ),
    "nesterov": (
        lambda rate: optimizers.nesterov(rate, rate_in_velocity=False),
        lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    ),
    "adagrad": (lambda rate: optimizers.adagrad(rate, initial_accumulator=0.1), optax.adagrad),
    "rmsprop": (optimizers.rmsprop, optax.rmsprop),
    "adam": (optimizers.adam, optax.adam),
    "adamw": (
        lambda rate: optimizers.adamw(rate, weight_decay=0.1),
        lambda rate: optax.adamw(rate, weight_decay=0.1),
    ),
    "amsgrad": (lambda rate: optimizers.amsgrad(rate, bias_correction=True), optax.amsgrad),
}
PAIRS_IN_OTHER_FORMS = {
    "rmsprop_eps_outside": (
        lambda rate: optimizers.rmsprop(rate, eps_in_root=False),
        lambda rate: optax.rmsprop(rate, eps_in_sqrt=False),
    ),
    "amsgrad_uncorrected": (
        optimizers.amsgrad,
        lambda rate: optax.amsgrad(rate, bias_correction_mu=False, bias_correction_nu=False),
    ),
}
ALL_PAIRS = PAIRS | PAIRS_IN_OTHER_FORMS
OPTIMIZERS = {name: ours for name, (ours, _) in ALL_PAIRS.items()}


# ---- problems: objective and starting point ------------------------------------------------------


def quadratic(dtype):
    # ½θᵀAθ - bᵀθ with eigenvalues from 0.01 to 1 along random axes.
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    A = jnp.asarray(basis * np.geomspace(0.01, 1.0, 7) @ basis.T, dtype)
    b = jnp.asarray(rng.normal(size=7), dtype)
    return lambda theta: 0.5 * theta @ A @ theta - b @ theta, jnp.asarray(rng.normal(size=7), dtype)


def rosenbrock(dtype):
    def objective(theta):
        x, y = theta["x"], theta["y"]
        return (1.0 - x) ** 2 + 100.0 * (y - x**2) ** 2

    return objective, {"x": jnp.asarray(-1.2, dtype), "y": jnp.asarray(1.0, dtype)}


@cache
def digits():
    images, labels = load_digits(return_X_y=True)
    return np.asarray(images)[:48] / 16.0, np.eye(10)[labels[:48]]


def mlp(dtype):
    # tanh, because a trajectory is discontinuous in its rounding errors where a ReLU has its kink.
    x, y = (jnp.asarray(a, dtype) for a in digits())
    net = nn.mlp((12, 10), activation=nn.tanh(), bias_std=0.1)
    params, _ = net.init(jax.random.key(5), x.shape[1:])
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def objective(params):
        log_probabilities = jax.nn.log_softmax(net.apply(params, x))
        return -jnp.mean(jnp.sum(y * log_probabilities, axis=-1))

    return objective, params


def nested(dtype):
    # A scalar, an empty leaf, empty containers, matrices inside of tuples inside of lists.
    def objective(params):
        scalar, (matrix, vector) = params["scalar"], params["nested"][1]
        curved = jnp.sum(jnp.cosh(matrix - scalar)) + jnp.sum((vector - 0.5) ** 4)
        return curved + jnp.sum(params["empty"]) + jnp.logaddexp(scalar, -scalar)

    rng = np.random.default_rng(8)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return objective, {
        "scalar": jnp.asarray(1.5, dtype),
        "empty": jnp.zeros((0,), dtype),
        "nested": [{}, (draw(2, 3), draw(4)), ()],
    }


PROBLEMS = {f.__name__: f for f in (quadratic, rosenbrock, mlp, nested)}

# Rates at which nothing diverges or bounces: where a constant rate makes a trajectory jump from
# wall to wall of a valley (RMSprop at 0.01 on Rosenbrock's), it is chaotic, and the last digits of
# two correct programs grow to different paths. That would test the problem, not the optimizer.
RATES = {
    "quadratic": (0.5, 0.02),
    "rosenbrock": (2e-4, 0.002),
    "mlp": (0.1, 0.01),
    "nested": (0.01, 0.02),
}
PLAIN = ("gradient_descent", "momentum", "nesterov")


def rate_for(name, problem):
    plain, adaptive = RATES[problem]
    return plain if name in PLAIN else adaptive


def max_norm(x):
    return jnp.max(jnp.array([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(x)]))


def descend(optimizer, objective, params, steps, *, point=lambda params, state: params):
    """Every params of a run in one scan, stacked: those after step 1, 2, ..."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(objective)(params), state, params)
        params = tree.add(params, updates)
        return (params, state), point(params, state)

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[1]


def largest_gap(ours, theirs, objective, params, steps=100):
    """max over steps of the relative difference of params, and whether the objective fell."""

    def step(carry, _):
        a, ours_state, b, theirs_state = carry
        value, gradient = jax.value_and_grad(objective)(a)
        updates, ours_state = ours.update(gradient, ours_state, a)
        a = tree.add(a, updates)
        updates, theirs_state = theirs.update(jax.grad(objective)(b), theirs_state, b)
        b = optax.apply_updates(b, updates)
        return (a, ours_state, b, theirs_state), (max_norm(tree.sub(a, b)) / max_norm(b), value)

    def run(params):
        carry = (params, ours.init(params), params, theirs.init(params))
        _, (gaps, values) = jax.lax.scan(step, carry, length=steps)
        return jnp.max(gaps), values[-1] < values[0]

    # The time goes into compiling, not into running.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(params)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", PAIRS)
def test_equals_optax_step_by_step(name, problem, dtype, standard_promotion):
    ours, theirs = (make(rate_for(name, problem)) for make in PAIRS[name])
    gap, fell = largest_gap(ours, theirs, *PROBLEMS[problem](dtype))
    assert fell
    assert gap <= {"float32": 1e-6, "float64": 1e-12}[dtype.name]


@pytest.mark.parametrize("name", ALL_PAIRS)
def test_equals_optax_where_the_rate_varies(name, dtype, standard_promotion):
    peak = rate_for(name, "quadratic")
    schedule = schedules.warmup(schedules.exponential_decay(peak, factor=0.97), 5)
    ours, theirs = (make(schedule) for make in ALL_PAIRS[name])
    gap, fell = largest_gap(ours, theirs, *quadratic(dtype))
    assert fell
    assert gap <= {"float32": 1e-6, "float64": 1e-12}[dtype.name]


# ---- the texts' equations as float64 loops -------------------------------------------------------
# Each takes the gradient function, the start and the rates, and yields θ after each step.


def text_gradient_descent(gradient, theta, rates):
    for eta in rates:
        theta = theta - eta * gradient(theta)
        yield theta


def text_momentum(gradient, theta, rates, mu=0.9):
    v = np.zeros_like(theta)
    for eta in rates:
        v = mu * v + eta * gradient(theta)
        theta = theta - v
        yield theta


def text_nesterov(gradient, theta, rates, mu=0.9):
    v = np.zeros_like(theta)
    for eta in rates:
        v = mu * v + eta * gradient(theta - mu * v)
        theta = theta - v
        yield theta


def text_adagrad(gradient, theta, rates, eps=1e-7, G=0.0):
    for eta in rates:
        g = gradient(theta)
        G = G + g**2
        theta = theta - eta / np.sqrt(G + eps) * g
        yield theta


def text_rmsprop(gradient, theta, rates, gamma=0.9, eps=1e-8, outside=0.0):
    G = np.zeros_like(theta)
    for eta in rates:
        g = gradient(theta)
        G = gamma * G + (1 - gamma) * g**2
        theta = theta - eta / (np.sqrt(G + eps) + outside) * g
        yield theta


def text_adam(gradient, theta, rates, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, eta in enumerate(rates, start=1):
        g = gradient(theta)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        theta = theta - eta * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * theta)
        yield theta


def text_amsgrad(gradient, theta, rates, beta1=0.9, beta2=0.999, eps=1e-8):
    m, v, v_hat = (np.zeros_like(theta) for _ in range(3))
    for eta in rates:
        g = gradient(theta)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_hat = np.maximum(v_hat, v)
        theta = theta - eta * m / (np.sqrt(v_hat) + eps)
        yield theta


def row(ours, text, text_keywords=None, **keywords):
    return ours, keywords, text, keywords if text_keywords is None else text_keywords


# Large ε, so that its place inside or outside of the root shows.
TEXT = {
    "gradient_descent": row(optimizers.gradient_descent, text_gradient_descent),
    "momentum": row(optimizers.momentum, text_momentum),
    "momentum mu": row(optimizers.momentum, text_momentum, mu=0.6),
    "nesterov": row(optimizers.nesterov, text_nesterov),
    "nesterov mu": row(optimizers.nesterov, text_nesterov, mu=0.6),
    "adagrad": row(optimizers.adagrad, text_adagrad),
    "adagrad eps": row(optimizers.adagrad, text_adagrad, eps=0.3),
    "adagrad initial": row(
        optimizers.adagrad, text_adagrad, {"G": 0.4, "eps": 0.0}, initial_accumulator=0.4, eps=0.0
    ),
    "rmsprop": row(optimizers.rmsprop, text_rmsprop),
    "rmsprop inside": row(optimizers.rmsprop, text_rmsprop, gamma=0.7, eps=0.3),
    "rmsprop outside": row(
        optimizers.rmsprop,
        text_rmsprop,
        {"gamma": 0.7, "eps": 0.0, "outside": 0.3},
        gamma=0.7,
        eps=0.3,
        eps_in_root=False,
    ),
    "adam": row(optimizers.adam, text_adam),
    "adam constants": row(optimizers.adam, text_adam, beta1=0.5, beta2=0.8, eps=0.3),
    "adamw": row(optimizers.adamw, text_adam, {"weight_decay": 1e-4}),
    "adamw decay": row(optimizers.adamw, text_adam, beta1=0.5, eps=0.3, weight_decay=0.7),
    "amsgrad": row(optimizers.amsgrad, text_amsgrad),
    "amsgrad constants": row(optimizers.amsgrad, text_amsgrad, beta1=0.5, beta2=0.8, eps=0.3),
}


@pytest.mark.parametrize("varying", [False, True], ids=["constant rate", "varying rate"])
@pytest.mark.parametrize("name", TEXT)
def test_is_the_equation_of_the_text(name, varying, dtype):
    make, keywords, text, text_keywords = TEXT[name]
    A = np.array([[1.5, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 0.1]])
    b, start, steps = np.array([1.0, -2.0, 0.7]), np.array([2.0, 0.5, -1.0]), 60
    rates = 0.05 / (1 + np.arange(steps) / 20) if varying else np.full(steps, 0.05)
    expected = list(
        text(lambda theta: A @ theta - b + 0.2 * theta**3, start, rates, **text_keywords)
    )

    A_, b_ = jnp.asarray(A, dtype), jnp.asarray(b, dtype)
    rate = schedules.inverse_time_decay(0.05, tau=20.0) if varying else 0.05
    trajectory = descend(
        make(rate, **keywords),
        lambda theta: theta @ A_ @ theta / 2 - b_ @ theta + jnp.sum(theta**4) / 20,
        jnp.asarray(start, dtype),
        steps,
        # Nesterov's params are the look-ahead point θ - μv.
        point=lambda params, state: (
            params + keywords.get("mu", 0.9) * state.v if text is text_nesterov else params
        ),
    )
    assert trajectory.dtype == dtype
    # 1 - 0.999ᵗ in float32 is off by 1.3e-5 of itself, in optax as well: 6e-6 of every Adam step.
    single = 2e-5 if text is text_adam else 4e-6
    atol = {"float32": single, "float64": 1e-13}[dtype.name]
    np.testing.assert_allclose(trajectory, expected, rtol=0, atol=atol)


def test_a_varying_rate_tells_the_two_forms_of_momentum_apart(float64):
    objective, start = quadratic(float64)

    def gap(make, rate):
        runs = [
            descend(make(rate, rate_in_velocity=inside), objective, start, 20)
            for inside in (True, False)
        ]
        return max_norm(tree.sub(*runs))

    for make in (optimizers.momentum, optimizers.nesterov):
        assert gap(make, 0.1) < 1e-14
        assert gap(make, schedules.linear_decay(0.1, steps=20)) > 1e-3


# ---- pytrees and dtypes --------------------------------------------------------------------------


def types(x):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), leaf.dtype, leaf.weak_type), x)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_keeps_structures_and_dtypes(name, dtype):
    params = {
        "half": jnp.ones((3,), jnp.bfloat16),
        "single": jnp.ones((2, 2), jnp.float32),
        "own": jnp.ones((), dtype),
        "empty": jnp.zeros((0, 4), dtype),
        "nested": ((), [{}]),
    }
    optimizer = OPTIMIZERS[name](jnp.asarray(0.1, dtype))
    state = optimizer.init(params)
    updates, new_state = jax.jit(optimizer.update)(params, state, params)
    assert types(updates) == types(params)
    assert types(new_state) == types(state)
    assert state._fields[0] == "t"
    assert (int(state.t), int(new_state.t)) == (0, 1)
    moments = [moment for field, moment in state._asdict().items() if field != "t"]
    assert all(moment["half"].dtype == jnp.float32 for moment in moments)
    assert all(moment["own"].dtype == dtype for moment in moments)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_half_precision_is_float32_rounded_at_the_end(name):
    # In bfloat16 itself 0.999 is 1: the average of squares could only grow.
    key = jax.random.key(2)
    gradients = jax.random.normal(key, (60, 4), jnp.bfloat16).at[30:].multiply(jnp.bfloat16(0.1))
    optimizer = OPTIMIZERS[name](0.1)

    def updates(dtype):
        start = jnp.zeros(4, dtype)

        def step(state, g):
            return optimizer.update(g, state, start)[::-1]

        return jax.lax.scan(step, optimizer.init(start), gradients.astype(dtype))[1]

    half, single = updates(jnp.bfloat16), updates(jnp.float32)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        half.astype(jnp.float32), single.astype(jnp.bfloat16).astype(jnp.float32)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("params", [{}, (), jnp.zeros(0), 2.0], ids=["dict", "tuple", "0", "float"])
def test_works_on_nothing_and_on_one_number(name, params):
    optimizer = OPTIMIZERS[name](0.1)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert int(state.t) == 1
    assert all(np.all(np.asarray(leaf) < 0) for leaf in jax.tree.leaves(updates))


# ---- numbers that are traced ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_vmap_over_learning_rates_is_separate_runs(name):
    objective, params = quadratic(jnp.float32)
    rates = (0.003, 0.01)

    def run(rate):
        return descend(OPTIMIZERS[name](rate), objective, params, 10)

    together, separate = jax.jit(
        lambda traced: (jax.vmap(run)(traced), jnp.stack([run(rate) for rate in rates]))
    )(jnp.asarray(rates))
    np.testing.assert_allclose(together, separate, rtol=0, atol=3e-6)
    assert max_norm(together[1] - together[0]) > 1e-3


def test_every_constant_may_be_traced(float64):
    objective, params = quadratic(float64)

    def family(c):
        return jnp.stack(
            [
                descend(optimizer, objective, params, 3)[-1]
                for optimizer in (
                    optimizers.momentum(c, mu=c),
                    optimizers.nesterov(c, mu=c),
                    optimizers.adagrad(c, eps=c, initial_accumulator=c),
                    optimizers.rmsprop(c, gamma=c, eps=c),
                    optimizers.adamw(c, beta1=c, beta2=c, eps=c, weight_decay=c),
                    optimizers.amsgrad(c, beta1=c, beta2=c, eps=c),
                )
            ]
        )

    # float32 numbers for float64 leaves: they meet without implicit promotion.
    c = jnp.float32(0.4)
    np.testing.assert_allclose(jax.jit(family)(c), family(float(c)), rtol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_runs_can_be_differentiated_by_the_rate(name, float64):
    # y = 0 has no gradient as long as it stays there: √v has no finite derivative at v = 0.
    def objective(theta):
        x, y = theta
        return jnp.cosh(x) - x + x**2 * y**2

    def final(rate):
        return descend(OPTIMIZERS[name](rate), objective, jnp.asarray([1.5, 0.0]), 8)[-1, 0]

    h, at = 1e-6, jax.jit(final)
    difference = (at(0.03 + h) - at(0.03 - h)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(final))(0.03), difference, rtol=1e-6)


# ---- corner cases --------------------------------------------------------------------------------

WITHOUT_EPS = {
    "adagrad": optimizers.adagrad(0.1, eps=0.0),
    "rmsprop": optimizers.rmsprop(0.1, eps=0.0),
    "adam": optimizers.adam(0.1, eps=0.0),
    "amsgrad": optimizers.amsgrad(0.1, eps=0.0),
}


@pytest.mark.parametrize("name", WITHOUT_EPS)
def test_without_eps_a_coordinate_without_gradient_stays(name):
    optimizer = WITHOUT_EPS[name]
    state = optimizer.init(jnp.ones(2))
    for _ in range(3):
        updates, state = optimizer.update(jnp.array([0.0, 1e-3]), state)
        assert updates[0] == 0.0
        assert updates[1] < -0.03


@pytest.mark.parametrize(
    "make", [*OPTIMIZERS.values(), *(lambda rate, o=o: o for o in WITHOUT_EPS.values())]
)
def test_a_nan_is_never_swallowed(make):
    optimizer = make(0.1)
    params = jnp.ones(2)
    updates, state = optimizer.update(jnp.array([jnp.nan, 1.0]), optimizer.init(params), params)
    assert jnp.isnan(updates[0])
    assert jnp.isfinite(updates[1])
    if len(state) > 1:
        assert jnp.isnan(optimizer.update(jnp.ones(2), state, params)[0][0])


def test_the_step_count_saturates():
    last = jnp.iinfo(jnp.int32).max
    optimizer = optimizers.adam(schedules.inverse_time_decay(0.1, tau=1e6))
    state = optimizer.init(jnp.ones(2))._replace(t=jnp.int32(last - 1))
    for _ in range(3):
        updates, state = optimizer.update(jnp.ones(2), state)
        assert state.t == last
        assert jnp.all((updates < 0) & jnp.isfinite(updates))


def test_weight_decay_is_decoupled(float64):
    # Without a gradient AdamW is θ ← (1 - ηλ)θ; as an L2 term the decay would be a full Adam step.
    theta = jnp.asarray([2.0, -30.0])
    final = descend(optimizers.adamw(0.1, weight_decay=0.5), lambda theta: 0.0 * theta[0], theta, 7)
    np.testing.assert_allclose(final[-1], 0.95**7 * theta, rtol=1e-14)


# ---- optax around ours ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_runs_inside_optax_chain(name, standard_promotion):
    clip = optax.clip_by_global_norm(1.0)
    ours, theirs = (optax.chain(clip, make(rate_for(name, "quadratic"))) for make in PAIRS[name])
    gap, fell = largest_gap(ours, theirs, *quadratic(jnp.float32), steps=30)
    assert fell
    assert gap <= 1e-6


def test_runs_inside_optax_wrappers(float64, standard_promotion):
    objective, params = quadratic(float64)
    injected = optax.inject_hyperparams(optimizers.adam)(learning_rate=0.02)
    expected = descend(optimizers.adam(0.02), objective, params, 10)
    np.testing.assert_allclose(descend(injected, objective, params, 10), expected, rtol=1e-13)

    mask = {"free": True, "frozen": False}
    masked = optax.masked(optimizers.gradient_descent(0.5), mask)
    grads = {"free": jnp.ones(2), "frozen": jnp.ones(3)}
    updates, _ = masked.update(grads, masked.init(grads), grads)
    expected = {"free": jnp.full(2, -0.5), "frozen": jnp.ones(3)}
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


# ---- where Adam fails ----------------------------------------------------------------------------


def test_adam_goes_to_the_worst_point_and_amsgrad_to_the_best():
    # Reddi, Kale & Kumar (2018), theorem 1: on [-1, 1] the costs Cx, -x, -x, Cx, ... are least in
    # the mean at -1 for C > 2. Adam divides the rare large gradient by its own size and goes to +1.
    C, steps = 4.0, 6000
    costs = jnp.tile(jnp.array([C, -1.0, -1.0]), steps // 3)
    rate = lambda step: 0.5 / jnp.sqrt(jnp.asarray(step + 1, float))

    def regret_and_end(make):
        optimizer = make(rate, beta1=0.0, beta2=1.0 / (1.0 + C**2))

        def step(carry, cost):
            x, state = carry
            update, state = optimizer.update(cost, state)
            return (jnp.clip(x + update, -1.0, 1.0), state), cost * (x + 1.0)

        x = jnp.zeros(())
        (x, _), regrets = jax.lax.scan(step, (x, optimizer.init(x)), costs)
        return jnp.sum(regrets) / steps, x

    regret, x = regret_and_end(optimizers.adam)
    np.testing.assert_allclose((regret, x), (4.0 / 3.0, 1.0), atol=0.03)
    regret, x = regret_and_end(optimizers.amsgrad)
    assert 0.0 < regret < 0.1
    np.testing.assert_allclose(x, -1.0, atol=0.05)


# ---- bad input -----------------------------------------------------------------------------------

MAKERS = {
    "gradient_descent": (),
    "momentum": ("mu",),
    "nesterov": ("mu",),
    "adagrad": ("eps", "initial_accumulator"),
    "rmsprop": ("gamma", "eps"),
    "adam": ("beta1", "beta2", "eps"),
    "adamw": ("beta1", "beta2", "eps", "weight_decay"),
    "amsgrad": ("beta1", "beta2", "eps"),
}
SHARES = ("mu", "gamma", "beta1", "beta2")


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, np.float32(-1), jnp.ones(2)], ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_a_bad_learning_rate_is_named(name, bad):
    with pytest.raises(ValueError, match=rf"^{name}\(learning_rate\): got .*, expected a "):
        getattr(optimizers, name)(bad)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, row in MAKERS.items() for argument in row]
)
def test_a_bad_constant_is_named(name, argument):
    make = getattr(optimizers, name)
    for bad in (-1e-9, math.nan, 1.0 if argument in SHARES else math.inf, jnp.ones(2)):
        with pytest.raises(ValueError, match=rf"^{name}\({argument}\): got .*, expected a "):
            make(0.1, **{argument: bad})
    make(0.1, **{argument: 0.0})


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_unlike_the_params_are_refused(name):
    optimizer = getattr(optimizers, name)(0.1)
    params = {"W": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = optimizer.init(params)
    update = lambda grads: optimizer.update(grads, state, params)
    with pytest.raises(
        ValueError, match=rf"^{name}\.update: grads: got PyTreeDef.*'W'.* the structure"
    ):
        update({"W": jnp.ones((2, 3))})
    # (1,) against (3,) would broadcast.
    with pytest.raises(ValueError, match=r"grads\['b'\]: got shape \(1,\), expected shape \(3,\)"):
        update({"W": jnp.ones((2, 3)), "b": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"grads\['b'\]: got dtype int32"):
        update({"W": jnp.ones((2, 3)), "b": jnp.ones(3, jnp.int32)})
    with pytest.raises(ValueError, match=rf"^{name}\.init: params\['b'\]: got dtype int32"):
        optimizer.init({"W": jnp.ones((2, 3)), "b": jnp.ones(3, jnp.int32)})


def test_adamw_needs_params():
    optimizer = optimizers.adamw(0.1)
    with pytest.raises(
        ValueError, match=r"adamw\.update: params: got None, expected the parameters"
    ):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))

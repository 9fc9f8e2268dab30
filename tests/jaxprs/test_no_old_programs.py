"""Whatever compiles a function answers for the function as it is, not as it was before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import curvature, kernels, linalg, losses, nn

P = jnp.array([0.3, 0.2])
X = jnp.array([[1.0, 0.5], [0.2, -1.0], [0.7, 0.1]])
Y = jnp.array([0.1, 0.3, -0.2])
KEY = jax.random.key(0)


class Net:
    """Methods whose values all depend on one attribute."""

    def __init__(self, scale):
        self.scale = scale

    def apply(self, params, x):
        return self.scale * jnp.tanh(x @ params)

    def objective(self, params):
        return self.scale * (jnp.sum(params**2) - 0.1 * params[0])

    def product(self, v):
        return self.scale * v

    def label(self, path):
        return self.scale


def line(params, x):
    return x @ params


def operator(net):
    return linalg.LinearOperator(net.product, net.product, P, P, structure="symmetric")


ANSWERS = {
    "ntk": lambda net: kernels.ntk(net.apply, P, X),
    "ntk, coupled": lambda net: kernels.ntk(net.apply, P, X, X[:2], coupled=True),
    "ntk, groups": lambda net: float(*kernels.ntk(line, P, X, groups=net.label)),
    "ntk_operator": lambda net: kernels.ntk_operator(net.apply, P, X) @ Y,
    "nngp": lambda net: kernels.nngp(net.apply, P, X),
    "jacobian": lambda net: linalg.jacobian(net.apply, P, X) @ P,
    "eigsh": lambda net: linalg.eigsh(linalg.hessian(net.objective, P), 1, key=KEY).values,
    "trace": lambda net: linalg.trace(linalg.hessian(net.objective, P), KEY).value,
    "eigsh of an operator": lambda net: linalg.eigsh(operator(net), 1, key=KEY).values,
    "gauss_newton": lambda net: (
        linalg.eigsh(
            curvature.gauss_newton(net.apply, losses.half_squared_error, P, X, Y), 1, key=KEY
        ).values
    ),
    "classify": lambda net: curvature.classify(net.objective, jnp.array([0.05, 0.0])).eigenvalues,
    "find_critical_point": lambda net: curvature.find_critical_point(net.objective, P).value,
    "sharpness": lambda net: curvature.sharpness(net.objective, P, key=KEY).value,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_answer_is_of_the_function_as_it_is(answer):
    net = Net(2.0)
    before = np.asarray(answer(net))
    net.scale = -3.0
    changed = np.asarray(answer(net))
    np.testing.assert_allclose(changed, answer(Net(-3.0)), rtol=1e-6)
    assert not np.allclose(changed, before)


def test_networks_made_alike_share_their_programs():
    made = lambda: nn.mlp((3, 1), parametrization="ntk")
    params, _ = made().init(KEY, (2,))
    kernels.ntk(made().apply, params, X)
    events = []
    listen = lambda event, *_, **__: events.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        kernels.ntk(made().apply, params, X)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not [event for event in events if "backend_compile" in event]

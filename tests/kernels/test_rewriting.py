"""Weights computed from parameters keep factored gradients where an equal function shows them.

That the kernels are exact is tested with the other functions of the zoo.
"""

import composed
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxnn import kernels
from jaxnn.kernels.program import run
from jaxnn.kernels.unfolding import trace


def contractions(name):
    f, params, x1, x2 = zoo.case(name)
    rows = kernels.plan(f, params, x1, x2, method="structured").rows
    return {row.parameter: row.contraction for row in rows}


@pytest.mark.parametrize("name", composed.FACTORED)
def test_every_parameter_has_factors(name):
    assert "direct" not in contractions(name).values()


@pytest.mark.parametrize("name", composed.CHANNELED)
def test_the_matrix_has_a_channel(name):
    found = contractions(name)
    assert sum("channel" in how for how in found.values()) == 1
    small = [parameter for parameter, how in found.items() if how == "direct"]
    assert len(small) <= 1  # a scale that does not act through the channel alone


@pytest.mark.parametrize(
    "name",
    [
        "rows normalized in a square",
        "columns scaled by norms of rows",
        "columns scaled by other norms",
        "centered and scaled",
        "normalized layers in a scan",
    ],
)
def test_what_has_neither_is_formed(name):
    assert set(contractions(name).values()) == {"direct"}


def test_a_learned_scale_joins_the_channel():
    assert list(contractions("weight norm, factors joined")) == ["[0] [1]"]
    f, params, x1, _ = zoo.case("weight norm, factors joined")
    layers = kernels.plan(f, params, x1, groups=lambda path: path).rows
    assert [row.parameter for row in layers] == ["[0]", "[1]"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*composed.FACTORED, *composed.CHANNELED])
def test_the_program_computes_the_function(name, float64):
    f, params, x, _ = zoo.case(name)
    leaves = list(params) if isinstance(params, tuple) else [params]

    def flat(*arguments):
        *leaves, x = arguments
        return [f(tuple(leaves) if isinstance(params, tuple) else leaves[0], x)]

    outputs, _ = run(trace(flat, leaves, [x]), [*leaves, x], {})
    np.testing.assert_allclose(outputs[0], f(params, x), rtol=1e-12, atol=1e-13)


def test_no_product_of_matrices_is_left():
    f, params, x, _ = zoo.case("low rank")
    program = trace(lambda *a: [f(a[:3], a[3])], list(params), [x])
    products = [e for e in program.equations if e.primitive.name == "dot_general"]
    assert [program.avals[e.outputs[0]].shape for e in products] == [(3, 2), (3, 4), (3, 3)]


def test_what_regrouping_leaves_over_is_dropped_and_what_prints_is_not(capfd):
    def f(w, x):
        jax.debug.print("data {}", x)
        return [jnp.tanh(x @ (2.0 * w))]

    program = trace(f, [jnp.ones((2, 2))], [jnp.ones(2)])
    names = [e.primitive.name for e in program.equations]
    assert names[1:] == ["dot_general", "mul", "tanh"]  # the first differs between versions
    run(program, [jnp.ones((2, 2)), jnp.ones(2)], {})
    jax.effects_barrier()
    assert "data [1. 1.]" in capfd.readouterr().out


def test_printing_parameters_and_data_changes_nothing(capfd):
    def f(w, x):
        jax.debug.print("seen {} {}", w.shape, (w[0, 0] * x[0, 0]).astype(int), ordered=False)
        return jnp.tanh(x @ w)

    w, x = jnp.ones((2, 3)), jnp.array([[1.0, 2.0], [0.5, 1.0]])
    found = kernels.ntk(f, w, x, method="structured")
    expected = kernels.ntk(lambda w, x: jnp.tanh(x @ w), w, x, method="structured")
    np.testing.assert_array_equal(found, expected)

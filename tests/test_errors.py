import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.errors import concrete, invalid, require_between


def test_a_message_names_argument_got_expected_and_remedy():
    error = invalid("rate", got=-1, expected="a number ≥ 0", remedy="Negate it.")
    assert isinstance(error, ValueError)
    assert str(error) == "rate: got -1, expected a number ≥ 0. Negate it."


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2), jnp.array(2.0), True + 1])
def test_the_number_behind_a_value(value):
    number = concrete(value)
    assert type(number) is float
    assert number == 2.0


@pytest.mark.parametrize("value", [None, jnp.ones(2), jnp.sin, 1j, {}])
def test_no_number(value):
    assert concrete(value) is None


def test_traced_values_pass():
    def checked(x):
        assert concrete(x) is None
        require_between("x", x, 0.0, 1.0, remedy="")
        return x

    assert jax.jit(checked)(7.0) == 7.0
    assert jax.vmap(checked)(jnp.array([-3.0]))[0] == -3.0


@pytest.mark.parametrize(
    ("low_open", "high_open", "inside", "outside", "interval"),
    [
        (False, True, [-1.0, 0.0, 1.999], [2.0, -1.001], "[-1, 2)"),
        (True, True, [-0.999, 0.0, 1.999], [2.0, -1.0], "(-1, 2)"),
        (False, False, [-1.0, 0.0, 2.0], [2.001, -1.001], "[-1, 2]"),
        (True, False, [-0.999, 0.0, 2.0], [2.001, -1.0], "(-1, 2]"),
    ],
)
def test_intervals(low_open, high_open, inside, outside, interval):
    def require(value):
        options = {"low_open": low_open, "high_open": high_open, "remedy": "Move it."}
        require_between("x", value, -1.0, 2.0, **options)

    for value in inside:
        require(value)
    for value in [*outside, math.inf, -math.inf, math.nan, jnp.array(7.0)]:
        with pytest.raises(
            ValueError, match=r"x: got .*, expected a number in .*\. Move it\."
        ) as e:
            require(value)
        assert interval in str(e.value)

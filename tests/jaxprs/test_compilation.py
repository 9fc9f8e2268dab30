"""Programs belong to what their static arguments hold."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.jaxprs import compiled

TRACES = []


@compiled(static_argnames=["f", "power", "options"])
def applied(f, x, y=2.0, *, power, options=None):
    """Docstring."""
    TRACES.append(power)
    return f(x) ** power + y


class Scaled:
    scale = 1.0

    def __call__(self, x):
        return self.scale * x


def calls(run):
    TRACES.clear()
    results = run()
    return results, len(TRACES)


def test_equal_functions_share_a_program_and_other_arguments_are_traced():
    f = lambda v: lambda x: v * x
    run = lambda: [applied(f(2.0), jnp.float32(x), y=x, power=2) for x in (1.0, 2.0)]
    assert calls(run) == ([5.0, 18.0], 1)
    assert calls(lambda: applied(f(3.0), 1.0, 0.0, power=2)) == (9.0, 1)
    assert calls(lambda: applied(f(3.0), 1.0, 0.0, power=3, options={"a": [1]})) == (27.0, 1)
    assert applied.__doc__ == "Docstring."


def test_an_object_that_has_changed_is_no_old_program():
    thing = Scaled()
    first = applied(thing, 2.0, power=1)
    thing.scale = 5.0
    np.testing.assert_array_equal([first, applied(thing, 2.0, power=1)], [4.0, 12.0])


def test_it_maps_and_differentiates():
    slope = jax.vmap(jax.grad(lambda x: applied(jnp.sin, x, power=2)))(jnp.arange(3.0))
    np.testing.assert_allclose(slope, np.sin(2.0 * np.arange(3.0)), atol=1e-6)

"""Every test runs with type-checked signatures, strict promotion and warnings as errors."""

import signal

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxnn", "beartype.beartype")  # before anything imports jaxnn


@pytest.fixture(autouse=True)
def _strict_promotion():
    """Only for the tests: the doctests of jaxnn run as a user's code would."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _programs_released():
    """Each compiled program maps memory, and Linux ends a process with more than 65,530 maps."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Runs the test in both precisions; float64 means that JAX's default float is float64."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture
def float64():
    """Runs the test with float64 as JAX's default float."""
    with jax.enable_x64(True):
        yield jnp.dtype("float64")


@pytest.fixture
def standard_promotion():
    """For oracles that rely on JAX's usual promotion rules (optax, flax, haiku)."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def default_sigint():
    """Python's own handler of Ctrl-C, also where the suite runs in a script's background.

    There SIGINT is ignored, and Python installs no handler for an ignored signal.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

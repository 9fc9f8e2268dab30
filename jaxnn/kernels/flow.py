"""How a linear model trains on the squared error: gradient flow and descent, mode by mode.

The model is f(θ) = f₀ + J(θ - θ₀), with the kernel Θ = JJᵀ; a wide network is one (`linearize`).
On L = ½ Σ‖f - y‖² every method keeps θ_t = θ₀ - Jᵀ α_t(Θ)(f₀ - y), with a function α_t of each
eigenvalue alone; all that differs is α_t. Of the mean over N examples divide the rate by N.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxnn import linalg, tree
from jaxnn.errors import concrete, invalid, is_traced, require_between
from jaxnn.kernels.matrices import as_columns, as_matrix, real_arrays, regularized, square
from jaxnn.kernels.modes import decomposed
from jaxnn.kernels.spectral import DESCENT, FLOW, Descent, SpectralFunction, applied
from jaxnn.linalg.vectors import dot
from jaxnn.types import Apply, Array, ArrayLike, Params

# Numbers of steps that are traced floating-point numbers count up to 2**64; then they are infinite.
LARGEST_BITS = 64


class Trained(NamedTuple):
    """The outputs of a linear model after training, and where its parameters are.

    train         (N, ...) as the targets
    test          (M, ...) or None
    coefficients  α_t(Θ)(f₀ - y), as the targets: θ_t = θ₀ - Jᵀ coefficients
    rank          of Θ, with its ridge: beyond it nothing is ever learned
    """

    train: Float[Array, "N ..."]
    test: Float[Array, "M ..."] | None
    coefficients: Float[Array, "N ..."]
    rank: Int[Array, ""]


def gradient_flow(
    kernel: Shaped[Array, "N N ..."],
    y: Shaped[Array, "N ..."],
    t: ArrayLike,
    *,
    outputs: Shaped[Array, "N ..."] | None = None,
    cross: Shaped[Array, "M N ..."] | None = None,
    test_outputs: Shaped[Array, "M ..."] | None = None,
    noise: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
) -> Trained:
    """The solution of df/dt = -Θ(f - y) at the time t, which may be ∞.

        f_t = y + e^{-Θt}(f₀ - y),   f_t* = f₀* - Θ_* Θ⁻¹(1 - e^{-Θt})(f₀ - y)

    `outputs` f₀ and `test_outputs` f₀* are 0 by default; `cross` is Θ_*, the kernel of test with
    training inputs. Kernels are (N, N), acting on every output alike, or (N, N, O, O). At t = ∞ a
    singular Θ gives the solution of least norm from θ₀. Times may be vmapped: the eigenmodes are
    computed once.

    `noise` adds the ridge ½ noise ‖θ - θ₀‖² to the error, which replaces Θ by Θ + noise·I in
    θ_t = θ₀ - Jᵀ α_t(Θ)(f₀ - y); `diag_reg` is a ridge in units of the mean diagonal of Θ, as in
    neural-tangents. Derivatives exist at equal and zero eigenvalues too. A negative traced time or
    noise gives NaN.

    Errors: shapes that do not fit, a negative time or noise, complex numbers.

    Source: Jacot, Gabriel & Hongler (2018), section 5; Lee et al. (2019), equations 8 and 9.

    >>> import math
    >>> gradient_flow(jnp.array([[2.0]]), jnp.array([1.0]), 0.5 * math.log(2.0)).train
    Array([0.5], dtype=float32)
    """
    time = checked_time("gradient_flow", t)
    arrays = (kernel, y, outputs, cross, test_outputs)
    return _trained("gradient_flow", FLOW, time, arrays, noise, diag_reg)


def gradient_descent(
    kernel: Shaped[Array, "N N ..."],
    y: Shaped[Array, "N ..."],
    steps: ArrayLike,
    *,
    learning_rate: ArrayLike,
    momentum: ArrayLike = 0.0,
    outputs: Shaped[Array, "N ..."] | None = None,
    cross: Shaped[Array, "M N ..."] | None = None,
    test_outputs: Shaped[Array, "M ..."] | None = None,
    noise: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
) -> Trained:
    """The linear model after a number of steps of gradient descent, with a heavy ball's momentum.

        v ← μv + ∇L,   θ ← θ - ηv,  so that  α_{k+1} = α_k + μ(α_k - α_{k-1}) + η(1 - λα_k)

    from α₀ = α₋₁ = 0. The cost grows as ln(steps), an integer of any size or ∞. The other
    arguments and results are those of `gradient_flow`. Descent diverges beyond
    `max_learning_rate(kernel, momentum=μ)`: after infinitely many steps it is NaN there. Traced
    steps that are negative or not whole give NaN, and traced floats above 2⁶⁴ count as ∞.

    Errors: shapes that do not fit, steps that are negative or not whole, a negative learning rate
    or noise, a momentum outside [0, 1), complex numbers.

    Source: Polyak (1964), equation 9; Lee et al. (2019), appendix D.

    >>> gradient_descent(jnp.array([[2.0]]), jnp.array([1.0]), 2, learning_rate=0.25).train
    Array([0.75], dtype=float32)
    """
    remedy = "Beyond max_learning_rate(kernel) gradient descent diverges."
    _require_scalar("gradient_descent(learning_rate)", learning_rate, float("inf"), remedy)
    remedy = "It is the share of a step that the next one keeps."
    _require_scalar("gradient_descent(momentum)", momentum, 1.0, remedy)
    bits, infinite = _bits(steps)
    parameters = Descent(*map(jnp.asarray, (bits, infinite, learning_rate, momentum)))
    arrays = (kernel, y, outputs, cross, test_outputs)
    return _trained("gradient_descent", DESCENT, parameters, arrays, noise, diag_reg)


def trained_parameters(f: Apply, params: Params, x: Array, coefficients: Array) -> Params:
    """θ₀ - Jᵀc, the parameters that a linear model was trained to, J the Jacobian of f at θ₀.

    `coefficients` are those of a `Trained` whose kernel is that of f at `params` on all of x, in
    the shape of f(params, x).

    Errors: coefficients of another shape.

    Source: Lee et al. (2019), equation 7.

    >>> f = lambda w, x: x @ w
    >>> trained_parameters(f, jnp.zeros(2), jnp.eye(2), jnp.array([1.0, -1.0]))
    Array([-1.,  1.], dtype=float32)
    """
    jacobian = linalg.jacobian(lambda p: f(p, x), params)
    shapes = [jax.tree.map(jnp.shape, a) for a in (coefficients, jacobian.codomain)]
    if shapes[0] != shapes[1]:
        raise invalid(
            "trained_parameters(coefficients)",
            got=f"shape {shapes[0]}",
            expected=f"that of f(params, x), {shapes[1]}",
            remedy="Pass Trained.coefficients for the kernel of all of x.",
        )
    vector = jax.tree.map(lambda c, s: c.astype(s.dtype), coefficients, jacobian.codomain)
    return tree.sub(params, jacobian.T @ vector)


def checked_time(caller: str, t: ArrayLike) -> Array:
    """The time as an array; NaN for a traced one below 0.

    Errors: times that are negative or no single number.

    >>> checked_time("gradient_flow", 2)
    Array(2., dtype=float32)
    """
    remedy = "Training starts at t = 0; use jax.vmap for several times."
    _require_scalar(f"{caller}(t)", t, float("inf"), remedy, closed=True)
    time = jnp.asarray(t, None if jnp.issubdtype(jnp.result_type(t), jnp.floating) else float)
    return jnp.where(time >= 0, time, jnp.nan)


def _require_scalar(
    argument: str, value: ArrayLike, high: float, remedy: str, *, closed: bool = False
) -> None:
    if jnp.shape(value) != ():
        expected = "a number, shape ()"
        raise invalid(argument, got=f"shape {jnp.shape(value)}", expected=expected, remedy=remedy)
    require_between(argument, value, 0.0, high, high_open=not closed, remedy=remedy)


def _bits(steps: Any) -> tuple[Array | np.ndarray, Array | float]:
    """The binary digits of the number of steps, lowest first, and `Descent.infinite`."""
    argument, remedy = "gradient_descent(steps)", "Use jax.vmap for several numbers of steps."
    if jnp.shape(steps) != ():
        got = f"shape {jnp.shape(steps)}"
        raise invalid(argument, got=got, expected="a number, shape ()", remedy=remedy)
    if not is_traced(steps):
        number = concrete(steps)
        if number is None or number < 0 or not (number == float("inf") or number % 1 == 0):
            raise invalid(argument, got=steps, expected="an integer ≥ 0, or inf", remedy=remedy)
        if number == float("inf"):
            return np.zeros(1, np.float32), 1.0
        count = int(steps)
        digits = [count >> i & 1 for i in range(max(count.bit_length(), 1))]
        return np.array(digits, np.float32), 0.0
    steps = jnp.asarray(steps)
    if jnp.issubdtype(steps.dtype, jnp.integer):
        digits = steps >> jnp.arange(jnp.iinfo(steps.dtype).bits, dtype=steps.dtype) & 1
        return digits.astype(jnp.float32), jnp.where(steps >= 0, 0.0, jnp.nan)
    infinite = steps >= 2.0**LARGEST_BITS
    whole = infinite | ((steps >= 0) & (steps % 1 == 0))
    count = jnp.where(infinite | ~whole, 0.0, steps)
    digits = jnp.floor(count / 2.0 ** jnp.arange(LARGEST_BITS, dtype=steps.dtype)) % 2.0
    return digits, jnp.where(whole, infinite.astype(jnp.float32), jnp.nan)


def _trained(
    caller: str,
    function: SpectralFunction,
    parameters: Array | Descent,
    arrays: tuple[Array | None, ...],
    noise: ArrayLike,
    diag_reg: ArrayLike,
) -> Trained:
    names = ("kernel", "y", "outputs", "cross", "test_outputs")
    values, dtype = real_arrays(caller, **dict(zip(names, arrays, strict=True)))
    _require_fit(caller, *values)
    kernel, y, outputs, cross, test_outputs = values
    matrix = square(caller, kernel)
    regular = regularized(caller, matrix, noise, diag_reg)
    columns = lambda a: as_columns(a) if kernel.ndim == 2 else a.reshape(-1, 1)
    error = columns(-y if outputs is None else outputs - y)
    modes = decomposed(regular)
    parameters = jax.tree.map(lambda p: p.astype(error.dtype), parameters)
    coefficients, residual = applied(function, regular, modes, parameters, error)
    # 1 - Θα(A) = (1 - Aα(A)) + (A - Θ)α(A), for A = Θ with its ridge.
    added = jnp.diagonal(regular - matrix)[:, None]
    ridge = jnp.where(added == 0, 0.0, added * coefficients)  # coefficients may have diverged
    train = y + (residual + ridge).reshape(y.shape)
    test = None
    if cross is not None:
        change = dot(as_matrix(cross), coefficients).reshape(len(cross), *y.shape[1:])
        test = (-change if test_outputs is None else test_outputs - change).astype(dtype)
    coefficients = coefficients.reshape(y.shape).astype(dtype)
    return Trained(train.astype(dtype), test, coefficients, modes.rank)


def _require_fit(
    caller: str,
    kernel: Array,
    y: Array,
    outputs: Array | None,
    cross: Array | None,
    test_outputs: Array | None,
) -> None:
    n = len(square(caller, kernel))
    shape = lambda a: None if a is None else a.shape
    fits = y.ndim > 0 and len(y) == len(kernel) and (kernel.ndim == 2 or y.size == n)
    if not fits or (outputs is not None and outputs.shape != y.shape):
        raise invalid(
            "the targets y, and outputs",
            got=f"shapes {y.shape} and {shape(outputs)}",
            expected=f"equal ones that fit a kernel {kernel.shape}",
            remedy="Pass f(params, x) as outputs, or None for zeros.",
        )
    if cross is not None and (cross.ndim != kernel.ndim or cross.shape[1:] != kernel.shape[1:]):
        raise invalid(
            f"{caller}(cross)",
            got=f"shape {cross.shape}",
            expected=f"(M, {', '.join(map(str, kernel.shape[1:]))})",
            remedy="It is the kernel of test inputs (rows) with training inputs (columns).",
        )
    if test_outputs is not None and (
        cross is None or test_outputs.shape != (len(cross), *y.shape[1:])
    ):
        raise invalid(
            f"{caller}(test_outputs)",
            got=f"shape {test_outputs.shape}, cross of shape {shape(cross)}",
            expected=f"{('M', *y.shape[1:])} with M the rows of cross".replace("'", ""),
            remedy="They are f(params, x_test), in the shape of the targets.",
        )

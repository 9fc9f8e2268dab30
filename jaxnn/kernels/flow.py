"""How a linear model trains on the squared error: gradient flow and descent, mode by mode.

The model is f(θ) = f₀ + J(θ - θ₀), with the kernel Θ = JJᵀ; a wide network is one (`linearize`).
On L = ½ Σ‖f - y‖² every method keeps θ_t = θ₀ - Jᵀ α_t(Θ)(f₀ - y), with a function α_t of each
eigenvalue alone; all that differs is α_t. Of the mean over N examples divide the rate by N.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from jaxnn import linalg, tree
from jaxnn.errors import invalid
from jaxnn.kernels.modes import Modes, as_matrix, eigenmodes
from jaxnn.types import Apply, Array, ArrayLike, Params


class Trained(NamedTuple):
    """The outputs of a linear model after training, and where its parameters are.

    train         (N, ...) as the targets
    test          (M, ...) or None
    coefficients  α_t(Θ)(f₀ - y), as the targets: θ_t = θ₀ - Jᵀ coefficients
    rank          of Θ: beyond it nothing is ever learned
    """

    train: Float[Array, "N ..."]
    test: Float[Array, "M ..."] | None
    coefficients: Float[Array, "N ..."]
    rank: Int[Array, ""]


def gradient_flow(
    kernel: Float[Array, "N N ..."],
    y: Float[Array, "N ..."],
    t: ArrayLike,
    *,
    outputs: Float[Array, "N ..."] | None = None,
    cross: Float[Array, "M N ..."] | None = None,
    test_outputs: Float[Array, "M ..."] | None = None,
) -> Trained:
    """The solution of df/dt = -Θ(f - y) at the time t, which may be ∞.

        f_t = y + e^{-Θt}(f₀ - y),   f_t* = f₀* - Θ_* Θ⁻¹(1 - e^{-Θt})(f₀ - y)

    `outputs` f₀ and `test_outputs` f₀* are 0 unless given; `cross` is Θ_*, the kernel of test with
    training inputs. Kernels are (N, N), acting on every output alike, or (N, N, O, O). At t = ∞ a
    singular Θ gives the solution of least norm from θ₀. Times may be vmapped: the eigenmodes are
    computed once.

    Errors: shapes that do not fit.

    Source: Jacot, Gabriel & Hongler (2018), section 5; Lee et al. (2019), equations 8 and 9.

    >>> import math
    >>> gradient_flow(jnp.array([[2.0]]), jnp.array([1.0]), 0.5 * math.log(2.0)).train
    Array([0.5], dtype=float32)
    """

    def displacement(modes: Modes) -> Array:
        time = jnp.asarray(t, modes.eigenvalues.dtype)
        values = modes.eigenvalues
        positive = values > 0
        safe = jnp.where(positive, values, 1.0)
        finite = jnp.where(jnp.isfinite(time), time, 0.0)
        # (1 - e^{-λt})/λ, which is t where λ is 0.
        now = jnp.where(positive, -jnp.expm1(-safe * finite) / safe, finite)
        return jnp.where(jnp.isfinite(time), now, modes.inverses())

    return _trained(displacement, kernel, y, outputs, cross, test_outputs)


def gradient_descent(
    kernel: Float[Array, "N N ..."],
    y: Float[Array, "N ..."],
    steps: ArrayLike,
    *,
    learning_rate: ArrayLike,
    momentum: ArrayLike = 0.0,
    outputs: Float[Array, "N ..."] | None = None,
    cross: Float[Array, "M N ..."] | None = None,
    test_outputs: Float[Array, "M ..."] | None = None,
) -> Trained:
    """The linear model after a number of steps of gradient descent, with a heavy ball's momentum.

        v ← μv + ∇L,   θ ← θ - ηv,  so that  α_{k+1} = α_k + μ(α_k - α_{k-1}) + η(1 - λα_k)

    from α₀ = α₋₁ = 0. The cost grows as ln(steps). Arguments and results are else those of
    `gradient_flow`. It diverges beyond `max_learning_rate(kernel, momentum=μ)`.

    Errors: shapes that do not fit.

    Source: Polyak (1964), equation 9; Lee et al. (2019), appendix D.

    >>> gradient_descent(jnp.array([[2.0]]), jnp.array([1.0]), 2, learning_rate=0.25).train
    Array([0.75], dtype=float32)
    """

    def displacement(modes: Modes) -> Array:
        values = modes.eigenvalues
        rate, mu = (jnp.asarray(z, values.dtype) for z in (learning_rate, momentum))
        one, zero = jnp.ones_like(values), jnp.zeros_like(values)
        # (α_k, α_{k-1}, 1) ↦ (α_{k+1}, α_k, 1), to the power of `steps` by squaring.
        rows = [(1.0 + mu - rate * values, -mu * one, rate * one), (one, zero, zero)]
        step = jnp.stack([jnp.stack(r) for r in (*rows, (zero, zero, one))])
        start = jnp.stack([zero, zero, one])

        def bit(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            left, power, vector = state
            moved = jnp.einsum("abn,bn->an", power, vector)
            vector = jnp.where(left % 2 == 1, moved, vector)
            return left // 2, jnp.einsum("abn,bcn->acn", power, power), vector

        state = jnp.asarray(steps, jnp.int32), step, start
        return lax.while_loop(lambda s: s[0] > 0, bit, state)[2][0]

    return _trained(displacement, kernel, y, outputs, cross, test_outputs)


def trained_parameters(f: Apply, params: Params, x: Array, coefficients: Array) -> Params:
    """θ₀ - Jᵀc, the parameters that a linear model was trained to, J the Jacobian of f at θ₀.

    `coefficients` are those of a `Trained` whose kernel is that of f at `params` on all of x, in
    the shape of f(params, x).

    Source: Lee et al. (2019), equation 7.

    >>> f = lambda w, x: x @ w
    >>> trained_parameters(f, jnp.zeros(2), jnp.eye(2), jnp.array([1.0, -1.0]))
    Array([-1.,  1.], dtype=float32)
    """
    jacobian = linalg.jacobian(lambda p: f(p, x), params)
    return tree.sub(params, jacobian.T @ coefficients)


def ntk_ensemble(
    nngp: Float[Array, "N N"],
    ntk: Float[Array, "N N"],
    y: Float[Array, "N ..."],
    t: ArrayLike,
    *,
    cross_nngp: Float[Array, "M N"],
    cross_ntk: Float[Array, "M N"],
    own_nngp: Float[Array, "M M"],
) -> tuple[Float[Array, "M ..."], Float[Array, "M M"]]:
    """Mean and covariance, over initializations, of infinitely wide networks trained for a time t.

        mean = A y,   covariance = K_** + A K Aᵀ - A K_*ᵀ - K_* Aᵀ,   A = Θ_* Θ⁻¹(1 - e^{-Θt})

    K and Θ are the NNGP and tangent kernels; t may be ∞.

    Errors: shapes that do not fit.

    Source: Lee et al. (2019), equations 14 and 15.

    >>> k = jnp.eye(2)
    >>> mean, covariance = ntk_ensemble(k, k, jnp.ones(2), jnp.inf,
    ...                                 cross_nngp=k, cross_ntk=k, own_nngp=k)
    >>> mean, bool(jnp.all(abs(covariance) < 1e-6))
    (Array([1., 1.], dtype=float32), True)
    """
    eye = jnp.eye(len(ntk), dtype=ntk.dtype)
    hat = gradient_flow(ntk, eye, t, cross=cross_ntk).test
    assert hat is not None
    mixed = hat @ cross_nngp.T
    mean = (hat @ y.reshape(len(y), -1)).reshape(len(hat), *y.shape[1:])
    return mean, own_nngp + hat @ nngp @ hat.T - mixed - mixed.T


def _trained(
    displacement: Callable[[Modes], Array],
    kernel: Array,
    y: Array,
    outputs: Array | None,
    cross: Array | None,
    test_outputs: Array | None,
) -> Trained:
    matrix = as_matrix(kernel)
    n, per_output = len(kernel), kernel.ndim == 2
    fits = y.shape[0] == n and (per_output or y.size == len(matrix))
    if not fits or (outputs is not None and outputs.shape != y.shape):
        raise invalid(
            "the targets y, and outputs",
            got=f"shapes {y.shape} and {None if outputs is None else outputs.shape}",
            expected=f"equal ones that fit a kernel {kernel.shape}",
            remedy="Pass f(params, x) as outputs, or None for zeros.",
        )
    columns = lambda a: a.reshape(n, -1) if per_output else a.reshape(-1, 1)
    start = jnp.zeros_like(y) if outputs is None else outputs
    modes = eigenmodes(matrix)
    u = modes.eigenvectors
    alpha = displacement(modes)
    error = u.T @ columns(start - y)
    train = columns(y) + u @ ((1.0 - modes.eigenvalues * alpha)[:, None] * error)
    coefficients = u @ (alpha[:, None] * error)
    test = None
    if cross is not None:
        m = len(cross)
        change = (as_matrix(cross) @ coefficients).reshape(m, *y.shape[1:])
        test = (jnp.zeros_like(change) if test_outputs is None else test_outputs) - change
    return Trained(train.reshape(y.shape), test, coefficients.reshape(y.shape), modes.rank)

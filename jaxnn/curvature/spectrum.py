"""A spectrum in a few numbers: how many directions count, and how many stand out.

The spectrum is all n eigenvalues, in any dtype (see `jaxnn.precision`), or a
`linalg.spectral_density`, whose numbers have standard errors over its probes.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from jaxnn.errors import invalid, require_between
from jaxnn.linalg.estimates import Estimate, mean_of
from jaxnn.linalg.quadrature import SpectralDensity
from jaxnn.precision import accumulated, inexact_dtype
from jaxnn.types import Array, ArrayLike

Spectrum: TypeAlias = Shaped[Array, "n"] | SpectralDensity


class Outliers(NamedTuple):
    """How many eigenvalues stand above the rest.

    number  those above the widest gap
    gap     the ratio λ_number/λ_number+1 of the two eigenvalues beside it
    gaps    all ratios λ_i/λ_i+1 from the largest down: how much wider the widest is than others
    """

    number: Int[Array, ""]
    gap: Float[Array, ""]
    gaps: Float[Array, "k-1"]


def outliers(values: Shaped[Array, "k"], *, floor: ArrayLike | None = None) -> Outliers:
    """The eigenvalues above the largest relative gap, of the k largest of an operator.

        number = argmax_i λ_i / max(λ_i+1, floor),   λ₁ ≥ λ₂ ≥ ... ≥ λ_k

    The number depends on how far down one looks: of all eigenvalues the widest ratio is among the
    smallest, where it means nothing. To look for C outliers, take the largest 2C. What is below
    `floor` is taken for noise and no gap is looked for within it; by default ε^⅔ of the largest
    (2e-5 in float32), as exact as `linalg.eigsh` makes them. Of eigenvalues that are NaN so is the
    gap.

    Errors: fewer than two values, a negative floor.

    Source: Sagun, Evci, Güney, Dauphin & Bottou (2017), section 4; Papyan (2020), section 3.

    >>> found = outliers(jnp.array([9.0, 7.0, 5.0, 0.5, 0.4, 0.2]))
    >>> int(found.number), float(found.gap)
    (3, 10.0)
    """
    if len(values) < 2:
        raise invalid(
            "outliers(values)",
            got=f"{len(values)} eigenvalues",
            expected="two or more",
            remedy="To look for C outliers take the 2C largest, by linalg.eigsh(operator, 2 * C).",
        )
    if floor is not None:
        remedy = "It is on the scale of the eigenvalues."
        require_between("outliers(floor)", floor, 0.0, jnp.inf, remedy=remedy)
    # The rounding of the eigenvalues is that of the dtype that they come in.
    rounding = float(jnp.finfo(inexact_dtype(values)).eps) ** (2 / 3)
    return accumulated(lambda values: _widest_gap(values, floor, rounding), values)


def _widest_gap(values: Array, floor: ArrayLike | None, rounding: float) -> Outliers:
    floor = rounding * jnp.max(jnp.abs(values)) if floor is None else floor
    falling = jnp.maximum(-jnp.sort(-values), jnp.asarray(floor, values.dtype))
    upper, lower = falling[:-1], falling[1:]
    above_zero = jnp.where(upper > 0, jnp.inf, 1.0)  # two zeros are no gap
    gaps = jnp.where(lower != 0, upper / jnp.where(lower != 0, lower, 1.0), above_zero)
    widest = jnp.argmax(gaps)
    return Outliers(widest + 1, gaps[widest], gaps)


def effective_dimension(spectrum: Spectrum, alpha: ArrayLike) -> Estimate:
    """γ = Σ_i λ_i/(λ_i + α): how many parameters data determine against a prior of precision α.

    Between 0 and n, falling in α. Negative eigenvalues count as 0, as rounding makes them of
    positive semidefinite maps; for a Hessian with many take the Gauss-Newton matrix.

    Errors: an α that is not positive.

    Source: MacKay (1992), Bayesian interpolation, section 4.

    >>> effective_dimension(jnp.array([9.0, 1.0, 0.0]), 1.0).value
    Array(1.4, dtype=float32)
    """
    remedy = "It is on the scale of the eigenvalues."
    require_between("effective_dimension(alpha)", alpha, 0.0, jnp.inf, low_open=True, remedy=remedy)

    def share(x: Array) -> Array:
        positive = jnp.maximum(x, 0.0)
        return positive / (positive + jnp.asarray(alpha, x.dtype))

    return _measured(lambda spectrum: _trace(spectrum, share), spectrum)


def effective_rank(spectrum: Spectrum, *, largest: ArrayLike | None = None) -> Estimate:
    """r = Σ_i λ_i / λ_max: how many times the largest eigenvalue the trace is.

    Of a positive semidefinite map between 1 and its rank, and 0 of the zero map. `largest` is
    λ_max; without it that of the spectrum is taken, of a density the largest node, which is
    slightly below: the standard error is that of the trace alone.

    Source: Bartlett, Long, Lugosi & Tsigler (2020), definition 3, r₀.

    >>> effective_rank(jnp.array([4.0, 1.0, 1.0])).value
    Array(1.5, dtype=float32)
    """
    same = lambda x: x
    return _measured(lambda s: _divided(_trace(s, same), _top(s, same, largest)), spectrum)


def stable_rank(spectrum: Spectrum, *, largest: ArrayLike | None = None) -> Estimate:
    """r = ‖A‖²_F / ‖A‖₂² = Σ_i λ_i² / max_i λ_i²: a rank that small eigenvalues do not change.

    Between 1 and the rank, and 0 of the zero map. `largest` is max|λ|; without it that of the
    spectrum is taken, of a density that of the nodes, which is slightly below.

    Source: Rudelson & Vershynin (2007), section 1, there numerical rank.

    >>> stable_rank(jnp.array([-2.0, 1.0, 1.0])).value
    Array(1.5, dtype=float32)
    """
    squares = lambda s: _trace(s, jnp.square)
    return _measured(lambda s: _divided(squares(s), _top(s, jnp.abs, largest) ** 2), spectrum)


def participation_ratio(spectrum: Spectrum) -> Estimate:
    """(Σ_i λ_i)² / Σ_i λ_i²: n of equal eigenvalues, 1 where a single one is not 0.

    Of a density a ratio of means over probes; its standard error is that of the ratio linearized
    in both (the delta method), and its bias of the order of that error's square.

    Source: Bell & Dean (1970), section 2; Gao & Ganguli (2015), for dimensions.

    >>> participation_ratio(jnp.array([1.0, 1.0, 0.0])).value
    Array(2., dtype=float32)
    """
    return _measured(_participation, spectrum)


def _participation(spectrum: Spectrum) -> Estimate:
    first, second = (_samples(spectrum, f) for f in (lambda x: x, jnp.square))
    a, b = jnp.mean(first), jnp.mean(second)
    unit = jnp.where(b > 0, b, 1.0)
    ratio = a**2 / unit
    linear = ratio + (2 * a * (first - a) - ratio * (second - b)) / unit
    return _estimate(spectrum, linear)._replace(value=ratio)


def _measured(function: Callable[[Spectrum], Estimate], spectrum: Spectrum) -> Estimate:
    """A function of a spectrum; sums over eigenvalues are accumulated in at least float32."""
    if isinstance(spectrum, SpectralDensity):
        return function(spectrum)
    return accumulated(function, spectrum)


def _samples(spectrum: Spectrum, function: Callable[[Array], Array]) -> Float[Array, "probes"]:
    """tr f(A) from every probe; of eigenvalues there is one, that is exact."""
    if isinstance(spectrum, SpectralDensity):
        return spectrum.samples(function)
    return jnp.sum(function(spectrum))[None]


def _estimate(spectrum: Spectrum, samples: Float[Array, "probes"]) -> Estimate:
    if isinstance(spectrum, SpectralDensity):
        return mean_of(samples, spectrum.products)
    return Estimate(samples[0], jnp.zeros_like(samples[0]), 1, 0)


def _trace(spectrum: Spectrum, function: Callable[[Array], Array]) -> Estimate:
    return _estimate(spectrum, _samples(spectrum, function))


def _top(
    spectrum: Spectrum, size: Callable[[Array], Array], largest: ArrayLike | None
) -> Float[Array, ""]:
    if not isinstance(spectrum, SpectralDensity):
        nodes = size(spectrum)
    else:
        nodes = jnp.where(spectrum.weights != 0, size(spectrum.nodes), -jnp.inf)
    return jnp.max(nodes) if largest is None else jnp.asarray(largest, nodes.dtype)


def _divided(estimate: Estimate, by: Float[Array, ""]) -> Estimate:
    by = jnp.where(by == 0, 1.0, by)
    return estimate._replace(
        value=estimate.value / by, standard_error=estimate.standard_error / jnp.abs(by)
    )

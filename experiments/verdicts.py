"""A claim beside its measurement: how each class of claim holds, fails or stays open.

Every constructor takes the prediction and what was measured, as arrays where several numbers or
runs were, and decides by a rule fixed before the run:

identity     equal to rounding                          fails otherwise
printed      rounds to the digits in print              fails otherwise
bound        no run violates it, a wrong variant is     fails if violated
statistical  within 4 standard errors of ≤ 3 %          fails beyond 4 standard errors
exponent     bootstrap interval inside the band         fails if it is disjoint from the band
direction    wins n of n pairs, n ≥ 8 (a sign test)     fails if it loses as clearly
impossible   a certificate that no solution exists      fails if a solution is shown
control      a wrong variant's verdict fails            fails if the wrong variant holds

What is neither is inconclusive: too few runs, too large an error, a control that shows nothing.
A NaN fails always, also as a control: nothing was measured.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxnn.errors import invalid

Status = Literal["holds", "fails", "inconclusive"]

MINIMUM_RUNS = 8
"""Fewer runs estimate no spread, and a sign test of fewer cannot reach p = 2⁻⁸ = .004."""


class Verdict(NamedTuple):
    """A claim, what theory predicts, what was measured, and whether they agree.

    Of several numbers, `predicted` and `measured` are the pair that agrees worst. `interval` is
    where the measured value lies: its range over runs, ± 4 standard errors, or a bootstrap
    interval; None for a single exact number. `basis` says in words how the status was decided.
    """

    claim: str
    predicted: float
    measured: float
    interval: tuple[float, float] | None
    status: Status
    basis: str = ""


@np.errstate(invalid="ignore")  # ∞ - ∞ is a NaN, which fails
def identity(
    claim: str,
    predicted: ArrayLike,
    measured: ArrayLike,
    *,
    tolerance: float = 1e-10,
    scale: float | None = None,
) -> Verdict:
    """Equality up to rounding: max|measured - predicted| ≤ tolerance·scale.

    `scale` is max|predicted| unless given, so an array is one vector and not many numbers; give
    1.0 where `measured` is a relative error already and 0 is predicted.

    >>> identity("trace of the identity matrix", 3.0, 3.0 + 1e-12).status
    'holds'
    """
    p, m = _paired(predicted, measured)
    scale = float(np.max(np.abs(p))) if scale is None else scale
    gap = np.abs(m - p)
    worst = int(np.argmax(gap))  # a NaN counts as the largest
    holds = bool(gap[worst] <= tolerance * scale)
    error = _ratio(gap[worst], scale)
    where = f", worst of {m.size}" if m.size > 1 else ""
    basis = f"relative error {error:.1e}{where}; tolerance {tolerance:.0e}"
    return _verdict(claim, p[worst], m[worst], None, "holds" if holds else "fails", basis)


def printed(claim: str, digits: str | Sequence[str], measured: ArrayLike) -> Verdict:
    """Digits in print are the exact value's, rounded: off by at most ½ of the last one's unit.

    >>> printed("sigmoid of 0", "0.5", 0.5).status, printed("its slope", "0.24", 0.25).status
    ('holds', 'fails')
    """
    texts = [digits] if isinstance(digits, str) else list(digits)
    p, m = _paired(np.array([float(text) for text in texts]), np.atleast_1d(measured))
    units = np.array([10.0 ** -len(text.partition(".")[2]) for text in texts])
    off = np.abs(m - p) / units
    worst = int(np.argmax(off))
    holds = bool(off[worst] <= 0.5 + 1e-9)
    basis = f"off by {off[worst]:.3g} units of the last printed digit; at most 0.5"
    return _verdict(claim, p[worst], m[worst], None, "holds" if holds else "fails", basis)


@np.errstate(invalid="ignore")
def bound(
    claim: str,
    limit: ArrayLike,
    measured: ArrayLike,
    *,
    control: tuple[ArrayLike, ArrayLike],
    at_least: bool = False,
    tolerance: float = 1e-12,
) -> Verdict:
    """No run exceeds its limit (falls below with `at_least`), and the test could have seen one.

    `control` is the (limit, measured) of a wrong variant: a bound known to be false, or runs that
    break the theorem's assumptions. Where no run violates it, the test has no power and the
    verdict is inconclusive: the claim was not contradicted, but would not have been in any case.
    A violated bound fails whatever its control does; an infinite number on either side that does
    not violate it shows nothing. The tightness is near/far ≤ 1 at the run closest to its limit.
    `tolerance` allows for rounding, relative to the limit.

    >>> bound("x(1 - x) ≤ 1/4", 0.25, [0.1, 0.24], control=(0.2, [0.1, 0.24])).status
    'holds'
    """

    def excess(limit: np.ndarray, measured: np.ndarray) -> np.ndarray:
        gap = limit - measured if at_least else measured - limit
        return gap - tolerance * np.abs(limit)

    p, m = _paired(limit, measured)
    control_p, control_m = _paired(*control)
    over = excess(p, m)
    tightest = int(np.argmax(_ratio(over, np.abs(p))))
    violations = int(np.sum(~(over <= 0)))
    detected = int(np.sum(excess(control_p, control_m) > 0))
    near, far = (p, m) if at_least else (m, p)
    tightness = (
        f"tightness {_ratio(near[tightest], far[tightest]):.3g}"
        if near[tightest] >= 0 and far[tightest] > 0
        else f"slack {far[tightest] - near[tightest]:.3g}"
    )
    basis = (
        f"violated in {violations} of {m.size} runs, {tightness}; "
        f"control violated in {detected} of {control_m.size}"
    )
    if np.isnan(over).any() or np.isnan(control_m).any() or np.isnan(control_p).any():
        tightest = int(np.argmax(np.isnan(over)))
        return _verdict(claim, p[tightest], math.nan, None, "fails", basis)
    powerless = detected == 0 or not (np.isfinite(p).all() and np.isfinite(m).all())
    status = "fails" if violations else "inconclusive" if powerless else "holds"
    span = (float(m.min()), float(m.max()))
    return _verdict(claim, p[tightest], m[tightest], span, status, basis)


def statistical(
    claim: str, predicted: float, samples: ArrayLike, *, scale: float | None = None
) -> Verdict:
    """Independent draws have the predicted mean: |mean - predicted| ≤ 4·SE, with SE ≤ 3 %.

    SE is the standard error of the mean, 3 % are of `scale`, which is |predicted| unless given.
    Beyond 4·SE the claim fails however large SE is: the draws contradict it. Within, it holds only
    if SE is small enough to have seen a deviation. Fewer than 8 draws or draws without spread
    give no standard error, and decide nothing. At 8 draws a true claim fails 1 in 200 times (the
    error is Student's), from 30 on fewer than 1 in 2000.

    >>> statistical("mean of a fair coin", 0.5, [0.0, 1.0] * 600).status
    'holds'
    """
    x = _runs(samples)
    n, mean = x.size, float(np.mean(x))
    if not np.isfinite(x).all():
        return _verdict(claim, predicted, math.nan, None, "fails", "draws that are not finite")
    error = float(np.std(x, ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    relative = _ratio(error, abs(predicted) if scale is None else scale)
    deviation = _ratio(abs(mean - predicted), error)
    basis = f"off by {deviation:.2f} SE, at most 4; SE {relative:.1%}, at most 3 %; {n} draws"
    # Draws of a discrete quantity can agree by chance: equal draws are no proof of a zero error.
    if n < MINIMUM_RUNS or np.ptp(x) <= 1e-12 * np.max(np.abs(x)):
        status = "inconclusive"
    elif deviation > 4:
        status = "fails"
    else:
        status = "holds" if relative <= 0.03 else "inconclusive"
    span = (mean - 4 * error, mean + 4 * error)
    return _verdict(claim, predicted, mean, span, status, basis)


def exponent(claim: str, predicted: float, x: ArrayLike, y: ArrayLike, *, band: float) -> Verdict:
    """E[y] grows as x^predicted: the log-log slope lies within ± `band` of the exponent.

    x is (points,), y is (runs, points), positive; the slope is least squares through the means
    over runs. The 99 % percentile interval of 2000 bootstraps over runs (rows stay together, as a
    run may share its seed across points) must lie inside the band; disjoint from it the claim
    fails, astride its edge it is inconclusive, as with fewer than 8 runs. Percentiles of few runs
    are too narrow: of log-normal errors they cover 95 % at 8 runs, 96 % at 16, 99 % at 64.

    >>> x = np.array([1.0, 4.0, 16.0])
    >>> exponent("1/√x", -0.5, x, np.outer(np.linspace(0.9, 1.1, 9), x**-0.5), band=0.1).status
    'holds'
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or y.ndim != 2 or y.shape[1] != x.size or len(np.unique(x)) < 3:
        raise invalid(
            "exponent(x, y)",
            got=f"shapes {x.shape} and {y.shape}",
            expected="(points,) and (runs, points), at least three points",
            remedy="A slope through two points always fits.",
        )
    if not (np.isfinite(y).all() and (y > 0).all() and (x > 0).all()):
        return _verdict(claim, predicted, math.nan, None, "fails", "values that have no logarithm")
    log_x = np.log(x) - np.mean(np.log(x))
    weights = log_x / np.sum(log_x**2)
    means = np.mean(y, axis=0)
    slope = float(weights @ np.log(means))
    draws = np.random.default_rng(0).integers(len(y), size=(2000, len(y)))
    slopes = np.log(np.mean(y[draws], axis=1)) @ weights
    low, high = (float(q) for q in np.quantile(slopes, [0.005, 0.995]))
    residual = np.log(means) - np.mean(np.log(means)) - slope * log_x
    basis = (
        f"99 % bootstrap interval against {predicted:g} ± {band:g}; "
        f"{len(y)} runs, off the line by at most {np.max(np.abs(residual)):.1%}"
    )
    if len(y) < MINIMUM_RUNS:
        status = "inconclusive"
    elif predicted - band <= low and high <= predicted + band:
        status = "holds"
    else:
        disjoint = high < predicted - band or predicted + band < low
        status = "fails" if disjoint else "inconclusive"
    return _verdict(claim, predicted, slope, (low, high), status, basis)


def direction(claim: str, larger: ArrayLike, smaller: ArrayLike) -> Verdict:
    """One side exceeds the other in paired runs: a sign test at p ≤ 2⁻⁸ = .004.

    `larger` and `smaller` are (runs,). Eight pairs must be won 8 of 8; among more, some may be
    lost. If the other side wins as clearly the claim fails; in between no direction is shown.
    Ties count against whichever is tested.

    >>> direction("squares grow", np.arange(2, 10) ** 2, np.arange(2, 10)).status
    'holds'
    """
    a, b = _paired(larger, smaller)
    n = a.size
    wins, losses = int(np.sum(a > b)), int(np.sum(a < b))
    if np.isnan(a).any() or np.isnan(b).any():
        return _verdict(claim, n, math.nan, None, "fails", "runs that are not numbers")
    p, p_reverse = _sign_test(wins, n), _sign_test(losses, n)
    level = 2.0**-MINIMUM_RUNS
    status = "holds" if p <= level else "fails" if p_reverse <= level else "inconclusive"
    basis = f"wins {wins} of {n} pairs, p = {p:.2g}, at most {level:.2g}"
    return _verdict(claim, n, wins, None, status, basis)


def impossible(
    claim: str,
    a: ArrayLike,
    b: ArrayLike,
    *,
    certificate: ArrayLike | None = None,
    solution: ArrayLike | None = None,
) -> Verdict:
    """No x satisfies a x ≤ b, shown by Farkas multipliers y ≥ 0 with yᵀa = 0 and yᵀb < 0.

    a is (constraints, unknowns), b and the certificate are (constraints,). With rounded
    multipliers yᵀa = r ≠ 0, and |yᵀb| ≤ ‖r‖₁‖x‖∞ still excludes every x with ‖x‖∞ below
    |yᵀb|/‖r‖₁, which is what is measured (∞ for exact multipliers); it holds from 10⁸ on.
    A `solution` that satisfies the constraints makes it fail. With neither it is inconclusive.
    Normalize strict inequalities first: w·x > 0 becomes -w·x ≤ -1.

    >>> impossible("x ≤ 0 and x ≥ 1", [[1.0], [-1.0]], [0.0, -1.0], certificate=[1, 1]).status
    'holds'
    """
    # Floats are rationals: in exact arithmetic no rounding can pass for yᵀa = 0.
    rows, limits = [_exact(row) for row in np.asarray(a)], _exact(b)
    if solution is not None:
        x = _exact(solution)
        if all(_dot(row, x) <= limit for row, limit in zip(rows, limits, strict=True)):
            basis = "a solution satisfies every constraint"
            return _verdict(claim, math.inf, 0.0, None, "fails", basis)
    radius = 0.0
    if certificate is not None:
        y = _exact(certificate)
        margin = -_dot(y, limits)
        remainder = sum(abs(_dot(y, column)) for column in zip(*rows, strict=True))
        if min(y) >= 0 and margin > 0:
            radius = float(margin / remainder) if remainder else math.inf
    status = "holds" if radius >= 1e8 else "inconclusive"
    basis = f"the multipliers exclude every x with ‖x‖∞ < {radius:.3g}"
    return _verdict(claim, math.inf, radius, None, status, basis)


def control(verdict: Verdict) -> Verdict:
    """Turn the verdict of a wrong variant around: holds where it fails, fails where it holds.

    Shows that the measurement would have caught the error. A NaN refutes nothing, and fails.

    >>> control(identity("2 + 2 = 5", 5, 4)).status
    'holds'
    """
    flipped: dict[Status, Status] = {"fails": "holds", "holds": "fails"}
    return _verdict(
        f"Refuted: {verdict.claim}",
        verdict.predicted,
        verdict.measured,
        verdict.interval,
        flipped.get(verdict.status, verdict.status),
        f"control, must fail: {verdict.basis}",
    )


def _verdict(claim, predicted, measured, interval, status: Status, basis: str) -> Verdict:
    predicted, measured = float(predicted), float(measured)
    if math.isnan(predicted) or math.isnan(measured):
        status = "fails"
    return Verdict(claim, predicted, measured, interval, status, basis)


def _runs(values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, float).ravel()
    if x.size == 0:
        raise invalid(
            "a verdict's measurement",
            got="no value",
            expected="at least one",
            remedy="Measure before judging.",
        )
    return x


def _paired(predicted: ArrayLike, measured: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p, m = np.asarray(predicted, float), np.asarray(measured, float)
    if p.ndim and p.shape != m.shape:
        raise invalid(
            "a verdict's prediction and measurement",
            got=f"shapes {p.shape} and {m.shape}",
            expected="one prediction, or one for every measurement",
            remedy="Broadcast on purpose: a silent one compares the wrong pairs.",
        )
    return np.broadcast_to(p, m.shape).ravel(), _runs(m)


def _ratio(a, b):
    """a/b, with 0/0 = 0 and a/0 = ∞."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(a, b)
        return np.where((np.asarray(a) == 0) & (np.asarray(b) == 0), 0.0, ratio)[()]


def _exact(values: ArrayLike) -> list[Fraction]:
    return [Fraction(float(value)) for value in np.asarray(values)]


def _dot(u: Iterable[Fraction], v: Iterable[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(u, v, strict=True)), Fraction(0))


def _sign_test(wins: int, n: int) -> float:
    return sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n

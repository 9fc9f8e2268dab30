import doctest
import math

import numpy as np
import pytest
from scipy import stats

from experiments import report, verdicts
from experiments.verdicts import (
    bound,
    control,
    direction,
    exponent,
    identity,
    impossible,
    printed,
    statistical,
)

WIDTHS = np.array([64.0, 256.0, 1024.0])


@pytest.mark.parametrize("module", [verdicts, report])
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("predicted", "measured", "options", "status"),
    [
        (3.0, 3.0 * (1 + 0.9e-10), {}, "holds"),
        (3.0, 3.0 * (1 + 1.1e-10), {}, "fails"),
        (-3e20, -3e20 * (1 + 0.9e-10), {}, "holds"),
        (3.0, 3.0 + 2e-6, {"tolerance": 1e-6}, "holds"),
        (3.0, 3.0 + 4e-6, {"tolerance": 1e-6}, "fails"),
        (834, 834, {}, "holds"),
        (834, 835, {}, "fails"),
        (0.0, 0.0, {}, "holds"),
        (0.0, 1e-300, {}, "fails"),
        (0.0, [1e-11, -0.9e-10], {"scale": 1.0}, "holds"),
        (0.0, [1e-11, -1.1e-10], {"scale": 1.0}, "fails"),
        ([1.0, 1e-6], [1.0, 1e-6 + 0.9e-10], {}, "holds"),  # a vector: relative to its norm
        ([1.0, 1e-6], [1.0 + 2e-10, 1e-6], {}, "fails"),
        (2.0, [2.0, 2.0, 2.1], {}, "fails"),
        (math.inf, math.inf, {}, "fails"),
        (1.0, math.inf, {}, "fails"),
    ],
)
def test_identity_is_equality_up_to_rounding(predicted, measured, options, status):
    assert identity("x", predicted, measured, **options).status == status


def test_identity_shows_the_entry_that_is_off_most():
    verdict = identity("x", [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.5, 4.1]])
    assert (verdict.predicted, verdict.measured) == (3.0, 3.5)
    assert "relative error 1.2e-01, worst of 4" in verdict.basis


@pytest.mark.parametrize(
    ("digits", "value", "status"),
    [
        ("0.0060", 0.00595106, "holds"),
        ("0.0060", 0.0059499, "fails"),
        ("0.0060", 0.00605, "holds"),
        ("0.0060", 0.0060501, "fails"),
        ("-0.0108", -0.0106036, "fails"),
        ("-0.01060", -0.0106036, "holds"),
        ("-0.01060", 0.0106036, "fails"),
        ("834", 834.4, "holds"),
        ("834", 834.6, "fails"),
        (["0.4011", "0.6021"], [0.40106, 0.602121], "holds"),
        (["0.4011", "0.60"], [0.40106, 0.6051], "fails"),
    ],
)
def test_printed_digits_are_those_that_the_value_rounds_to(digits, value, status):
    assert printed("x", digits, value).status == status


@pytest.mark.parametrize(
    ("limit", "measured", "control_case", "options", "status"),
    [
        (4.0, [1.0, 3.9], (2.0, [1.0, 3.9]), {}, "holds"),
        (4.0, [1.0, 4.0], (2.0, [1.0, 3.9]), {}, "holds"),
        (4.0, [1.0, 4.0 + 1e-13], (2.0, [1.0, 3.9]), {}, "holds"),
        (4.0, [1.0, 4.1], (2.0, [1.0, 3.9]), {}, "fails"),
        (4.0, [1.0, 3.9], (5.0, [1.0, 3.9]), {}, "inconclusive"),
        (4.0, [1.0, 4.1], (5.0, [1.0, 3.9]), {}, "fails"),
        ([4.0, 1.0], [3.0, 0.5], ([2.0, 1.0], [3.0, 0.5]), {}, "holds"),
        ([4.0, 1.0], [0.5, 3.0], ([2.0, 1.0], [3.0, 0.5]), {}, "fails"),
        (0.97, [0.98, 0.975], (0.97, [0.1, 0.2]), {"at_least": True}, "holds"),
        (0.97, [0.98, 0.96], (0.97, [0.1, 0.2]), {"at_least": True}, "fails"),
        (0.97, [0.98, 0.98], (0.97, [0.99, 0.98]), {"at_least": True}, "inconclusive"),
        (-3.0, [-4.0, -3.5], (-3.7, [-4.0, -3.5]), {}, "holds"),
        (-3.0, [-4.0, -2.5], (-3.7, [-4.0, -3.5]), {}, "fails"),
        (0.0, [-1.0, 0.0], (-0.5, [-1.0, 0.0]), {}, "holds"),
        (math.inf, [1.0, 2.0], (1.0, [2.0]), {}, "inconclusive"),
        (1.0, [-math.inf, 0.5], (1.0, [2.0]), {}, "inconclusive"),
        (1.0, [math.inf, 0.5], (1.0, [2.0]), {}, "fails"),
    ],
)
def test_a_bound_needs_no_violation_and_a_control_that_is_violated(
    limit, measured, control_case, options, status
):
    assert bound("x", limit, measured, control=control_case, **options).status == status


def test_a_bound_reports_its_tightest_run():
    verdict = bound("x", [10.0, 2.0, 4.0], [5.0, 1.8, 1.0], control=(1.0, [5.0, 0.5]))
    assert (verdict.predicted, verdict.measured, verdict.interval) == (2.0, 1.8, (1.0, 5.0))
    assert "tightness 0.9" in verdict.basis
    assert "control violated in 1 of 2" in verdict.basis
    below = bound("x", -1.0, [-3.0, -1.5], control=(-2.0, [-1.5]))
    assert "slack 0.5" in below.basis


def test_true_means_hold_and_never_fail_and_wrong_ones_fail():
    rng = np.random.default_rng(3)
    draws = [2.0 + 0.5 * rng.standard_normal(400) for _ in range(200)]
    assert {statistical("x", 2.0, x).status for x in draws} == {"holds"}
    assert {statistical("x", 2.3, x).status for x in draws} == {"fails"}
    coins = rng.binomial(1, 0.3, (200, 4000))
    assert {statistical("x", 0.3, x).status for x in coins} == {"holds"}


def test_few_draws_fail_as_rarely_as_the_documentation_says():
    rng = np.random.default_rng(4)
    fails = [
        statistical("x", 2.0, 2.0 + rng.standard_normal(8)).status == "fails" for _ in range(4000)
    ]
    exact = 2 * stats.t.sf(4.0, df=7)
    assert exact < 1 / 190
    assert np.mean(fails) == pytest.approx(exact, abs=4 * math.sqrt(exact / 4000))
    assert 2 * stats.t.sf(4.0, df=29) < 1 / 2000


@pytest.mark.parametrize(
    ("predicted", "samples", "options", "status"),
    [
        (1.0, np.tile([0.0, 2.0], 20), {}, "inconclusive"),  # SE is 16 %
        (5.0, np.tile([0.0, 2.0], 20), {}, "fails"),  # 25 SE off: no matter that SE is large
        (1.0, np.tile([0.99, 1.01], 3), {}, "inconclusive"),  # six draws
        (1.0, [1.0], {}, "inconclusive"),
        (0.001, np.zeros(100), {}, "inconclusive"),  # none of 100 rare events
        (1.0, np.ones(100), {}, "inconclusive"),
        (0.0, np.tile([-0.1, 0.1], 50), {}, "inconclusive"),  # 3 % of nothing
        (0.0, np.tile([-0.1, 0.1], 50), {"scale": 1.0}, "holds"),
    ],
)
def test_statistics_that_cannot_decide_do_not(predicted, samples, options, status):
    assert statistical("x", predicted, samples, **options).status == status


def test_the_standard_error_is_that_of_the_mean():
    x = np.random.default_rng(0).gamma(2.0, size=50)
    verdict = statistical("x", 2.0, x)
    assert verdict.interval == pytest.approx(
        (x.mean() - 4 * stats.sem(x), x.mean() + 4 * stats.sem(x)), rel=1e-12
    )


def noisy_power(seed, runs, slope, spread, paired):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((runs, 1 if paired else len(WIDTHS)))
    return np.exp(spread * noise + 0.01 * rng.standard_normal((runs, len(WIDTHS)))) * WIDTHS**slope


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("slope", "status"), [(-0.5, "holds"), (-0.3, "fails"), (-1.0, "fails"), (0.5, "fails")]
)
def test_exponents_inside_the_band_hold_and_others_fail(slope, status, paired):
    for seed in range(5):
        y = noisy_power(seed, 32, slope, 0.05, paired)
        assert exponent("x", -0.5, WIDTHS, y, band=0.12).status == status


def test_exponents_at_the_edge_of_the_band_are_inconclusive():
    edge = [noisy_power(seed, 16, -0.62, 0.2, paired=False) for seed in range(150)]
    found = [exponent("x", -0.5, WIDTHS, y, band=0.12).status for y in edge]
    assert np.mean(np.array(found) == "inconclusive") >= 0.93  # the coverage at 16 runs
    y = noisy_power(0, 7, -0.5, 0.01, paired=False)
    assert exponent("x", -0.5, WIDTHS, y, band=0.12).status == "inconclusive"


def exponent_interval(y):
    interval = exponent("x", -0.5, WIDTHS, y, band=0.12).interval
    assert interval is not None
    return np.array(interval)


def test_seeds_shared_across_points_narrow_the_interval():
    apart, paired = (
        np.ptp(exponent_interval(noisy_power(0, 32, -0.5, 0.5, p))) for p in (False, True)
    )
    assert paired < 0.2 * apart


@pytest.mark.parametrize(("runs", "least"), [(8, 0.91), (16, 0.93), (64, 0.96)])
def test_bootstrap_intervals_cover_the_truth_about_as_often_as_documented(runs, least):
    low, high = np.transpose(
        [exponent_interval(noisy_power(seed, runs, -0.5, 0.3, False)) for seed in range(150)]
    )
    assert np.mean((low <= -0.5) & (high >= -0.5)) >= least


def test_the_slope_is_that_of_the_means_over_runs():
    y = noisy_power(1, 9, -0.7, 0.3, paired=False)
    slope = np.polyfit(np.log(WIDTHS), np.log(y.mean(0)), 1)[0]
    assert exponent("x", -0.7, WIDTHS, y, band=0.1).measured == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "status"),
    [
        (8, 0, 0, "holds"),
        (7, 1, 0, "inconclusive"),
        (7, 0, 1, "inconclusive"),
        (0, 8, 0, "fails"),
        (0, 7, 1, "inconclusive"),
        (7, 0, 0, "inconclusive"),
        (1, 0, 0, "inconclusive"),
        (15, 1, 0, "holds"),
        (12, 4, 0, "inconclusive"),
        (1, 15, 0, "fails"),
        (50, 50, 0, "inconclusive"),
    ],
)
def test_a_direction_is_a_sign_test(wins, losses, ties, status):
    larger = np.r_[np.full(wins, 2.0), np.full(losses, -2.0), np.zeros(ties)]
    verdict = direction("x", larger, np.zeros(len(larger)))
    assert verdict.status == status
    assert verdict.measured == wins
    p = stats.binomtest(wins, len(larger), 0.5, alternative="greater").pvalue
    assert f"p = {p:.2g}" in verdict.basis


# The corners of the square, the bias as third coordinate, and the margin y (w·x + b) ≥ 1.
CORNERS = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
XOR = -np.array([-1.0, 1.0, 1.0, -1.0])[:, None] * CORNERS
AND = -np.array([-1.0, -1.0, -1.0, 1.0])[:, None] * CORNERS


@pytest.mark.parametrize(
    ("a", "shown", "status"),
    [
        (XOR, {"certificate": np.ones(4)}, "holds"),
        (XOR, {"certificate": [1.0 + 1e-12, 1.0, 1.0, 1.0]}, "holds"),
        (XOR, {"certificate": [1.001, 1.0, 1.0, 1.0]}, "inconclusive"),
        (XOR, {"certificate": -np.ones(4)}, "inconclusive"),
        (XOR, {"certificate": np.zeros(4)}, "inconclusive"),
        (XOR, {"solution": [2.0, 2.0, -3.0]}, "inconclusive"),
        (XOR, {}, "inconclusive"),
        (AND, {"certificate": np.ones(4)}, "inconclusive"),
        (AND, {"solution": [2.0, 2.0, -3.0]}, "fails"),
        (AND, {"solution": [2.0, 2.0, -2.9]}, "inconclusive"),
    ],
)
def test_impossibility_takes_a_certificate_and_possibility_a_solution(a, shown, status):
    assert impossible("x", a, -np.ones(4), **shown).status == status


def test_multipliers_of_the_wrong_sign_certify_nothing():
    # x ≤ 1 minus x ≤ 0 would be 0 ≤ -1 with the signs (-1, 1); x = 0 satisfies both.
    verdict = impossible("x", [[1.0], [1.0]], [1.0, 0.0], certificate=[-1.0, 1.0])
    assert verdict.status == "inconclusive"


def test_a_rounded_certificate_excludes_only_what_it_can():
    # y = (1, 1 + d): -x ≤ -1 and x ≤ 0 add up to dx ≤ -1, which x = -1/d satisfies.
    verdict = impossible("x", [[-1.0], [1.0]], [-1.0, 0.0], certificate=[1.0, 1.25])
    assert verdict.measured == 4.0
    # In floats 10¹⁶ + 1 - 10¹⁶ is 0, and would pass for an exact certificate.
    verdict = impossible("x", [[1e16], [1.0], [-1e16]], [-1.0, 0.0, 0.0], certificate=[1, 1, 1])
    assert (verdict.measured, verdict.status) == (1.0, "inconclusive")


def test_a_control_turns_a_verdict_around():
    assert control(identity("x", 1.0, 2.0)).status == "holds"
    assert control(identity("x", 1.0, 1.0)).status == "fails"
    assert control(statistical("x", 1.0, [1.0])).status == "inconclusive"
    wrong = control(printed("x", "0.5", 0.7))
    assert (wrong.claim, wrong.predicted, wrong.measured) == ("Refuted: x", 0.5, 0.7)


NAN = math.nan
UNMEASURED = {
    "identity": identity("x", 1.0, NAN),
    "identity of an array": identity("x", [1.0, 2.0], [1.0, NAN]),
    "identity to NaN": identity("x", NAN, 1.0),
    "identity with scale": identity("x", 0.0, NAN, scale=1.0),
    "printed": printed("x", "0.5", NAN),
    "bound": bound("x", 1.0, [0.5, NAN], control=(1.0, [2.0])),
    "bound from below": bound("x", 0.0, [0.5, NAN], control=(1.0, [0.5]), at_least=True),
    "bound by NaN": bound("x", [1.0, NAN], [0.5, 0.5], control=(1.0, [2.0])),
    "control of a bound": bound("x", 1.0, [0.5], control=(1.0, [NAN, 2.0])),
    "statistical": statistical("x", 1.0, [*np.tile([0.99, 1.01], 100), NAN]),
    "statistical, infinite": statistical("x", 1.0, [*np.tile([0.99, 1.01], 100), math.inf]),
    "statistical, predicted": statistical("x", NAN, np.tile([0.99, 1.01], 100)),
    "exponent": exponent("x", -0.5, WIDTHS, [[1.0, 0.5, NAN]] * 9, band=0.1),
    "exponent, zero": exponent("x", -0.5, WIDTHS, [[1.0, 0.5, 0.0]] * 9, band=0.1),
    "direction": direction("x", [*[2.0] * 20, NAN], np.zeros(21)),
}


@pytest.mark.parametrize("name", UNMEASURED)
def test_a_nan_holds_neither_as_claim_nor_as_control(name):
    assert UNMEASURED[name].status == "fails"
    assert control(UNMEASURED[name]).status == "fails"


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda: identity("x", [1.0, 2.0], [[1.0], [2.0]]), r"got shapes \(2,\) and \(2, 1\)"),
        (lambda: identity("x", 1.0, []), "got no value, expected at least one"),
        (lambda: bound("x", [1.0], [1.0, 2.0], control=(1.0, 2.0)), r"got shapes \(1,\) and"),
        (lambda: bound("x", 1.0, [1.0], control=(1.0, [])), "got no value"),
        (lambda: statistical("x", 1.0, []), "got no value"),
        (lambda: direction("x", [1.0, 2.0], [1.0]), "got shapes"),
        (lambda: exponent("x", 1.0, [1.0, 2.0], np.ones((9, 2)), band=0.1), "at least three"),
        (lambda: exponent("x", 1.0, WIDTHS, np.ones((3, 9)), band=0.1), r"\(runs, points\)"),
        (lambda: exponent("x", 1.0, WIDTHS, np.ones(3), band=0.1), r"\(runs, points\)"),
    ],
)
def test_measurements_that_do_not_fit_raise(judge, message):
    with pytest.raises(ValueError, match=message):
        judge()

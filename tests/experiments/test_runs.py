"""Every experiment there is, at smoke scale: measured, judged, stored, drawn."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import datasets, pictures, records
from experiments.__main__ import _tour
from experiments.catalog import catalog
from experiments.harness import perform
from experiments.report import CHAPTERS, chapter

EXPERIMENTS = catalog()
TITLES = [title for _, _, title in CHAPTERS]
# These compile for half a minute; .ci/run runs every experiment at this scale besides.
LONG = (
    "batch_norm",
    "translation",
    "dropout_and_noise",
    "lottery_ticket",
    "random_labels",
    "train_digits",
    "optimizer_parity",
    "ntk_width",
    "boltzmann",
    "gan",
    "mnist_classifiers",
    "rnn_memory",
    "nngp_mnist",
    "edge_of_chaos",
    "wide_nets_are_linear",
    "lazy_vs_rich",
    "cntk_cifar",
    "signal_propagation",
    "autoencoder_landscape",
    "deep_linear_landscape",
    "edge_of_stability",
    "hessian_outliers",
    "index_vs_error",
    "kramers",
    "neuron_convexity",
    "ntk_gauss_newton_duality",
    "saddle_escape",
    "unit_duplication",
)
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in EXPERIMENTS]


@functools.cache
def smoke(name):
    # Promotion as on the command line, where optax is one of the oracles.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return perform(EXPERIMENTS[name], "smoke")


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_and_nothing_fails(name, tmp_path):
    record = smoke(name)
    assert record.error is None, record.error
    assert [v for v in record.verdicts if v.status == "fails"] == []
    stored = records.load(records.save(record, tmp_path))
    module = EXPERIMENTS[name].load()
    again = module.verdict(module.Config(**stored.config), stored.metrics)
    assert repr(tuple(again)) == repr(record.verdicts)  # NaN is not equal to itself
    png = pictures.draw(module, stored, tmp_path)
    with Image.open(png) as image:
        assert np.asarray(image.convert("L")).std() > 5  # something is on it


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_what_it_claims_and_where_from(name):
    experiment = EXPERIMENTS[name]
    assert experiment.claim.endswith(".")
    assert len(experiment.claim) < 100
    assert experiment.tags
    assert chapter(experiment) != "Other measurements"


def test_the_tour_is_a_dozen_in_order_and_needs_no_download():
    tour = _tour()
    assert 10 <= len(tour) <= 15
    places = [TITLES.index(chapter(experiment)) for experiment in tour]
    assert places == sorted(places)
    assert len(set(places)) >= 5
    for experiment in tour:
        assert getattr(experiment.config("tour"), "dataset", "digits") == "digits"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_critical_point_of_the_sphere_is_found_whatever_the_seed(seed, standard_promotion):
    module = EXPERIMENTS["saddle_escape"].load()
    with jax.enable_x64(True):
        config = module.Config(sphere_starts=100, steps=1)
        found = module.sphere(config, jax.random.key(seed))
    assert found["critical"].tolist() == [2 * config.sphere_dimension, 0]


def test_worked_numbers_can_fail():
    experiment = EXPERIMENTS["worked_numbers"]
    module, metrics = experiment.load(), smoke("worked_numbers").metrics
    for name, array in metrics.items():
        wrong = {**metrics, name: array * 1.05 + 0.001}
        assert "fails" in {v.status for v in module.verdict(module.Config(), wrong)}, name
    slower = perform(experiment, "custom", module.Config(learning_rate=0.05))
    failing = {v.claim for v in slower.verdicts if v.status == "fails"}
    assert failing == {"updated w1 = 0.4011", "updated w2 = 0.6021", "updated b = 0.5011"}


def test_linear_collapse_can_fail():
    module = EXPERIMENTS["linear_collapse"].load()
    linear, relu = (smoke("linear_collapse").metrics[name] for name in ("linear", "relu"))
    assert linear.max() < 1e-14
    assert relu.min() > 0.1
    one_off, one_linear = linear.copy(), relu.copy()
    one_off.flat[-1], one_linear.flat[0] = 1e-9, 1e-15
    for metrics in ({"linear": relu, "relu": linear}, {"linear": one_off, "relu": one_linear}):
        statuses = [v.status for v in module.verdict(module.SMOKE, metrics)]
        assert statuses == ["fails", "fails"]


def test_the_digits_are_split_once_and_for_all():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    found = datasets.digits()
    assert found.x_train.shape == (1437, 64)
    assert found.x_test.shape == (360, 64)
    assert (found.x_train.min(), found.x_train.max()) == (0.0, 1.0)
    rows = np.r_[np.c_[found.x_train, found.y_train], np.c_[found.x_test, found.y_test]]
    whole = np.c_[x / 16, y]
    assert np.array_equal(rows[np.lexsort(rows.T)], whole[np.lexsort(whole.T)])
    assert np.bincount(found.y_test).min() >= 25
    assert np.array_equal(found.x_test, datasets.digits().x_test)

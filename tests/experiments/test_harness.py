import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from experiments import catalog
from experiments.harness import perform, progress_to, report_progress


def test_experiments_are_found_by_their_names(make, tmp_path):
    make("beta", claim="Two are two.", tags="S2.5")
    make("alpha")
    folder = tmp_path / "made"
    (folder / "tool.py").write_text("def run(): ...\ndef verdict(): ...\ndef plot(): ...\n")
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "speed.py").write_text((folder / "alpha.py").read_text())
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text((folder / "alpha.py").read_text())
    (folder / "notes.txt").write_text("no Python")
    found = catalog.catalog()
    assert list(found) == ["alpha", "beta"]
    assert found["alpha"] == catalog.Experiment(
        "alpha", "One is one.", "Somebody (1999), theorem 1. And why.", ("S0.57", "S1.2")
    )
    assert found["beta"].tags == ("S2.5",)
    assert "experiments.alpha" not in sys.modules


def test_the_claim_is_the_first_line_without_its_source():
    described = catalog._described
    one_line = described("x", "A ~ width^-1/2.  Jacot (2018), Theorem 1.  [S0.57]")
    assert one_line.claim == "A ~ width^-1/2."
    assert one_line.source == "Jacot (2018), Theorem 1."
    assert one_line.tags == ("S0.57",)
    assert described("x", "") == catalog.Experiment("x", "", "", ())
    assert described("x", "Only a claim.").claim == "Only a claim."


def test_the_real_folder_has_the_experiments_and_nothing_else():
    found = catalog.catalog()
    assert {"worked_numbers", "linear_collapse"} <= found.keys()
    assert not {"harness", "report", "verdicts", "training", "__main__"} & found.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alhpa", "unknown experiment 'alhpa'; did you mean alpha?"),
        ("Beta", "unknown experiment 'Beta'; did you mean beta?"),
        ("zzz", "unknown experiment 'zzz'; known: alpha, beta"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(make, name, message):
    make("alpha")
    make("beta")
    with pytest.raises(catalog.UnknownName) as error:
        catalog.select(["beta", name])
    assert str(error.value) == message


def test_names_are_selected_once_and_in_order(make):
    make("alpha")
    make("beta")
    assert [e.name for e in catalog.select(["beta", "alpha", "beta"])] == ["beta", "alpha"]


def test_every_scale_has_its_config(make):
    experiment = make("alpha")
    sizes = {scale: experiment.config(scale).n for scale in catalog.SCALES}
    assert sizes == {"smoke": 1, "quick": 3, "paper": 100}
    with pytest.raises(catalog.UnknownName, match="unknown scale 'papr'; did you mean paper"):
        experiment.config("papr")


def test_a_run_is_recorded(make):
    record = perform(make("alpha"), "quick")
    assert (record.name, record.scale, record.error, record.status) == (
        "alpha",
        "quick",
        None,
        "holds",
    )
    assert record.config == {"n": 3, "sizes": (1, 2)}
    assert isinstance(record.metrics["one"], np.ndarray)
    assert (record.metrics["one"].dtype, record.dtype) == (np.float32, "float32")
    assert record.verdicts[0].claim == "one"
    assert record.device == jax.devices()[0].device_kind
    assert record.seconds >= record.compile_seconds >= 0
    assert record.versions["jax"] == jax.__version__


def test_a_config_replaces_the_scales(make):
    experiment = make("alpha")
    config = experiment.load().Config(n=7)
    record = perform(experiment, "custom", config)
    assert (record.scale, record.config["n"], record.metrics["one"].size) == ("custom", 7, 7)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_module_chooses_the_precision_and_the_process_keeps_its_own(make, precision, outside):
    experiment = make(
        "alpha",
        constants=f'PRECISION = "{precision}"' if precision == "float64" else "",
        run="""
            products = jax.config.jax_default_matmul_precision == "highest"
            return {"one": jnp.ones(2), "draw": jax.random.normal(key), "full": products}
        """,
    )
    with jax.enable_x64(outside):
        record = perform(experiment, "quick")
        assert jnp.zeros(()).dtype == ("float64" if outside else "float32")
    assert record.error is None
    assert record.dtype == precision
    assert {record.metrics[name].dtype.name for name in ("one", "draw")} == {precision}
    assert record.metrics["full"]
    setting = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    assert setting != "highest"


def test_runs_are_reproducible(make):
    experiment = make(
        "alpha",
        run='return {"one": 1 + 0 * jax.random.normal(key, (3,)), "key": '
        "jax.random.normal(key, (3,))}",
    )
    first, second = (perform(experiment, "quick").metrics["key"] for _ in range(2))
    assert np.array_equal(first, second)
    assert len(set(first.tolist())) == 3


def test_compilation_is_timed_apart(make):
    experiment = make(
        "alpha",
        run="""
            import time
            value = jax.jit(lambda x: jnp.linalg.inv(x * 1.7 + jnp.eye(5)))(jnp.zeros((5, 5)))
            time.sleep(0.2)
            return {"one": value[0, 0]}
        """,
    )
    record = perform(experiment, "quick")
    assert record.error is None
    assert 0 < record.compile_seconds <= record.seconds - 0.2
    assert perform(experiment, "quick").compile_seconds < record.seconds


@pytest.mark.parametrize(
    ("parts", "message", "measured"),
    [
        ({"run": 'raise RuntimeError("broken")'}, "RuntimeError: broken", False),
        ({"verdict": 'return [identity("x", 1.0, metrics["two"])]'}, "KeyError: 'two'", True),
        ({"verdict": "return []"}, r"got [], expected a list of at least one Verdict", True),
        ({"verdict": "return [True]"}, "got [True], expected a list", True),
        ({"verdict": "return None"}, "got None, expected a list", True),
        ({"run": "return 3.0"}, "got float, expected a dict of names to arrays", False),
        ({"run": 'return {"one": "text"}'}, "metrics['one']: got dtype <U4", False),
        ({"constants": 'PRECISION = "double"'}, "PRECISION: got 'double'", False),
        ({"constants": 'raise ImportError("no such thing")'}, "ImportError: no such thing", False),
        ({"plot": "pass\n\ndel PAPER"}, "defines no PAPER = Config(...)", False),
        ({"plot": "pass\n\nSMOKE = 3"}, "defines no SMOKE = Config(...)", False),
    ],
)
def test_what_an_experiment_raises_is_recorded(make, parts, message, measured):
    experiment = make("alpha", **{k: v for k, v in parts.items() if k != "plot"})
    if "plot" in parts:  # at the end of the module, not of the function
        path = f"{experiments.__path__[0]}/alpha.py"
        with open(path, "a") as file:
            file.write(parts["plot"].partition("\n\n")[2] + "\n")
    record = perform(experiment, "quick")
    assert record.status == "error"
    assert message in record.error
    assert str(record.error).startswith("Traceback")
    assert record.verdicts == ()
    assert bool(record.metrics) == measured


def test_progress_is_heard_where_somebody_listens():
    report_progress(1, 2)
    heard, other = [], []
    with progress_to(lambda *step: heard.append(step)):
        report_progress(1, 4)
        with progress_to(lambda *step: other.append(step)):
            report_progress(2, 4)
        report_progress(3, 4)
    report_progress(4, 4)
    assert (heard, other) == ([(1, 4), (3, 4)], [(2, 4)])


def test_an_experiment_reports_progress(make):
    experiment = make("alpha", run='report_progress(1, 3)\nreturn {"one": jnp.ones(2)}')
    heard = []
    with progress_to(lambda *step: heard.append(step)):
        assert perform(experiment, "quick").error is None
    assert heard == [(1, 3)]


@pytest.mark.parametrize(
    "run",
    [
        "import signal; signal.raise_signal(signal.SIGINT)\nreturn {'one': jnp.ones(2)}",
        # As training.fit: what it reached is returned, and must not pass for the whole.
        """
        import signal
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        return {"one": jnp.ones(2)}
        """,
        "raise KeyboardInterrupt",
    ],
)
def test_ctrl_c_ends_a_run_also_where_something_inside_catches_it(make, run, default_sigint):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        perform(make("alpha", run=run), "quick")
    assert signal.getsignal(signal.SIGINT) is before


def test_runs_work_in_other_threads(make):
    experiment, records = make("alpha"), []
    thread = threading.Thread(target=lambda: records.append(perform(experiment, "quick")))
    thread.start()
    thread.join()
    assert records[0].error is None

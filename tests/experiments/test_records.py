import json
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import records
from experiments.catalog import UnusableRecord
from experiments.records import Record, as_arrays, load, save
from experiments.verdicts import Verdict

NAN, INF = math.nan, math.inf
ARRAYS = {
    "float64": np.array([0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, NAN, INF, -INF]),
    "float32": np.array([[0.1, 1 / 3, 1e-45], [-0.0, NAN, -INF]], np.float32),
    "float16": np.array([0.1, 65504, INF], np.float16),
    "bfloat16": np.asarray(jnp.array([0.1, NAN, INF, 3e38], jnp.bfloat16)),
    "complex64": np.array([[1 / 3 - 0.0j, complex(NAN, -INF)]], np.complex64),
    "complex128": np.array(1 / 3 + 0.1j),
    "int64": np.array([2**63 - 1, -(2**63)]),
    "uint64": np.array([2**64 - 1], np.uint64),
    "int8": np.array([-128, 127], np.int8),
    "bool": np.array([True, False]),
    "scalar": np.array(0.1),
    "scalar NaN": np.array(NAN, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "empty at the end": np.zeros((3, 0), np.int32),
    "order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "random": np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32),
}


def record(**changes):
    content = {
        "name": "alpha",
        "scale": "quick",
        "config": {"n": 3},
        "metrics": {"one": np.ones(3)},
        "verdicts": (Verdict("one", 1.0, 1.0, None, "holds", "equal"),),
        "error": None,
        "dtype": "float32",
        "device": "cpu",
        "seconds": 1.5,
        "compile_seconds": 0.5,
        "peak_memory": 2**20,
    }
    return Record(**{**content, **changes})


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit(tmp_path, name):
    before = ARRAYS[name]
    after = load(save(record(metrics={"a": before}), tmp_path)).metrics["a"]
    assert after.dtype == before.dtype
    assert after.shape == before.shape
    assert after.tobytes() == before.tobytes()


def test_everything_else_comes_back_too(tmp_path):
    before = record(
        config={"widths": (1, 2), "nested": ((0.1, INF), ()), "name": "a", "none": None, "x": NAN},
        verdicts=(
            Verdict('≤ "quoted" <b>', 0.1, NAN, (-INF, INF), "fails", "because\nof that"),
            Verdict("b", INF, 1 / 3, None, "inconclusive"),
        ),
        error="Traceback\n  ValueError: ü",
        peak_memory=None,
    )
    after = load(save(before, tmp_path))
    # NaN is not equal to itself; its repr is.
    assert repr(replace(after, metrics={})) == repr(replace(before, metrics={}))


def test_the_file_is_json_in_the_strict_sense(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    path = save(record(metrics=ARRAYS, config={"x": NAN, "y": (INF, -INF)}), tmp_path)
    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["metrics"]["int8"] == {
        "array": {"dtype": "int8", "shape": [2], "data": [-128, 127]}
    }
    expected = {"name", "scale", "config", "metrics", "verdicts", "error", "commit", "dirty"}
    expected |= {"versions", "device", "dtype", "seconds", "compile_seconds", "peak_memory", "date"}
    expected |= {"seed", "skipped"}
    assert content.keys() == expected
    assert content["versions"].keys() == {"python", "jax", "jaxlib", "numpy", "jaxnn", "optax"}


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = save(record(seconds=1.0), tmp_path)
    monkeypatch.setattr(records.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(record(seconds=2.0), tmp_path)
    assert load(path).seconds == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_record_takes_the_old_picture_away(tmp_path):
    (tmp_path / "alpha.png").write_bytes(b"of the last run")
    (tmp_path / "beta.png").write_bytes(b"of another experiment")
    save(record(), tmp_path)
    assert not (tmp_path / "alpha.png").exists()
    assert (tmp_path / "beta.png").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"name": 1}', '{"verdicts": 3}', "3"])
def test_a_file_that_is_no_record_is_named(tmp_path, content):
    path = tmp_path / "alpha.json"
    path.write_text(content)
    with pytest.raises(UnusableRecord, match=r"alpha\.json: .*; run the experiment again"):
        load(path)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([1.0], r"metrics: got list, expected a dict"),
        ({1: 2.0}, r"metrics: got dict, expected a dict of names"),
        ({"a": "text"}, r"metrics\['a'\]: got dtype <U4"),
        ({"a": None}, r"metrics\['a'\]: got dtype object"),
        ({"a": {"b": 1.0}}, r"metrics\['a'\]: got dtype object"),
    ],
)
def test_metrics_have_to_be_named_arrays_of_numbers(metrics, message):
    with pytest.raises(ValueError, match=message):
        as_arrays(metrics)


@pytest.mark.parametrize(
    ("statuses", "error", "status"),
    [
        (["holds", "holds"], None, "holds"),
        (["holds", "inconclusive"], None, "inconclusive"),
        (["fails", "inconclusive", "holds"], None, "fails"),
        (["holds"], "Traceback", "error"),
        ([], "Traceback", "error"),
    ],
)
def test_a_run_is_as_good_as_its_worst_verdict(statuses, error, status):
    verdicts = tuple(Verdict("x", 0.0, 0.0, None, s) for s in statuses)
    assert record(verdicts=verdicts, error=error).status == status


def test_the_source_is_named_by_its_commit(tmp_path, monkeypatch):
    commit, dirty = records.source_state.__wrapped__()
    assert commit is None or (len(commit) == 40 and isinstance(dirty, bool))
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    assert records.source_state.__wrapped__() == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert records.source_state.__wrapped__() == (None, None)


def test_peak_memory_is_that_of_the_process():
    block = np.ones(2**25)  # 256 MiB
    assert 2**28 <= (records.peak_memory() or 0) < 2**40
    assert block.sum() == 2**25

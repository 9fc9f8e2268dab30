"""Checkpoints: what is saved comes back bit by bit, and what is not a checkpoint is refused."""

import os
import re
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from least_squares import DATA, KEY, PARAMS, assert_same, fit

from jaxnn import optimizers, training


def everything(seed=0):
    """Leaves of every kind, with values that rounding or reinterpretation would change."""
    rng = np.random.default_rng(seed)
    half = jnp.asarray(rng.normal(size=7), jnp.bfloat16)
    return {
        "params": [{"W": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}, (half, half[0])],
        "a/b'c": jnp.asarray(rng.normal(size=2), jnp.float16),
        "state": training.State(
            optimizers.AdamState(jnp.int32(7), half, jnp.array([np.nan, -0.0, np.inf])),
            jax.random.key(seed + 5),
            jnp.int32(-3),
        ),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "mask": jnp.array([True, False]),
        "empty": (jnp.zeros((0, 3)), None, ()),
        "history": rng.normal(size=3),
        "count": 12,
        "loss": 0.1 + seed,
    }


def bits(leaf):
    if jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    array = np.asarray(leaf)
    return type(leaf) if np.isscalar(leaf) else array.dtype, array.shape, array.tobytes()


def test_every_kind_of_leaf_survives(tmp_path):
    tree, path = everything(), tmp_path / "run.npz"
    training.save(path, tree)
    found = training.load(path, everything(seed=1))
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for saved, loaded in zip(jax.tree.leaves(tree), jax.tree.leaves(found), strict=True):
        assert bits(loaded) == bits(saved)
        assert isinstance(loaded, type(saved))
    assert os.listdir(tmp_path) == ["run.npz"]
    drawn = [jax.random.normal(t["state"].key, (3,)) for t in (tree, found)]
    np.testing.assert_array_equal(*drawn)


def test_shapes_are_enough_to_load(tmp_path):
    tree, path = {"w": jnp.arange(3.0), "key": jax.random.key(3)}, tmp_path / "a.npz"
    training.save(path, tree)
    assert_same(training.load(path, jax.eval_shape(lambda: tree)), tree)


@pytest.mark.usefixtures("float64")
def test_double_precision_is_kept_or_refused(tmp_path):
    tree = {"w": jnp.array([0.1])}
    training.save(tmp_path / "a.npz", tree)
    assert training.load(tmp_path / "a.npz", tree)["w"].dtype == np.float64
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"\['w'\]: got dtype float64"):
        training.load(tmp_path / "a.npz", {"w": jnp.array([0.1])})


@pytest.mark.parametrize("value", [2**40 + 5, 0.1])
def test_numbers_of_64_bits_are_never_cut(tmp_path, value):
    wide = np.array([value])
    training.save(tmp_path / "a.npz", {"w": wide})
    with pytest.raises(
        ValueError, match=r"a\.npz: \['w'\]: got dtype \w*64, expected numbers of 32"
    ):
        training.load(tmp_path / "a.npz", {"w": jax.ShapeDtypeStruct((1,), wide.dtype)})
    np.testing.assert_array_equal(training.load(tmp_path / "a.npz", {"w": wide})["w"], wide)


def test_any_flipped_bit_is_harmless_or_refused_by_name(tmp_path):
    path, tree = tmp_path / "a.npz", {"w": jnp.arange(2.0)}
    training.save(path, tree)
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        outcome = ""
        try:
            assert_same(training.load(path, tree), tree)
        except ValueError as error:
            outcome = str(error)
        assert not outcome or str(path) in outcome


def test_two_writers_leave_the_checkpoint_of_one(tmp_path):
    path, trees = tmp_path / "a.npz", [{"w": np.full(2000, float(i))} for i in range(2)]

    def write(tree):
        for _ in range(20):
            training.save(path, tree)

    threads = [threading.Thread(target=write, args=(tree,)) for tree in trees]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert len(np.unique(training.load(path, trees[0])["w"])) == 1
    assert os.listdir(tmp_path) == ["a.npz"]


def test_numpy_alone_can_read_it_by_path_and_without_pickle(tmp_path):
    training.save(tmp_path / "a.npz", everything())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["['params'][0]['W']"], everything()["params"][0]["W"])
        assert file["['state'].step"] == -3
        assert all(file[name].dtype.kind in "biuf" for name in file.files)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    training.save(path, {"w": jnp.zeros(2)})

    def broken(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="the disk is full"):
            training.save(path, {"w": jnp.ones(2)})
    np.testing.assert_array_equal(training.load(path, {"w": jnp.zeros(2)})["w"], 0)
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (calls.append(n), f(*a))[1])
    training.save(tmp_path / "a.npz", {"w": jnp.zeros(2)})
    assert calls == ["fsync", "replace", "fsync"]


SMALL = {"w": jnp.arange(300.0), "key": jax.random.key(0)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-30],
        lambda content: content[:200] + b"\xff" + content[201:],
        lambda content: b"hello",
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "a.npz"
    training.save(path, SMALL)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: got a file that is cut off"):
        training.load(path, SMALL)


def test_files_of_others_are_refused_by_name(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, w=np.zeros(2))
    with pytest.raises(ValueError, match=r"a\.npz: got a file that is cut off, damaged or none"):
        training.load(path, SMALL)
    np.savez(path, allow_pickle=True, w=np.array([{}]))
    with pytest.raises(ValueError, match=r"a\.npz: .*allow_pickle=False"):
        training.load(path, SMALL)
    header = np.frombuffer(b'{"format": 99, "leaves": {}}', np.uint8)
    np.savez(path, jaxnn=header)
    with pytest.raises(ValueError, match=r"a\.npz: got a file of format 99"):
        training.load(path, SMALL)
    with pytest.raises(FileNotFoundError):
        training.load(tmp_path / "none.npz", SMALL)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": SMALL["w"]}, r"got no \['key'\] in the like"),
        (SMALL | {"v": 1}, r"got no \['v'\] in the file"),
        (SMALL | {"w": jnp.zeros(299)}, r"\['w'\]: got shape \(300,\), expected shape \(299,\)"),
        (SMALL | {"w": jnp.zeros(300, jnp.bfloat16)}, r"\['w'\]: got dtype float32, .* bfloat16"),
        (SMALL | {"key": jax.random.key(0, impl="rbg")}, r"got dtype key<fry>, expected .*key<rbg"),
        (SMALL | {"key": jnp.zeros(2, jnp.uint32)}, r"\['key'\]: got dtype key<fry>, .*uint32"),
        (SMALL | {"w": 1.0}, r"\['w'\]: got float32 \(300,\), expected float"),
    ],
)
def test_checkpoints_of_other_runs_are_refused_by_leaf(tmp_path, like, message):
    training.save(tmp_path / "a.npz", SMALL)
    with pytest.raises(ValueError, match=r"a\.npz: .*" + message.removeprefix("got")):
        training.load(tmp_path / "a.npz", like)


@pytest.mark.parametrize("leaf", ["text", object(), np.array(["text"])])
def test_what_is_no_array_is_not_saved(tmp_path, leaf):
    with pytest.raises(ValueError, match=r"save\(tree\): \['b'\]: got a leaf of type"):
        training.save(tmp_path / "a.npz", {"a": 1.0, "b": leaf})
    assert not os.listdir(tmp_path)


def test_a_run_goes_on_from_a_file_as_if_it_had_not_stopped(tmp_path):
    path, options = tmp_path / "run.npz", {"batch_size": 5, "chunk": 4}
    whole = fit(steps=24, key=KEY, **options)
    fit(steps=12, key=KEY, callback=lambda p: training.save(path, (p.params, p.state)), **options)
    start = training.initial_state(PARAMS, optimizers.adam(0.1), jax.random.key(0))
    params, state = training.load(path, (PARAMS, start))
    assert int(state.step) == 12
    rest = fit(params, DATA, steps=12, state=state, **options)
    assert_same((rest.params, rest.state), (whole.params, whole.state))


PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from jaxnn import data, losses, nn, optimizers, training

path, steps = Path(sys.argv[1]), 60
net = nn.serial(nn.dense(16), nn.tanh(), nn.dropout(0.2), nn.dense(1))
params, _ = net.init(jax.random.key(0), (3,))
params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
x = jax.random.normal(jax.random.key(1), (50, 3), jnp.bfloat16)
y = jnp.sum(x**2, axis=1, keepdims=True)
optimizer = optimizers.noisy(optimizers.adam(0.01), jax.random.key(2), 0.01)
state = training.initial_state(params, optimizer, jax.random.key(3))
if path.exists():
    params, state = training.load(path, (params, state))
    print("resumed", int(state.step), flush=True)

def callback(progress):
    training.save(path, (progress.params, progress.state))
    print("saved", int(progress.state.step), flush=True)

training.fit(net.apply, params, losses.half_squared_error, (x, y), optimizer,
             steps=steps - int(state.step), batch_size=8, chunk=3, stochastic=True,
             state=state, callback=callback)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_bit_for_bit_as_one_that_is_not(tmp_path):
    def start(name):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("whole.npz") as process:
        assert process.communicate(timeout=240)[0].endswith("saved 60\n")
    with start("killed.npz") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "saved 15\n":
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL
    with start("killed.npz") as process:
        told = process.communicate(timeout=240)[0].splitlines()
    resumed = int(told[0].removeprefix("resumed "))
    assert 15 <= resumed < 60
    assert told[-1] == "saved 60"
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "killed.npz") as killed:
        assert whole.files == killed.files
        for name in whole.files:
            assert whole[name].tobytes() == killed[name].tobytes(), name

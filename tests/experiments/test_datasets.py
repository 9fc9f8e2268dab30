"""Data sets: what scikit-learn and the files hold, and nothing that is not theirs."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from experiments import datasets

SMALL = {
    "digits": (sklearn.datasets.load_digits, 1437, 1 / 16),
    "iris": (sklearn.datasets.load_iris, 120, 1),
    "wine": (sklearn.datasets.load_wine, 142, 1),
    "breast_cancer": (sklearn.datasets.load_breast_cancer, 455, 1),
    "diabetes": (lambda **o: sklearn.datasets.load_diabetes(scaled=False, **o), 353, 1),
}

LABELS = datasets._local("mnist", "t10k-labels-idx1-ubyte.gz")
needs_mnist = pytest.mark.skipif(
    not datasets.at_hand(datasets.mnist), reason="needs mnist in JAXNN_DATA"
)
needs_cifar10 = pytest.mark.skipif(
    not datasets.at_hand(datasets.cifar10), reason="needs cifar10 in JAXNN_DATA"
)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """An empty JAXNN_DATA and an empty cache."""
    monkeypatch.setenv("JAXNN_DATA", str(tmp_path / "given"))
    monkeypatch.setattr(datasets, "_cache", lambda: tmp_path / "cache")
    return tmp_path


@pytest.mark.parametrize("name", SMALL)
def test_a_small_set_is_all_of_scikit_learns_examples_once(name):
    load, num_train, unit = SMALL[name]
    x, y = load(return_X_y=True)
    found, again = getattr(datasets, name)(), getattr(datasets, name)()
    assert len(found.x_train) == len(found.y_train) == num_train
    joined = np.column_stack(
        [
            np.concatenate([found.x_train, found.x_test]),
            np.concatenate([found.y_train, found.y_test]),
        ]
    )
    expected = np.column_stack([x * unit, y])
    assert not np.array_equal(joined, expected)  # shuffled
    np.testing.assert_array_equal(joined[np.lexsort(joined.T)], expected[np.lexsort(expected.T)])
    for part, same in zip(found, again, strict=True):
        np.testing.assert_array_equal(part, same)
    assert found.y_train.dtype.kind == ("f" if name == "diabetes" else "i")
    if name != "diabetes":
        assert set(found.y_test) == set(y)


@needs_mnist
@pytest.mark.slow
def test_mnist_is_whole():
    found = datasets.mnist()
    assert found.x_train.shape == (60_000, 28, 28, 1)
    assert found.x_test.shape == (10_000, 28, 28, 1)
    assert found.x_train.dtype == np.float32
    assert (found.x_train.min(), found.x_train.max()) == (0.0, 1.0)
    assert list(found.y_train[:5]) == [5, 0, 4, 1, 9]
    # A zero has ink around the middle, a one in it.
    mean = lambda digit: found.x_test[found.y_test == digit].mean(axis=0)[13:15, 13:15].mean()
    assert mean(1) > 5 * mean(0)


@needs_cifar10
def test_the_first_images_of_cifar10():
    found = datasets.cifar10(50, 20)
    assert found.x_train.shape == (50, 32, 32, 3)
    assert found.x_test.shape == (20, 32, 32, 3)
    assert list(found.y_train[:6]) == [6, 9, 9, 4, 1, 1]
    np.testing.assert_array_equal(found.x_train, datasets.cifar10(60, 1).x_train[:50])
    # Neighboring pixels are alike along rows and columns, unlike channels out of place.
    x = found.x_train
    for axis in (1, 2):
        assert np.abs(np.diff(x, axis=axis)).mean() < 0.5 * x.std()


def test_the_records_of_cifar10_are_images(nowhere):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 12, dtype=np.uint8)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for i, name in enumerate(names):
            records = b""
            for j in (2 * i, 2 * i + 1):
                planes = b"".join(images[j, :, :, c].tobytes() for c in range(3))
                records += bytes([labels[j]]) + planes
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(records)
            tar.addfile(info, io.BytesIO(records))
    x, y, x_test, y_test = datasets._cifar10_records(packed.getvalue())
    np.testing.assert_array_equal(np.concatenate([x, x_test]), images)
    np.testing.assert_array_equal(np.concatenate([y, y_test]), labels)
    path = nowhere / "given" / "cifar10" / "cifar-10-binary.tar.gz"
    write(path, packed.getvalue())
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz: got content of SHA-256"):
        datasets.cifar10()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


def test_idx_files_hold_arrays_of_any_rank():
    for shape in ((300,), (3, 5), (2, 4, 3)):
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_array_equal(datasets._idx(idx(array)), array)


FAKE = gzip.compress(idx(np.zeros((3, 28, 28), np.uint8)), mtime=0)  # the same in every process


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (FAKE, "got content of SHA-256"),
        (FAKE[:-9], "got a file that cannot be unpacked"),
        (FAKE[:30] + b"?" + FAKE[31:], "got"),
        (b"<html>404</html>", "got a file that cannot be unpacked"),
    ],
)
def test_a_corrupt_file_of_mnist_is_refused_by_name(nowhere, content, got):
    write(nowhere / "given" / "mnist" / "train-images-idx3-ubyte.gz", content)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte\.gz: {got}.*delete it"):
        datasets.mnist()


@pytest.mark.parametrize("keep", [0.4, 1.0])
def test_a_corrupt_part_of_cifar10_is_refused_by_name(nowhere, keep):
    arrays = {
        "x_train": np.zeros((5000, 2, 2, 3), np.uint8),
        "y_train": np.zeros(5000, np.uint8),
        "x_test": np.zeros((1000, 2, 2, 3), np.uint8),
        "y_test": np.zeros(1000, np.uint8),
    }
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    content = packed.getvalue()
    write(nowhere / "given/cifar10/cifar10_5k.npz", content[: round(keep * len(content))])
    with pytest.raises(ValueError, match=r"cifar10_5k\.npz: got .*delete it"):
        datasets.cifar10(10, 10)


@needs_mnist
def test_a_file_compressed_anew_is_the_same_data(tmp_path):
    assert LABELS is not None
    content = gzip.decompress(LABELS.read_bytes())
    again = tmp_path / LABELS.name
    again.write_bytes(gzip.compress(content, compresslevel=1))
    assert again.read_bytes() != LABELS.read_bytes()
    _, sha256 = datasets.MNIST_SHA256[LABELS.name]
    assert datasets._unpacked(again, sha256) == content


def test_what_is_missing_is_downloaded_by_its_checksum_and_found_again(nowhere, monkeypatch):
    import pooch

    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append((url, known_hash))
        write(Path(path) / fname, b"data")
        return str(Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    for _ in range(2):
        path = datasets._fetched("mnist", "a.gz", "https://example.org/a.gz", "123")
        assert path == nowhere / "cache" / "mnist" / "a.gz"
    assert asked == [("https://example.org/a.gz", "sha256:123")]
    monkeypatch.delenv("JAXNN_DATA")
    assert datasets._local("mnist", "a.gz") == path


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("another SHA-256")])
def test_data_that_cannot_be_had_say_what_to_do(nowhere, monkeypatch, error):
    import pooch

    def retrieve(*_, **__):
        raise error

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    files = (datasets.mnist, "MNIST", "its four"), (datasets.cifar10, "CIFAR-10", "cifar-10-b")
    for load, title, name in files:
        assert not datasets.at_hand(load)
        told = f"^{title} is not there and http.*; put {name}.*/{load.__name__}.* set JAXNN_DATA"
        with pytest.raises(datasets.DataMissing, match=told) as missing:
            load()
        assert len(str(missing.value).splitlines()) == 1
    assert not os.listdir(nowhere)


@pytest.mark.parametrize("numbers", [(0, 10), (50_001, 10), (10, 0), (10, 10_001)])
def test_cifar10_has_no_more_images_than_it_has(numbers):
    with pytest.raises(ValueError, match=r"cifar10\(num_train, num_test\): got"):
        datasets.cifar10(*numbers)

"""Real data, split once and for all: every experiment sees the same test set.

The small sets come with scikit-learn. MNIST and CIFAR-10 are looked for in the folder that the
environment variable JAXNN_DATA names, as `mnist/*.gz` and `cifar10/*`, then in pooch's cache, and
are downloaded where they are in neither. Whatever is read was first held to its SHA-256.
"""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnn.errors import invalid

# Imported where they are used: scikit-learn and pooch are slow to import, and most experiments
# need neither.


class Dataset(NamedTuple):
    """Inputs, (N, d) or images (N, height, width, channels), and targets (N,).

    digits  x in [0, 1], float64; y integer classes
    iris, wine, breast_cancer  x in its own units, float64; y integer classes
    diabetes  x in its own units, float64; y real, float64
    mnist, cifar10  x in [0, 1], float32; y integer classes

    Whatever is chosen by looking at data (a validation set, a scaling, a stopping time) is cut
    from the training part; the test part is for the number that is reported.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


DOWNLOADS = {
    "mnist": ("MNIST", "its four *-ubyte.gz"),
    "cifar10": ("CIFAR-10", "cifar-10-binary.tar.gz"),
}
"""The names and files, by folder, of what may have to be downloaded: 12 MB and 170 MB."""


class DataMissing(RuntimeError):
    """A data set that is not on this machine and could not be downloaded."""


def digits() -> Dataset:
    """1797 handwritten digits of 8 × 8 pixels: 1437 to train on, 360 to test on.

    The order is shuffled by a fixed seed, as neighbors in the file are by the same writer.
    Source: Alpaydin & Kaynak (1998), UCI Machine Learning Repository; from scikit-learn's wheel.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _shuffled(x / 16.0, y, num_test=360)


def iris() -> Dataset:
    """Four lengths of 150 irises of three species, in cm: 120 to train on, 30 to test on.

    Source: Fisher (1936); from scikit-learn's wheel.
    """
    from sklearn.datasets import load_iris

    return _shuffled(*load_iris(return_X_y=True), num_test=30)


def wine() -> Dataset:
    """13 chemical analyses of 178 wines by three growers: 142 to train on, 36 to test on.

    Source: Forina et al. (1991), UCI Machine Learning Repository; from scikit-learn's wheel.
    """
    from sklearn.datasets import load_wine

    return _shuffled(*load_wine(return_X_y=True), num_test=36)


def breast_cancer() -> Dataset:
    """30 shapes of cell nuclei in 569 tumors, malignant 0, benign 1: 455 to train on, 114 to test.

    Source: Wolberg et al. (1995), UCI Machine Learning Repository; from scikit-learn's wheel.
    """
    from sklearn.datasets import load_breast_cancer

    return _shuffled(*load_breast_cancer(return_X_y=True), num_test=114)


def diabetes() -> Dataset:
    """Ten measurements of 442 patients and the progress of their disease: 353 to train, 89 to test.

    Source: Efron et al. (2004); from scikit-learn's wheel.
    """
    from sklearn.datasets import load_diabetes

    return _shuffled(*load_diabetes(return_X_y=True, scaled=False), num_test=89)


def _shuffled(x: Any, y: Any, num_test: int) -> Dataset:
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:-num_test], order[-num_test:]
    return Dataset(x[train], y[train], x[test], y[test])


MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

# Of the gz file, and of what is in it: a file compressed anew has the right content all the same.
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}

# Of the arrays' bytes: the first 5000 training and 1000 test images of the whole set.
CIFAR10_5K_SHA256 = {
    "x_train": "c60be474cc3b1f259ec6533177319e08544ec7e5bae0fb92dff084d381b65826",
    "y_train": "0cbafd4dfb25472c7c0d137ea8e7920f0afa3475882651ef6f8825cb39e748fb",
    "x_test": "da362006b99671213d1a5d856cab2bedf64d40bad4501630ee60f4ceb2d3ec7f",
    "y_test": "636a087e604331a0b9dafc94b6e9ade0c9cec72c4400d12473ccdb3e264474c1",
}
CIFAR10_5K = (5000, 1000)


def mnist() -> Dataset:
    """60,000 handwritten digits to train on, 10,000 to test on, 28 × 28 × 1 pixels.

    Errors: ValueError that names a corrupt file, DataMissing.

    Source: LeCun, Bottou, Bengio & Haffner (1998).
    """
    images, labels, test_images, test_labels = (
        _idx(_unpacked(_fetched("mnist", name, MNIST_URL + name, packed), content))
        for name, (packed, content) in MNIST_SHA256.items()
    )
    x_train, x_test = ((x[..., None] / np.float32(255.0)) for x in (images, test_images))
    return Dataset(x_train, labels.astype(np.int64), x_test, test_labels.astype(np.int64))


def cifar10(num_train: int = 50_000, num_test: int = 10_000) -> Dataset:
    """The first so many of 50,000 images to train on and 10,000 to test on, 32 × 32 × 3 pixels.

    Up to 5000 and 1000 images are taken from `cifar10_5k.npz` where that file is: they are the
    same as the whole set's. Otherwise `cifar-10-binary.tar.gz` is read.

    Errors: numbers out of range, ValueError that names a corrupt file, DataMissing.

    Source: Krizhevsky (2009).
    """
    if not (1 <= num_train <= 50_000 and 1 <= num_test <= 10_000):
        raise invalid(
            "cifar10(num_train, num_test)",
            got=f"{num_train}, {num_test}",
            expected="1 to 50000 and 1 to 10000",
            remedy="Leave them out for the whole set.",
        )
    part = _local("cifar10", "cifar10_5k.npz")
    if part is not None and num_train <= CIFAR10_5K[0] and num_test <= CIFAR10_5K[1]:
        x, y, x_test, y_test = _cifar10_part(part)
    else:
        name = CIFAR10_URL.rpartition("/")[2]
        x, y, x_test, y_test = _cifar10_whole(
            _fetched("cifar10", name, CIFAR10_URL, CIFAR10_SHA256)
        )
    return Dataset(
        x[:num_train] / np.float32(255.0),
        y[:num_train].astype(np.int64),
        x_test[:num_test] / np.float32(255.0),
        y_test[:num_test].astype(np.int64),
    )


def at_hand(load: Callable[..., Dataset]) -> bool:
    """Whether `mnist` or `cifar10` (if need be, its first 5000) can be had without a download."""
    if load is mnist:
        return all(_local("mnist", name) for name in MNIST_SHA256)
    if load is cifar10:
        names = ("cifar10_5k.npz", CIFAR10_URL.rpartition("/")[2])
        return any(_local("cifar10", name) for name in names)
    return True


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("jaxnn"))


def _local(folder: str, name: str) -> Path | None:
    """Where a file is on this machine, if it is."""
    given = os.environ.get("JAXNN_DATA")
    roots = [Path(given)] if given else []
    paths = (root / folder / name for root in (*roots, _cache()))
    return next((path for path in paths if path.is_file()), None)


def _fetched(folder: str, name: str, url: str, sha256: str) -> Path:
    """Where a file is on this machine, after its download if need be."""
    path = _local(folder, name)
    if path is not None:
        return path
    import pooch

    try:
        found = pooch.retrieve(url, f"sha256:{sha256}", fname=name, path=_cache() / folder)
    except (OSError, ValueError) as error:  # no network, or a page of its gatekeeper instead
        title, files = DOWNLOADS[folder]
        raise DataMissing(
            f"{title} is not there and {url} cannot be downloaded; put {files} into "
            f"{_cache() / folder}, or into FOLDER/{folder} and set JAXNN_DATA to FOLDER"
        ) from error
    return Path(found)


def _unpacked(path: Path, sha256: str) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise _corrupt(path, f"a file that cannot be unpacked ({error})") from error
    _require_sha256(path, content, sha256)
    return content


def _idx(content: bytes) -> np.ndarray:
    """The array of an IDX file: two zeros, type 8 (bytes), rank, big-endian sizes, entries."""
    rank = content[3]
    shape = np.frombuffer(content, ">i4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _cifar10_part(path: Path) -> tuple[np.ndarray, ...]:
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            parts = [arrays[name] for name in CIFAR10_5K_SHA256]
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _corrupt(path, f"a file that cannot be unpacked ({error})") from error
    for part, sha256 in zip(parts, CIFAR10_5K_SHA256.values(), strict=True):
        _require_sha256(path, part.tobytes(), sha256)
    return tuple(parts)


def _cifar10_whole(path: Path) -> tuple[np.ndarray, ...]:
    content = path.read_bytes()
    _require_sha256(path, content, CIFAR10_SHA256)
    return _cifar10_records(content)


def _cifar10_records(archive: bytes) -> tuple[np.ndarray, ...]:
    """Images (N, 32, 32, 3) and labels from records of a label, then rows of red, green, blue."""
    batches = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            member = tar.extractfile(f"cifar-10-batches-bin/{name}")
            assert member is not None
            batches.append(np.frombuffer(member.read(), np.uint8).reshape(-1, 3073))
    parts = []
    for records in (np.concatenate(batches[:5]), batches[5]):
        parts += [records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]]
    return tuple(parts)


def _require_sha256(path: Path, content: bytes, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise _corrupt(path, f"content of SHA-256 {found}")


def _corrupt(path: Path, got: str) -> ValueError:
    return invalid(
        str(path),
        got=got,
        expected="the data set's own file",
        remedy="It is corrupt or another file: delete it, and it is downloaded anew.",
    )

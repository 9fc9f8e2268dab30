"""Real data, split once and for all: every experiment sees the same test set."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Inputs (N, d) in [0, 1] as float64, and integer classes (N,).

    Whatever is chosen by looking at data (a validation set, a stopping time) is cut from the
    training part; the test part is for the number that is reported.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits() -> Dataset:
    """1797 handwritten digits of 8 × 8 pixels: 1437 to train on, 360 to test on.

    The order is shuffled by a fixed seed, as neighbors in the file are by the same writer.
    Source: Alpaydin & Kaynak (1998), UCI Machine Learning Repository; from scikit-learn's wheel.
    """
    from sklearn.datasets import load_digits  # slow to import, and most experiments need no data

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order] / 16.0, y[order]
    return Dataset(x[:1437], y[:1437], x[1437:], y[1437:])

"""One style for every picture, and the picture of a run as PNG."""

import io
from pathlib import Path
from types import ModuleType

import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from experiments.catalog import UnusableRecord
from experiments.records import Record, write

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito's palette, distinct to color-blind readers, the strongest first."""

THEORY = {"color": "black", "linestyle": "--", "linewidth": 1.6, "zorder": 3}
"""The line of a prediction: `axes.plot(x, y, **THEORY, label="theory: ...")`."""

BAND = {"color": "black", "alpha": 0.12, "linewidth": 0}
"""The region a prediction allows: `axes.axhspan(low, high, **BAND, label=...)`."""

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "image.cmap": "cividis",
    "legend.fontsize": 9,
    "legend.framealpha": 0.9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.dpi": 150,
}


def show_images(axes: Axes, images: ArrayLike, columns: int, *, diverging: bool = False) -> None:
    """Fill a panel with images (N, height, width) as a grid, `columns` in a row, from the top left.

    Gray from the smallest to the largest number of all; with `diverging`, blue and red around 0.
    """
    images = np.asarray(images, float)
    count, height, width = images.shape
    rows = -(-count // columns)
    # A line of NaN, drawn as background, between neighbors.
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        grid[top : top + height, left : left + width] = image
    largest = np.max(np.abs(images))
    if diverging:
        axes.imshow(grid, cmap="RdBu_r", vmin=-largest, vmax=largest)
    else:
        axes.imshow(grid, cmap="gray_r")
    axes.set_facecolor("#d8d8d8")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def draw(module: ModuleType, record: Record, folder: Path) -> Path:
    """Write `folder`/NAME.png, drawn by the module's `plot(config, metrics, axes)`; its path.

    `axes` is one matplotlib Axes, or an array of them where the module says
    PANELS = (rows, columns); a dimension of 1 is dropped, as by `plt.subplots`. Axes with labels
    get a legend.

    Errors: UnusableRecord where the run left no metrics, or its config is not of today's Config.
    """
    if not record.metrics:
        why = "was skipped" if record.skipped is not None else "raised an exception"
        raise UnusableRecord(record.name, f"no metrics, as the run {why}")
    try:
        config = module.Config(**record.config)
    except TypeError as error:
        raise UnusableRecord(record.name, f"its Config has changed ({error})") from error
    rows, columns = getattr(module, "PANELS", (1, 1))
    # From the defaults: a user's matplotlibrc must not change a picture.
    with matplotlib.style.context(["default", STYLE]):
        # Narrower side by side, so that the page does not shrink the text out of sight.
        width, height = (6.8, 4.4) if columns == 1 else (4.9, 4.0)
        figure = Figure(figsize=(width * columns, height * rows))
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns)
        module.plot(config, record.metrics, axes)
        for panel in figure.axes:
            if panel.get_legend() is None and panel.get_legend_handles_labels()[0]:
                panel.legend()
        png = io.BytesIO()
        figure.savefig(png, format="png")
    path = folder / f"{record.name}.png"
    write(path, png.getvalue())
    return path

"""Matplotlib figures with a colour-blind-safe palette and a description in words."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from course_lib.viz.picture import Picture

# Okabe and Ito's palette, in an order whose first entries also differ most in lightness.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
    "yellow": "#F0E442",
}
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3))]
PIXELS_PER_CSS_PIXEL = 2  # a figure has twice the pixels that it takes on the page, for dense screens
DPI = 80  # CSS pixels per inch of figsize
INVISIBLE = 24  # of 255 levels: on a thin edge nobody sees it


@contextmanager
def style() -> Iterator[None]:
    """Figures made inside get the course's look: each line has its own colour *and* its own dash pattern.

    Example: ``with style(): fig, ax = plt.subplots()``.
    """
    import matplotlib as mpl
    from cycler import cycler

    settings = {
        "axes.prop_cycle": cycler(color=list(COLOURS.values())) + cycler(linestyle=LINES),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.labelsize": 11,
        "figure.dpi": DPI,
        "figure.facecolor": "white",
        "figure.figsize": (7.0, 3.5),
        "font.size": 11,
        "grid.alpha": 0.25,
        "image.cmap": "cividis",
        "image.interpolation": "nearest",
        "legend.frameon": False,
        "lines.linewidth": 2.0,
    }
    with mpl.rc_context(settings):
        yield


def show_figure(fig, *, alt: str) -> Picture:
    """A matplotlib figure as a picture with words; closes the figure, so the notebook does not show it twice.

    The background stays opaque white: black lines on a see-through background vanish in a dark theme.

    Args:
        fig: a ``matplotlib.figure.Figure``.
        alt: what the figure shows *and* what one should conclude from it.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI * PIXELS_PER_CSS_PIXEL, facecolor="white", bbox_inches="tight")
    plt.close(fig)
    image = Image.open(buffer).convert("RGB")
    # A third of the bytes, and no change that one sees in lines and cells.
    small = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(small.convert("RGB"), dtype=int) - np.asarray(image, dtype=int)).max()
    buffer = io.BytesIO()
    (small if error <= INVISIBLE else image).save(buffer, "PNG", optimize=True)
    return Picture(buffer.getvalue(), alt, width=image.width // PIXELS_PER_CSS_PIXEL)

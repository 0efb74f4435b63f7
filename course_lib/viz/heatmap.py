"""A matrix whose rows and columns have names: attention weights over words, similarities over captions."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def heatmap(
    ax,
    matrix: Float[Tensor, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    highest: float | None = None,
) -> None:
    """Draw ``matrix`` into a matplotlib axes, dark for 0, bright for ``highest``, with names at the edges.

    Args:
        ax: a ``matplotlib.axes.Axes``.
        matrix: (rows, columns), not negative.
        rows, columns: one name each, such as the tokens that ask and the tokens that are asked.
        highest: the value of the brightest colour; by default the largest in the matrix.
    Raises: ValueError if the names do not fit the matrix.
    """
    if matrix.shape != (len(rows), len(columns)):
        raise ValueError(f"a matrix of {tuple(matrix.shape)} needs as many names, got ({len(rows)}, {len(columns)})")
    top = float(matrix.max()) if highest is None else highest
    ax.imshow(matrix.detach().cpu().numpy(), vmin=0.0, vmax=max(top, 1e-9), aspect="equal")
    size = max(6, min(11, 260 / max(len(rows), len(columns))))
    ax.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 2 else 0, fontsize=size)
    ax.set_yticks(range(len(rows)), rows, fontsize=size)
    ax.tick_params(length=0)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_title(title)

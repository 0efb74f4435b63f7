"""The boxes under a cell: one look in JupyterLab light and dark, and the same words as plain text.

Inline styles only, with JupyterLab's variables and fallbacks, so that a saved page still reads well when its style
sheets and scripts are stripped.
"""

import base64
import html
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_EDGES = {
    "good": "var(--jp-success-color1, #388e3c)",
    "bad": "var(--jp-error-color1, #d32f2f)",
    "warn": "var(--jp-warn-color1, #b26a00)",
    "quiet": "var(--jp-border-color1, #9e9e9e)",
}
_TEXT = "color:var(--jp-ui-font-color1, CanvasText)"
_MONO = "font-family:var(--jp-code-font-family, monospace);white-space:pre-wrap;overflow-wrap:anywhere"


@dataclass(frozen=True)
class Card:
    """A titled box. ``kind``: good, bad, warn or quiet. ``folded`` holds (title, monospace text) pairs to open."""

    kind: str
    title: str
    text: str = ""
    note: str = ""
    folded: Sequence[tuple[str, str]] = ()
    pictures: Sequence[tuple[str, bytes]] = ()  # (caption, PNG)

    def __repr__(self) -> str:
        lines = [self.title, self.text, self.note]
        lines += [f"{title}: {content}" for title, content in self.folded]
        return "\n".join(filter(None, lines))

    def _repr_html_(self) -> str:
        parts = [f'<div style="font-weight:600">{_marked(self.title)}</div>']
        if self.text:
            parts.append(f'<div style="white-space:pre-wrap;margin-top:4px">{_marked(self.text)}</div>')
        if self.pictures:
            parts.append('<div style="display:flex;gap:16px;flex-wrap:wrap;margin-top:6px">')
            for caption, png in self.pictures:
                data = base64.b64encode(png).decode()
                style = "height:128px;image-rendering:pixelated;border:1px solid #888"
                image = f'<img alt="{html.escape(caption)}" style="{style}" src="data:image/png;base64,{data}">'
                parts.append(f"<div>{image}<div>{html.escape(caption)}</div></div>")
            parts.append("</div>")
        if self.note:
            muted = "margin-top:4px;color:var(--jp-ui-font-color2, GrayText)"
            parts.append(f'<div style="{muted}">{_marked(self.note)}</div>')
        for title, content in self.folded:
            body = f'<div style="{_MONO};margin:4px 0 0 12px">{html.escape(content)}</div>'
            parts.append(f'<details style="margin-top:4px"><summary>{html.escape(title)}</summary>{body}</details>')
        edge = _EDGES[self.kind]
        box = f"border:1px solid var(--jp-border-color2, #ccc);border-left:5px solid {edge};padding:8px 12px"
        return f'<div role="status" style="{box};max-width:60em;{_TEXT}">{"".join(parts)}</div>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


_EMPHASIS = re.compile(r"(?<![\w*])\*(?=\w)([^*\n]+)(?<=\w)\*(?![\w*])")


def _marked(text: str) -> str:
    """Escape, set what stands between backquotes in the code font, and what stands between asterisks in italics."""
    pieces = html.escape(text).split("`")
    if len(pieces) % 2 == 0:
        return html.escape(text)
    return "".join(
        f'<code style="{_TEXT}">{p}</code>' if i % 2 else _EMPHASIS.sub(r"<em>\1</em>", p) for i, p in enumerate(pieces)
    )


def in_notebook() -> bool:
    """True in a Jupyter kernel; a terminal gets plain text instead."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return bool(shell) and hasattr(shell, "kernel")


def show(card: Any) -> None:
    """Display in a notebook, print elsewhere."""
    if in_notebook():
        from IPython.display import display

        display(card)
    else:
        print(repr(card))


def show_widget(make: Callable[[], Any]) -> None:
    """Display what ``make`` builds, in a notebook with ipywidgets; elsewhere the plain functions do the same job."""
    if not in_notebook():
        return
    try:
        from IPython.display import display

        display(make())
    except ImportError:
        pass


def picture_png(values: Tensor, low: float, high: float) -> bytes:
    """The last two axes as a grey picture (the leading ones side by side, at most six), values from low to high."""
    from PIL import Image

    values = values.detach().to(torch.float32).nan_to_num()
    values = values.reshape(-1, *values.shape[-2:]) if values.dim() > 1 else values.reshape(1, 1, -1)
    values = values[torch.linspace(0, len(values) - 1, min(6, len(values))).long()]
    grey = ((values - low) / max(high - low, 1e-9)).clamp(0, 1) * 255
    row = torch.cat([torch.nn.functional.pad(g, (0, 1, 0, 1), value=128) for g in grey], dim=1)
    file = io.BytesIO()
    Image.fromarray(row.byte().numpy(), mode="L").save(file, format="PNG")
    return file.getvalue()

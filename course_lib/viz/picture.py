"""One picture, still or moving, together with its description in words."""

import base64
import html
from pathlib import Path


class Picture:
    """PNG bytes (animated or not) that a notebook shows, and the words that stand in for them.

    Front ends look for the words in different places, so they go to all of them: JupyterLab ignores the ``alt``
    metadata of ``image/png`` but keeps an ``<img alt>`` in ``text/html``, and so does nbconvert's default template; its
    classic template reads the metadata; a terminal prints the text.

    Args:
        png: the file's bytes.
        alt: what a person who cannot see the picture should know; never empty.
        width: CSS pixels on the page; a file with more pixels than that looks sharp on a dense screen.

    Raises: ValueError if ``alt`` is blank or ``png`` is not a PNG file.
    """

    def __init__(self, png: bytes, alt: str, width: int):
        if not alt.strip():
            raise ValueError("alt is empty; say in a sentence what the picture shows")
        if not png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"not a PNG file: it starts with {png[:8]!r}")
        self.png, self.alt, self.width = png, " ".join(alt.split()), width

    def save(self, path: str | Path) -> Path:
        """Writes the PNG file, creating its folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.png)
        return path

    def __repr__(self) -> str:
        return f"[picture] {self.alt}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = base64.b64encode(self.png).decode("ascii")
        # No <style>: JupyterLab strips it from notebooks that it does not trust.
        image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(self.alt)}" width="{self.width}">'
        bundle = {"text/plain": repr(self), "text/html": image, "image/png": data}
        return bundle, {"image/png": {"alt": self.alt, "width": self.width}}

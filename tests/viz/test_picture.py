import base64
import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from course_lib import viz

matplotlib.use("agg")


def a_png(size=(7, 5)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_words_reach_every_front_end():
    data, metadata = viz.Picture(a_png(), 'a "3" < 7', width=70)._repr_mimebundle_()
    assert 'alt="a &quot;3&quot; &lt; 7"' in data["text/html"]  # JupyterLab
    assert metadata["image/png"] == {"alt": 'a "3" < 7', "width": 70}  # nbconvert
    assert 'a "3" < 7' in data["text/plain"]  # a terminal
    assert base64.b64decode(data["image/png"]) == a_png()
    assert data["image/png"] in data["text/html"]


def test_words_are_required_and_bytes_must_be_a_png():
    with pytest.raises(ValueError, match="alt is empty"):
        viz.Picture(a_png(), "  \n", width=7)
    with pytest.raises(ValueError, match="not a PNG"):
        viz.Picture(b"GIF89a", "a gif", width=7)


@pytest.mark.parametrize(
    ("template", "dropped"),
    [
        ("lab", set()),
        ("classic", set()),
        ("classic", {"text/html"}),
    ],
)
def test_nbconvert_writes_the_words_into_the_page(template, dropped):
    nbformat = pytest.importorskip("nbformat.v4")
    nbconvert = pytest.importorskip("nbconvert")
    data, metadata = viz.Picture(a_png(), "a dark rectangle", width=7)._repr_mimebundle_()
    kept = {kind: content for kind, content in data.items() if kind not in dropped}
    output = nbformat.new_output("display_data", kept, metadata=metadata)
    notebook = nbformat.new_notebook(cells=[nbformat.new_code_cell("x", outputs=[output])])
    page, _ = nbconvert.HTMLExporter(template_name=template).from_notebook_node(notebook)
    assert 'alt="a dark rectangle"' in page


def test_a_figure_is_closed_sharp_and_opaque():
    import matplotlib.pyplot as plt

    with viz.style():
        fig, ax = plt.subplots(figsize=(3, 2))
        ax.plot([0, 1], [0, 1])
    picture = viz.show_figure(fig, alt="a rising line")
    assert not plt.fignum_exists(fig.number)
    image = Image.open(io.BytesIO(picture.png))
    assert image.width // 2 == picture.width
    pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[..., 3] == 255).all() and (pixels[0, 0, :3] == 255).all()


def test_lines_differ_by_more_than_colour():
    with viz.style():
        entries = list(matplotlib.rcParams["axes.prop_cycle"])
    assert len({e["color"] for e in entries}) == len({str(e["linestyle"]) for e in entries}) == len(viz.COLOURS) == 8


def test_the_style_ends_with_its_block():
    before = dict(matplotlib.rcParams)
    with viz.style():
        assert matplotlib.rcParams["axes.grid"]
    assert dict(matplotlib.rcParams) == before


def test_importing_viz_loads_no_plotting_or_widget_library():
    code = "import sys, course_lib.viz; print([m for m in ('matplotlib', 'ipywidgets', 'IPython') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

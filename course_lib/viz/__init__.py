"""Pictures, moving pictures and controls that read well in JupyterLab (light and dark), on GitHub and aloud."""

from course_lib.viz.animation import save_apng, save_gif, sheet, show_images, show_video
from course_lib.viz.figures import COLOURS, show_figure, style
from course_lib.viz.picture import Picture
from course_lib.viz.progress_bar import progress
from course_lib.viz.share import provenance, share
from course_lib.viz.widgets import live

__all__ = [
    "COLOURS",
    "Picture",
    "live",
    "progress",
    "provenance",
    "save_apng",
    "save_gif",
    "share",
    "sheet",
    "show_figure",
    "show_images",
    "show_video",
    "style",
]

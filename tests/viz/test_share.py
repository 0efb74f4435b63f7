"""Both marks of a shared clip: there after saving, gone after saving anew, as the text says."""

import pytest
import torch
from PIL import Image

from course_lib.viz import provenance, save_gif, share

CLIP = torch.linspace(-1, 1, 3 * 5 * 16 * 24).view(3, 5, 16, 24)


def test_a_shared_clip_says_that_it_is_made(tmp_path):
    path = share(CLIP, "a red 3 moving left", tmp_path / "clips" / "three.gif")
    assert provenance(path) == {
        "generated": True,
        "by": "a model of the course Road to Sora",
        "prompt": "a red 3 moving left",
    }
    plain = save_gif(CLIP, tmp_path / "plain.gif")
    assert provenance(plain) is None
    with Image.open(path) as marked, Image.open(plain) as bare:
        assert marked.n_frames == bare.n_frames == 5 and marked.height > bare.height + 10  # the line of text


def test_saving_anew_takes_the_mark_away(tmp_path):
    path = share(CLIP, "a 7", tmp_path / "seven.gif")
    with Image.open(path) as image:
        image.convert("RGB").save(tmp_path / "copy.png")
    assert provenance(tmp_path / "copy.png") is None


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"clip\.mp4.*\.gif"):
        share(CLIP, "a 7", tmp_path / "clip.mp4")

import io

import numpy as np
import pytest
import torch
from PIL import Image

from course_lib import viz
from course_lib.viz import animation


@pytest.fixture
def clips() -> torch.Tensor:
    """(b, c, f, h, w) = (3, 1, 5, 11, 13): a bright pixel that walks along a different row in each clip."""
    video = -torch.ones(3, 1, 5, 11, 13)
    for clip in range(3):
        for frame in range(5):
            video[clip, 0, frame, 2 * clip + 1, frame + 4] = 1.0
    return video


def frames_of(png: bytes) -> list[np.ndarray]:
    image = Image.open(io.BytesIO(png))
    found = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        found.append(np.asarray(image.convert("RGB")))
    return found


def test_values_map_to_grey_levels_and_are_clipped_outside_the_range():
    video = torch.tensor([-1.0, 0.0, 1.0, -3.0, 7.0]).reshape(1, 1, 1, 5)
    assert animation.to_uint8(video)[0, 0, 0, :, 0].tolist() == [0, 128, 255, 0, 255]


def test_colour_channels_keep_their_order():
    video = torch.tensor([1.0, -1.0, 0.0]).reshape(3, 1, 1, 1)
    assert animation.to_uint8(video)[0, 0, 0, 0].tolist() == [255, 0, 128]


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(2, 5, 7, 11), "1 or 3 channels"),
        (torch.full((1, 2, 3, 5), float("nan")), "NaN"),
        (torch.zeros(1, 0, 3, 5), "nothing to show"),
    ],
)
def test_what_cannot_be_a_video_is_refused_with_a_reason(video, message):
    with pytest.raises(ValueError, match=message):
        viz.show_video(video, alt="x")


def test_every_frame_of_the_clip_is_in_the_picture_at_its_place(clips):
    pages = frames_of(viz.show_video(clips, alt="dots", scale=3, columns=2).png)
    assert len(pages) == 5
    top_left = np.full((3, 2), animation.GAP)
    for clip in range(3):
        corner = top_left[clip] + np.array([clip // 2, clip % 2]) * np.array([11 * 3 + 8, 13 * 3 + 8])
        for frame in range(5):
            tile = pages[frame][corner[0] :, corner[1] :][: 11 * 3, : 13 * 3]
            expected = animation.to_uint8(clips)[clip, frame].numpy().repeat(3, 0).repeat(3, 1)
            np.testing.assert_array_equal(tile, expected)


def test_the_clip_loops_forever_and_lingers_on_its_last_frame(clips):
    image = Image.open(io.BytesIO(viz.show_video(clips, alt="dots", fps=5).png))
    assert image.is_animated and image.info["loop"] == 0
    durations = []
    for index in range(image.n_frames):
        image.seek(index)
        durations.append(image.info["duration"])
    assert durations == [200, 200, 200, 200, 600]


def test_grey_clips_become_grey_files_and_coloured_ones_keep_colour(clips):
    grey = viz.show_video(clips, alt="dots")
    coloured = clips.repeat(1, 3, 1, 1, 1)
    coloured[:, 0] = -1
    assert Image.open(io.BytesIO(grey.png)).mode == "L"
    assert Image.open(io.BytesIO(viz.show_video(coloured, alt="dots").png)).mode == "RGB"


def test_labels_are_drawn_and_must_match_the_clips(clips):
    plain = frames_of(viz.show_video(clips, alt="dots").png)[0]
    labelled = frames_of(viz.show_video(clips, alt="dots", labels=["one", "two", "three"]).png)[0]
    assert labelled.shape[0] > plain.shape[0]
    with pytest.raises(ValueError, match="2 labels for 3 clips"):
        viz.show_video(clips, alt="dots", labels=["one", "two"])


def test_long_labels_wrap_instead_of_running_into_the_neighbour():
    words = "a large white seven that starts in the middle and moves up and to the right"
    broken = animation._wrap(words, 120, animation._font())
    assert broken.replace("\n", " ") == words
    assert all(animation._font().getlength(line) <= 120 for line in broken.split("\n"))


def test_the_sheet_shows_the_first_and_the_last_frame(clips):
    page = frames_of(viz.sheet(clips[:1], alt="dots", frames=3, scale=1).png)[0]
    top = animation.LINE + animation.GAP
    for column, frame in enumerate([0, 2, 4]):
        left = animation.GAP + column * (13 + animation.GAP)
        expected = animation.to_uint8(clips)[0, frame].numpy()
        np.testing.assert_array_equal(page[top : top + 11, left : left + 13], expected)


def test_people_who_ask_for_stillness_get_a_sheet(clips, monkeypatch):
    monkeypatch.setenv("COURSE_MOTION", "still")
    assert len(frames_of(viz.show_video(clips, alt="dots").png)) == 1


def test_images_are_shown_still(clips):
    picture = viz.show_images(clips[:, :, 0], alt="dots", scale=1)
    (page,) = frames_of(picture.png)
    gap = animation.GAP
    np.testing.assert_array_equal(page[gap : gap + 11, gap : gap + 13], animation.to_uint8(clips)[0, 0].numpy())


def test_files_hold_all_frames(clips, tmp_path):
    for save, name in [(viz.save_gif, "clip.gif"), (viz.save_apng, "clip.png")]:
        path = save(clips, tmp_path / "new folder" / name)
        image = Image.open(path)
        assert image.n_frames == 5 and image.info["loop"] == 0
        image.seek(4)
        assert np.asarray(image.convert("L")).max() > 200


def test_a_speed_of_zero_is_refused(clips):
    with pytest.raises(ValueError, match="fps=0"):
        viz.show_video(clips, alt="dots", fps=0)


def test_notes_stand_beside_the_clip_and_are_read_aloud(clips):
    plain = frames_of(viz.show_video(clips[0], alt="a dot.").png)
    noted = viz.show_video(clips[0], alt="a dot.", notes={"short": "it moves", "long": "it moves " * 30})
    pages = frames_of(noted.png)
    assert noted.alt.startswith("a dot. short: it moves long: it moves it")
    for before, after in zip(plain, pages, strict=True):
        height, width = before.shape[:2]
        np.testing.assert_array_equal(after[:height, :width], before)
        assert after[:, width:].max() > 200  # words, in every frame


def test_what_is_nearly_black_is_saved_as_black():
    """Or a generated clip, whose background is never quite black, takes three times the space."""
    shade = torch.full((3, 2, 8, 8), -0.93)
    dark, plain, grey = (viz.show_video(v, alt="x", scale=4).png for v in (shade, shade * 0 - 1, shade * 0 - 0.85))
    assert dark == plain != grey

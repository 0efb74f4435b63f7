"""What lesson 19 claims of the generator that comes with the course, with fixed seeds."""

import pytest
import torch

from course_lib.evaluation.generated import ask, figures, prompts
from course_lib.models.sora_pipeline import SoraPipeline

SENTENCE = "a medium-sized orange 6 starts in the centre and moves right slowly"


@pytest.fixture(scope="module")
def sora():
    return SoraPipeline.from_checkpoint()


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_clips_show_what_was_asked_for(sora):
    world = {key: sora.model.about["settings"][key] for key in ("colours", "directions", "speeds")}
    scenes = ask(40, 1, 3, world | {"frames": 17, "height": 48, "width": 48})
    made = torch.stack(sora.videos(prompts(scenes), generator=noise(0)))
    found = figures(made, scenes)
    assert found["digit"] >= 0.85 and found["colour"] >= 0.95 and found["direction"] >= 0.85


def test_what_is_known_is_kept(sora):
    still = sora.images([SENTENCE], generator=noise(1))[0]
    film = sora.animate(still, SENTENCE, frames=9, generator=noise(2))
    assert film.shape == (3, 9, 48, 48) and torch.equal(film[:, :1], still)
    longer = sora.extend(film, SENTENCE, 8, generator=noise(3))
    earlier = sora.extend_backwards(film, SENTENCE, 4, generator=noise(4))
    joined = sora.connect(film, longer[:, -9:], SENTENCE, 4, generator=noise(5))
    assert torch.equal(longer[:, :9], film) and torch.equal(earlier[:, 4:], film)
    assert torch.equal(joined[:, :9], film) and torch.equal(joined[:, -9:], longer[:, -9:])


def test_a_stronger_edit_keeps_less(sora):
    film = sora.videos([SENTENCE.replace("orange", "yellow")], generator=noise(6))[0]
    apart = [
        (sora.edit(film, SENTENCE.replace("orange", "blue"), s, generator=noise(7)) - film).square().mean().item()
        for s in (0.4, 0.8, 0.95)
    ]
    assert apart == sorted(apart)


def test_shapes_that_are_sampled_together(sora):
    shapes = [(17, 48, 64), (33, 48, 48), (1, 64, 64)]
    made = sora.videos([SENTENCE] * 3, [s[0] for s in shapes], [s[1:] for s in shapes], generator=noise(8))
    assert [tuple(video.shape) for video in made] == [(3, *s) for s in shapes]

"""The tasks, with a perfect model of a world in which a number counts upwards: every answer is known exactly."""

from types import SimpleNamespace

import pytest
import torch
from einops import rearrange, repeat
from torch import nn

from course_lib.models.sora import Text
from course_lib.models.sora_pipeline import Settings, SoraPipeline

STEP, MOST = 0.02, 60  # brightness grows by STEP per frame
HOW = Settings(guidance=1.0, steps=25, shift=1.0)


def counter(first: int, frames: int) -> torch.Tensor:
    """A video (1, f, 16, 16), all of one brightness in each frame: first, first + 1, ... in units of STEP."""
    return (STEP * torch.arange(first, first + frames) - 0.5).view(1, -1, 1, 1).expand(-1, -1, 16, 16).clone()


class Folding(nn.Module):
    """A lossless tokenizer of such videos: four frames become four channels, 8 x 8 pixels their mean."""

    def compress(self, video):
        small = video[..., ::8, ::8]
        padded = torch.cat([small[:, :, :1].expand(-1, -1, 3, -1, -1), small], dim=2)
        return 10 * rearrange(padded, "b 1 (f p) h w -> b p f h w", p=4)

    def decompress(self, z):
        frames = rearrange(z / 10, "b p f h w -> b 1 (f p) h w")[:, :, 3:]
        return repeat(frames, "b c f h w -> b c f (h p) (w q)", p=8, q=8)


class Perfect(nn.Module):
    """The exact velocity for all counters of the length asked for; a frame at time 0 pins the clip down."""

    config = SimpleNamespace(latent_channels=4, patch=(1, 2, 2))

    def forward(self, latents, times, text):
        out = []
        for x, t in zip(latents, times, strict=True):
            world = (
                Folding()
                .compress(torch.stack([counter(i, 4 * x.shape[1] - 3) for i in range(MOST)]))
                .double()[..., :1, :1]
            )
            t = t.double().view(1, 1, -1, 1, 1)
            sure = t.clamp(min=2e-3)
            distance = ((x - (1 - t) * world) / sure).square().flatten(1).sum(1)
            x0 = torch.einsum("n,nzfhw->zfhw", (-distance / 2).softmax(0), world)
            out.append(((x - x0) / sure[0]).float())
        return out


@pytest.fixture
def pipeline():
    reader = lambda captions: Text(*(torch.zeros(len(captions), 1, 1),) * 3)  # noqa: E731
    return SoraPipeline(Perfect(), Folding(), reader, HOW)


def counts(video: torch.Tensor) -> torch.Tensor:
    assert (video - video[..., :1, :1]).abs().max() < 0.01
    return (video[0, :, 0, 0] + 0.5) / STEP


def follows(video: torch.Tensor, first: int, frames: int) -> None:
    assert video.shape == (1, frames, 16, 16)
    torch.testing.assert_close(counts(video), torch.arange(first, first + frames).float(), atol=0.2, rtol=0)


def test_videos_of_any_length_and_size_and_pictures(pipeline):
    g = torch.Generator().manual_seed(0)
    made = pipeline.videos(["a", "b", "c"], [17, 6, 1], [(16, 16), (32, 16), (16, 48)], generator=g)
    assert [tuple(v.shape) for v in made] == [(1, 17, 16, 16), (1, 6, 32, 16), (1, 1, 16, 48)]
    assert (counts(made[0]).diff() - 1).abs().max() < 0.2
    assert pipeline.images(["a"], (16, 16), generator=g)[0].shape == (1, 1, 16, 16)


def test_an_image_begins_to_move(pipeline):
    follows(pipeline.animate(counter(7, 1), "", frames=11), 7, 11)


@pytest.mark.parametrize("n", [1, 4, 5, 9, 14])
@pytest.mark.parametrize("more", [1, 6, 8])
def test_forwards(pipeline, n, more):
    made = pipeline.extend(counter(5, n), "", more)
    assert torch.equal(made[:, :n], counter(5, n))
    follows(made, 5, n + more)


@pytest.mark.parametrize("n", [8, 9, 15])
@pytest.mark.parametrize("more", [1, 5, 9])
def test_backwards_the_counter_runs_down(pipeline, n, more):
    made = pipeline.extend_backwards(counter(25, n), "", more)
    assert torch.equal(made[:, more:], counter(25, n))
    follows(made, 25 - more, n + more)


@pytest.mark.parametrize("between", [3, 4, 7])
def test_from_one_video_to_the_next(pipeline, between):
    first, second = counter(3, 10), counter(13 + between, 9)
    made = pipeline.connect(first, second, "", between)
    assert torch.equal(made[:, :10], first) and torch.equal(made[:, 10 + between :], second)
    follows(made, 3, 19 + between)


def test_a_loop_ends_before_its_beginning_and_repeats_nothing(pipeline):
    video = counter(3, 9)
    made = pipeline.loop(video, "", 8)
    assert made.shape[1] == 17 and torch.equal(made[:, :9], video)


def test_a_stronger_edit_goes_farther(pipeline):
    video, far = counter(20, 7), []
    for strength in (0.0, 0.3, 0.7, 0.98):
        g = torch.Generator().manual_seed(1)
        far.append(sum((pipeline.edit(video, "", strength, generator=g) - video).abs().mean() for _ in range(8)).item())
    assert far[0] == 0 and far[1] <= far[2] < far[3]
    assert pipeline.edit(video, "", 0.5).shape == video.shape


def test_every_step_can_be_watched(pipeline):
    seen = []
    pipeline.videos(["a"], 5, (16, 16), watch=seen.append)
    assert [state.step for state in seen] == list(range(1, 26)) and seen[-1].t == 0


def test_bad_input_is_named(pipeline):
    with pytest.raises(ValueError, match="multiples of 16"):
        pipeline.videos(["a"], 5, (20, 16))
    with pytest.raises(ValueError, match="0 frames"):
        pipeline.videos(["a"], 0, (16, 16))
    with pytest.raises(ValueError, match="strength=2"):
        pipeline.edit(counter(0, 5), "", 2)
    with pytest.raises(ValueError, match="cannot be joined"):
        pipeline.connect(counter(0, 5), torch.zeros(1, 5, 32, 16), "", 4)

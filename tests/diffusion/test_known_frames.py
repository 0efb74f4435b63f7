"""Known frames: what the loss counts, and what a perfect model makes of them, on clips that count."""

import pytest
import torch

from course_lib.diffusion.known_frames import guided, known_loss, mix, sample_known, some_known

FRAMES = 5


def counters(n: int = 12) -> torch.Tensor:
    """Clips (n, 1, 5, 1, 1) that count upwards by one from anywhere."""
    return (torch.arange(n)[:, None] + torch.arange(FRAMES)).float().view(n, 1, FRAMES, 1, 1)


def perfect(clips: torch.Tensor):
    """The exact velocity for a finite set of clips, each frame at its own time; t = 0 pins a frame down."""

    def model(latents, times):
        out = []
        for x, t in zip(latents, times, strict=True):
            t = t.double().view(1, 1, -1, 1, 1)
            sure = t.clamp(min=1e-3)  # a known frame decides nearly alone which clip it is
            distance = ((x - (1 - t) * clips) / sure).square().flatten(1).sum(1)
            x0 = torch.einsum("n,nzfhw->zfhw", (-distance / 2).softmax(0), clips.double())
            out.append(((x - x0) / sure[0]).float())
        return out

    return model


def noise(n: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(n, 1, FRAMES, 1, 1, generator=torch.Generator().manual_seed(seed)))


def last(states):
    return list(states)[-1].xt


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("where", [[0], [4], [0, 4], [2], [1, 3]], ids=str)
def test_the_rest_of_a_counter_follows_from_the_known_frames(where, method):
    clips = counters()
    known = torch.zeros(FRAMES, dtype=torch.bool)
    known[where] = True
    values = [clips[i] for i in (3, 0, 7)]
    got = last(sample_known(perfect(clips), noise(3), [known] * 3, values, steps=30, method=method))
    for mine, truth in zip(got, values, strict=True):
        assert torch.equal(mine[:, known], truth[:, known])
        torch.testing.assert_close(mine, truth, atol=0.05, rtol=0)


def test_without_known_frames_it_counts_from_anywhere():
    got = torch.stack(last(sample_known(perfect(counters()), noise(40), steps=30)))
    assert (got.diff(dim=2) - 1).abs().max() < 0.1
    assert len(got[:, 0, 0, 0, 0].round().unique()) > 5


def test_a_stronger_edit_goes_farther():
    clips, far = counters(), []
    for begin in (0.1, 0.5, 0.9):
        start = [mix(clips[5], e, torch.full((FRAMES,), begin)) for e in noise(200, seed=1)]
        got = torch.stack(last(sample_known(perfect(clips), start, steps=20, begin=begin)))
        far.append((got - clips[5]).abs().mean().item())
    assert far[0] < far[1] < far[2] and far[0] < 0.02


def test_only_unknown_frames_count_and_known_ones_are_clean():
    seen = {}

    def model(latents, times):
        seen.update(latents=latents, times=times)
        return [torch.full_like(x, 2.0) for x in latents]

    g = torch.Generator().manual_seed(0)
    x0 = [torch.randn(2, 4, 3, 3, generator=g), torch.randn(2, 1, 5, 2, generator=g)]
    eps = [torch.randn(x.shape, generator=g) for x in x0]
    known = [torch.tensor([True, False, False, True]), torch.tensor([False])]
    loss = known_loss(model, x0, known, torch.tensor([0.25, 0.5]), eps)
    assert torch.equal(seen["latents"][0][:, [0, 3]], x0[0][:, [0, 3]])
    torch.testing.assert_close(seen["latents"][0][:, 1], 0.75 * x0[0][:, 1] + 0.25 * eps[0][:, 1])
    assert seen["times"][0].tolist() == [0, 0.25, 0.25, 0] and seen["times"][1].tolist() == [0.5]
    each = [(2 - (e - x))[:, ~k].square().mean() for e, x, k in zip(eps, x0, known, strict=True)]
    torch.testing.assert_close(loss, (each[0] + each[1]) / 2)


def test_patterns_of_known_frames():
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([some_known(5, g) for _ in range(2000)])
    assert not drawn.all(1).any() and 0.45 < drawn.any(1).double().mean() < 0.55
    patterns = {tuple(row) for row in drawn.int().tolist()}
    assert {(1, 0, 0, 0, 0), (1, 1, 1, 1, 0), (0, 0, 0, 0, 1), (1, 0, 0, 0, 1), (0, 1, 0, 1, 0)} <= patterns
    assert not some_known(1, g, share=1.0).any()
    assert all(some_known(2, g, share=1.0).sum() <= 1 for _ in range(50))


def test_guidance_and_bad_input():
    told, untold = (lambda x, t, v=v: [torch.full_like(y, v) for y in x] for v in (1.0, 0.5))
    assert guided(told, untold, 3.0)(noise(1), [torch.ones(5)])[0].unique().item() == 2.0
    assert guided(told, untold, 1.0) is told
    with pytest.raises(ValueError, match="sideways"):
        list(sample_known(told, noise(1), method="sideways"))
    with pytest.raises(ValueError, match="begin=0"):
        list(sample_known(told, noise(1), begin=0.0))

"""The recorded runs of lesson 18: folded attention, the control, crops, and a tiny run that goes on where it was."""

import json

import pytest
import torch

from course_lib.diffusion.known_frames import mix
from course_lib.models.sora import SoraConfig, Text, spacetime_masks
from course_lib.nn.attention import fused_attention
from course_lib.nn.packing import grid_positions
from course_lib.training import spacetime_attention
from course_lib.training.spacetime_attention import (
    ARMS,
    FOLDS,
    GLOW,
    FramesAlone,
    best_answer,
    cropped,
    every_firefly,
    fireflies,
    folded,
    main,
    unknown,
    whole,
)


@pytest.mark.parametrize("way", FOLDS)
def test_a_fold_is_a_mask(way):
    grid, window = (3, 4, 6), 2 if way == "windowed" else 1
    q, k, v = torch.randn(3, 1, 2, 72, 5, generator=torch.Generator().manual_seed(0))
    masks = spacetime_masks(torch.zeros(1, 72, dtype=torch.long), grid_positions(grid)[None], way, window)
    assert len(masks) == len(FOLDS[way])
    for turn, mask in enumerate(masks):
        expected = fused_attention(q, k, v, mask[:, None])[0]
        torch.testing.assert_close(folded(q, k, v, grid, way, turn, window), expected, atol=2e-6, rtol=1e-4)


def test_the_control_lets_nothing_pass_between_frames():
    net = FramesAlone(SoraConfig(latent_channels=3, d=24, depth=3, heads=2, d_text=7, attention="factorised"))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    clip = torch.randn(3, 4, 4, 4, requires_grad=True)
    text = Text(torch.randn(1, 2, 7), torch.ones(1, 2).bool(), torch.randn(1, 7))
    net([clip], [torch.rand(4)], text)[0][:, 1].sum().backward()
    assert (clip.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [False, True, False, False]


def test_crops():
    video = torch.full((1, 3, 2, 8, 12), -1.0)
    video[0, :, 0, 3:5, 5:7] = 1.0  # in the middle
    video[0, :, 1, 3:5, 1:3] = 1.0  # at column 2 begins the square: half of it is cut off
    assert cropped(video, 8).shape == (1, 3, 2, 8, 8)
    assert whole(video, 8).tolist() == [[True, False]]


def test_fireflies_are_what_they_say():
    world = every_firefly((4, 3, 5))
    assert world.shape == (3 * 5 * 4 * 8, 3, 4, 3, 5) and len(world.flatten(1).unique(dim=0)) == len(world)
    glows = world.abs().amax(dim=1)  # (clips, f, h, w)
    assert (glows.flatten(2).sum(-1) == GLOW).all()
    at = torch.stack([(glows.flatten(2).argmax(-1) // 5), glows.flatten(2).argmax(-1) % 5], dim=-1)
    steps = at.diff(dim=1) % torch.tensor([3, 5])
    assert (steps == steps[:, :1]).all()  # always the same move
    moves = {(0, 1): 0, (1, 0): 0, (0, 4): 0, (2, 0): 0}
    for step in steps[:, 0].tolist():
        moves[tuple(step)] += 1
    assert set(moves.values()) == {3 * 5 * 8}


def test_the_best_answer_is_the_best():
    """By Bayes' rule, spelled out for one clip; and nothing that is known to move it makes it better."""
    shape, t = (3, 2, 3), 0.6
    world, random = every_firefly(shape), torch.Generator().manual_seed(0)
    clip, eps = world[5], torch.randn(world[5].shape, generator=random)
    times = torch.full((3,), t)
    xt = mix(clip, eps, times)
    density = torch.distributions.Normal((1 - t) * world, t).log_prob(xt).sum(dim=(1, 2, 3, 4)).softmax(0)
    expected = sum(p * x for p, x in zip(density, world, strict=True))
    torch.testing.assert_close(best_answer([xt], [times])[0], (xt - expected) / t, atol=1e-4, rtol=1e-4)
    clips = fireflies(200, shape, random)
    known = [float(unknown(best_answer, clips, t, first=first).mean()) for first in ("noisy", "clean")]
    alone = float(unknown(lambda x, ts: best_answer(x, ts, alone=True), clips, t).mean())
    assert known[1] < known[0] < alone < 1
    worse = lambda x, ts: [1.1 * v for v in best_answer(x, ts)]  # noqa: E731
    assert known[0] < unknown(worse, clips, t).mean()
    dark = lambda x, ts: [xi / ti.view(-1, 1, 1) for xi, ti in zip(x, ts, strict=True)]  # noqa: E731
    torch.testing.assert_close(unknown(dark, clips, t), torch.ones(200), atol=1e-4, rtol=1e-4)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(spacetime_attention, "MANY", ((2, 2, 3), (1, 2, 2)))
    monkeypatch.setattr(spacetime_attention, "UNSEEN", ((3, 2, 2),))
    out = tmp_path / "table.json"
    arguments = ["--steps", "2", "--seeds", "1", "--clips", "3", "--out", str(out)]
    assert main(arguments) == 0
    table = json.loads(out.read_text())
    assert [row["arm"] for row in table["rows"]] == list(ARMS)
    kept = table["rows"].copy()
    table["rows"] = table["rows"][:2]
    out.write_text(json.dumps(table))
    assert main(arguments) == 0
    again = json.loads(out.read_text())["rows"]
    assert [(r["arm"], r["unknown"]) for r in again] == [(r["arm"], r["unknown"]) for r in kept]

"""What lesson 18 claims, small and with fixed seeds. The recorded table is judged as it lies in data/experiments."""

import json
import time

import pytest
import torch
from torch import nn

from course_lib.models.sora import Sora, SoraConfig, SpacetimeBlock, Text, spacetime_masks
from course_lib.nn.attention import fused_attention
from course_lib.nn.packing import grid_positions
from course_lib.nn.positions import rotary_angles
from course_lib.training.spacetime_attention import (
    ARMS,
    CONFIG,
    SHAPE,
    asked,
    best_answer,
    digit_clips,
    fireflies,
    fit,
    folded,
    table_path,
    unknown,
    whole,
)

SHAPES = ((1, 4, 4), (5, 4, 6), (9, 4, 4))


def shaken(**parts) -> Sora:
    torch.manual_seed(0)
    net = Sora(SoraConfig(latent_channels=3, d=48, depth=2, heads=4, d_text=7), **parts)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return net.eval()


def questions() -> tuple[list, list, Text]:
    """Clips of 4, 30 and 36 tokens, their times and captions."""
    g = torch.Generator().manual_seed(0)
    clips = [torch.randn(3, *shape, generator=g) for shape in SHAPES]
    times = [torch.rand(shape[0], generator=g) for shape in SHAPES]
    return (
        clips,
        times,
        Text(torch.randn(3, 4, 7, generator=g), torch.ones(3, 4).bool(), torch.randn(3, 7, generator=g)),
    )


@torch.no_grad()
def apart(net: Sora) -> float:
    """The largest difference between a packed clip and the same alone, as a share of its spread."""
    clips, times, text = questions()
    together, worst = net(clips, times, text, row=40), 0.0
    for i, packed in enumerate(together):
        alone = net(clips[i : i + 1], times[i : i + 1], Text(*(p[i : i + 1] for p in text)))[0]
        worst = max(worst, float((packed - alone).abs().max() / alone.std()))
    return worst


def strangers(ids, places, way, window):
    return [(ids >= 0)[:, :, None] & (ids >= 0)[:, None, :] | torch.eye(ids.shape[1], dtype=torch.bool)]


def numbered(places, pairs):
    line = torch.arange(places.shape[1], dtype=torch.float32).expand(places.shape[:2])
    return rotary_angles(line[..., None].expand(-1, -1, 3), pairs)


class OneTimePerRow(SpacetimeBlock):
    def forward(self, x, condition, where, *rest):
        return super().forward(x, condition, where._replace(frame=where.frame[:, :1].expand_as(where.frame)), *rest)


def still(ids, places, way, window):
    return spacetime_masks(ids, places, "factorised")[:1]


def test_packed_is_alone_and_the_proof_can_fail():
    assert apart(shaken()) < 1e-4
    assert apart(shaken(masks=strangers)) > 0.1 and apart(shaken(block=OneTimePerRow)) > 0.1
    # wrong in another way, and alike wherever a clip lies
    assert apart(shaken(masks=still)) < 1e-4 and apart(shaken(angles=numbered)) < 1e-3


@torch.no_grad()
def test_padding_that_is_seen_moves_answers():
    """And padding that sees nobody gives no nan, since the fused kernel answers 0 there."""
    clips, times, text = questions()
    rules = {
        "right": spacetime_masks,
        "seen": lambda ids, *a: [m | (ids < 0)[:, None, :] for m in spacetime_masks(ids, *a)],
        "mute": lambda ids, *a: [m & (ids >= 0)[:, :, None] for m in spacetime_masks(ids, *a)],
    }
    for name, rule in rules.items():
        net = shaken(masks=rule)
        a, b = (net(clips, times, text, row=row)[1] for row in (70, 40))  # all in one row; the second beside padding
        assert b.isfinite().all() and ((a - b).abs().max() > 1e-3) == (name == "seen")


@pytest.mark.parametrize("frames", [1, 4])
def test_pairs(frames):
    """The formulas of the lesson, counted in the masks."""
    h = w = 4
    s, m = h * w, 2
    ids, places = torch.zeros(1, frames * s, dtype=torch.long), grid_positions((frames, h, w))[None]
    count = lambda way: [int(mask.sum()) for mask in spacetime_masks(ids, places, way, m)]  # noqa: E731
    assert count("joint") == [(frames * s) ** 2]
    assert count("factorised") == [frames * s**2, s * frames**2]
    assert count("windowed") == [frames * s**2, s * m * m * frames**2]


@torch.no_grad()
def test_a_mask_saves_nothing_and_a_fold_does():
    grid = (9, 12, 12)
    n = 9 * 144
    q, k, v = torch.randn(3, 1, 6, n, 32, generator=torch.Generator().manual_seed(0))
    hide = spacetime_masks(torch.zeros(1, n, dtype=torch.long), grid_positions(grid)[None], "factorised")[0][:, None]

    def seconds(run) -> float:
        taken = []
        for _ in range(7):
            began = time.process_time()
            run()
            taken.append(time.process_time() - began)
        return min(taken)

    masked = seconds(lambda: fused_attention(q, k, v, hide))
    assert masked > 0.7 * seconds(lambda: fused_attention(q, k, v))
    assert masked > 2 * seconds(lambda: folded(q, k, v, grid, "factorised", 0))


def test_what_a_crop_shows():
    wide = digit_clips(60, (17, 48, 96), seed=3)
    square = digit_clips(20, (17, 48, 48), seed=3)
    assert whole(square, 48).all()
    assert whole(wide, 48).float().mean() < 0.75 and whole(wide, 48).all(1).float().mean() < 0.5


def test_floors_of_the_firefly():
    """Other frames tell much, and so does a known first frame; a single frame at t = 0.7 hardly anything."""
    clips = fireflies(100, SHAPE, torch.Generator().manual_seed(1))
    alone = unknown(lambda noisy, times: best_answer(noisy, times, alone=True), clips, 0.7).mean()
    both = [unknown(best_answer, clips, 0.7, first=first).mean() for first in ("noisy", "clean")]
    assert alone > 0.85 and 0.35 < both[0] < 0.7 and both[1] < 0.25


def test_a_known_first_frame_helps_and_more_so_if_the_network_is_told():
    torch.manual_seed(0)
    net = Sora(CONFIG)
    for _ in fit(net, steps=150):
        pass
    net.eval()
    clips = fireflies(100, SHAPE, torch.Generator().manual_seed(2))
    asks = ({}, {"first": "clean"}, {"first": "clean", "told": False})
    nothing, told, silent = (unknown(asked(net), clips, 0.7, **ask) for ask in asks)
    assert told.mean() < nothing.mean() - 0.08
    assert (silent - told).mean() > 2 * (silent - told).std() / 10


def table() -> dict:
    return json.loads(table_path().read_text(encoding="utf-8"))


def mean_of(found: dict, arm: str, shape: str, what: str) -> float:
    numbers = [row["unknown"][shape][what] for row in found["rows"] if row["arm"] == arm]
    return sum(numbers) / len(numbers)


def test_recorded_looking_at_other_frames_pays():
    found, known = table(), "first frame known"
    assert found["command"].startswith("python -m course_lib.training.spacetime_attention")
    assert {row["arm"] for row in found["rows"]} == set(ARMS)
    for shape in ("5 x 3 x 3", "9 x 3 x 3"):
        floor, control = found["best, frames alone"][shape][known], mean_of(found, "frames alone", shape, known)
        best = min(mean_of(found, arm, shape, known) for arm in ("joint", "factorised", "windowed"))
        assert control > floor - 0.02 and best < floor - 0.1 and best > found["best"][shape][known]


def test_recorded_shapes_that_were_seen_are_known_better():
    """A new pair of a known length and a known width is no harm; a new height is, to both networks."""
    found, what = table(), "t = 0.5"
    many, one = ({s: mean_of(found, arm, s, what) for s in found["best"]} for arm in ("joint", "joint, one shape"))
    assert many["5 x 3 x 4"] < one["5 x 3 x 4"] - 0.05 and many["9 x 3 x 4"] < one["9 x 3 x 4"] - 0.1
    assert many["9 x 3 x 4"] < many["5 x 3 x 4"] + 0.1
    assert many["5 x 4 x 4"] > many["5 x 3 x 4"] + 0.2 and one["5 x 4 x 4"] > one["5 x 3 x 4"] + 0.2

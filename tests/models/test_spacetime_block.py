"""The parts of the generator's network that lesson 18 takes out of it, against slow loops."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from course_lib.models.sora import WAYS, Sora, SoraConfig, SpacetimeBlock, Text, Where, clip_by_clip, spacetime_masks
from course_lib.nn.attention import attention
from course_lib.nn.packing import block_mask, grid_positions
from course_lib.nn.positions import rotate

GRIDS = ((2, 3, 5), (1, 4, 2), (3, 2, 2))


def row_of_clips(n: int = 53) -> tuple[Tensor, Tensor]:
    """Three clips and padding, all tokens mixed: ids (1, n) and places (1, n, 3)."""
    g = torch.Generator().manual_seed(0)
    ids = torch.cat([torch.full((len(grid_positions(grid)),), i) for i, grid in enumerate(GRIDS)])
    places = torch.cat([grid_positions(grid) for grid in GRIDS])
    more = n - len(ids)
    ids, places = torch.cat([ids, torch.full((more,), -1)]), torch.cat([places, torch.full((more, 3), 1.0)])
    order = torch.randperm(n, generator=g)
    return ids[order][None], places[order][None]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", [1, 2, 3])
def test_masks_token_by_token(way, window):
    ids, places = row_of_clips()
    near = {
        "all": lambda p, q: True,
        "frame": lambda p, q: p[0] == q[0],
        "place": lambda p, q: p[1:] == q[1:],
        "window": lambda p, q: (p[1] // window, p[2] // window) == (q[1] // window, q[2] // window),
    }
    turns = {"joint": ["all"], "factorised": ["frame", "place"], "windowed": ["frame", "window"]}[way]
    masks = spacetime_masks(ids, places, way, window)
    assert [m.dtype for m in masks] == [torch.bool] * len(turns)
    who, at = ids[0].tolist(), places[0].tolist()
    for mask, turn in zip(masks, turns, strict=True):
        for i, j in itertools.product(range(len(who)), repeat=2):
            assert mask[0, i, j] == (i == j or (who[i] == who[j] >= 0 and near[turn](at[i], at[j])))


def test_bad_ways_and_windows_are_named():
    ids, places = row_of_clips()
    with pytest.raises(ValueError, match="sideways"):
        spacetime_masks(ids, places, "sideways")
    with pytest.raises(ValueError, match="window=0"):
        spacetime_masks(ids, places, "windowed", 0)


def test_each_clip_reads_its_own_caption_wherever_its_tokens_lie():
    g = torch.Generator().manual_seed(1)
    clip = torch.tensor([[2, -1, 0, 2, 0], [1, 1, -1, 1, -1]])
    x, words = torch.randn(2, 5, 7, generator=g), torch.randn(5, 3, 7, generator=g)  # clips 3 and 4 have no tokens here
    keep = torch.arange(3) < torch.tensor([1, 3, 2, 1, 2])[:, None]
    read = lambda tokens, told, there: tokens + (told * there[..., None]).sum(1, keepdim=True)  # noqa: E731
    out = clip_by_clip(read, x, clip, words, keep)
    for b, i in itertools.product(range(2), range(5)):
        k = int(clip[b, i])
        expected = x[b, i] + words[k][keep[k]].sum(0) if k >= 0 else torch.zeros(7)
        torch.testing.assert_close(out[b, i], expected)


def test_block_clip_by_clip_and_frame_by_frame():
    """A packed block does to every clip what the formulas say, token by token."""
    torch.manual_seed(0)
    block = SpacetimeBlock(12, 3, 19)
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    ids, places = row_of_clips()
    first = torch.tensor([0, *(grid[0] for grid in GRIDS)]).cumsum(0)
    frame = torch.where(ids >= 0, first[ids.clamp(min=0)] + places[..., 0].long(), 0)
    n = ids.shape[1]
    x, condition, words = torch.randn(1, n, 12), torch.randn(int(first[-1]), 12), torch.randn(3, 4, 12)
    angles, there = torch.randn(1, n, 2), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    keep = block_mask(ids)
    out = block(x, condition, Where([keep], angles, frame, ids), keep, words, there)

    normed = lambda y: (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    part = block.attention
    for k in range(3):
        mine = ids[0] == k
        y, rows = x[:, mine], condition[frame[0, mine]]
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(rows).split(12, dim=-1)
        q, k_, v = (
            z.unflatten(-1, (3, 4)).transpose(1, 2)
            for z in part.qkv(normed(y) * (1 + scale1) + shift1).split(12, dim=-1)
        )
        rms = lambda z, s: z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * s  # noqa: E731
        q, k_ = rotate(rms(q, part.q_scale), angles[:, mine]), rotate(rms(k_, part.k_scale), angles[:, mine])
        y = y + gate1 * part.out(attention(q, k_, v)[0].transpose(1, 2).flatten(2))
        y = y + block.read(normed(y), words[k : k + 1], there[k : k + 1])
        y = y + gate2 * block.mlp(normed(y) * (1 + scale2) + shift2)
        torch.testing.assert_close(out[:, mine], y, atol=2e-5, rtol=1e-4)
    assert out.isfinite().all()


def test_parts_of_the_network_can_be_exchanged():
    """The lesson puts a learner's own parts there; each of them must really be asked."""
    asked = []

    def spy(name, part):
        return lambda *a: asked.append(name) or part(*a)

    config = SoraConfig(latent_channels=3, d=24, depth=2, heads=2, d_text=7)
    plain = Sora(config)
    own = {name: spy(name, getattr(plain, name)) for name in ("cut", "join", "angles", "masks")}
    net = Sora(config, **own)
    assert net.state_dict().keys() == plain.state_dict().keys()
    clip, text = torch.randn(3, 2, 4, 4), Text(torch.randn(1, 2, 7), torch.ones(1, 2).bool(), torch.randn(1, 7))
    net([clip], [torch.rand(2)], text)
    assert sorted(set(asked)) == ["angles", "cut", "join", "masks"]

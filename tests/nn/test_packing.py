"""Packing against loops over tokens, and against what must not depend on where in a row a token came to lie."""

import random

import pytest
import torch
import torch.nn.functional as F

from course_lib.nn.attention import attention
from course_lib.nn.packing import (
    PAD,
    FactorisedPositions,
    block_mask,
    document_attention,
    drop_tokens,
    first_fit,
    first_fit_decreasing,
    grid_positions,
    next_fit,
    pack,
    pool,
    unpack,
)

GRIDS = [(3, 5), (1, 2), (7, 2), (1, 1), (5, 3), (2, 11)]
D = 13


def sequences(grids=GRIDS, d=D):
    torch.manual_seed(0)
    places = [grid_positions(grid) for grid in grids]
    return [torch.randn(len(p), d) for p in places], places


def packed(grids=GRIDS, capacity=23, **options):
    tokens, places = sequences(grids)
    return pack(tokens, places, first_fit([len(t) for t in tokens], capacity), **options)


# ------------------------------------------------------------------------------------------------- who shares a row


def test_first_fit_by_hand():
    assert first_fit([4, 8, 1, 4, 2, 1], 10) == [[0, 2, 3, 5], [1, 4]]
    assert next_fit([4, 8, 1, 4, 2, 1], 10) == [[0], [1, 2], [3, 4, 5]]
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]
    assert first_fit([], 10) == next_fit([], 10) == first_fit_decreasing([], 10) == []
    assert first_fit([3, 3, 3], 3) == [[0], [1], [2]]


@pytest.mark.parametrize("fit", [first_fit, next_fit, first_fit_decreasing])
def test_every_sequence_lies_in_one_row_that_holds_it(fit):
    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.randint(1, 37) for _ in range(draw.randint(0, 41))]
        rows = fit(lengths, 37)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(0 < sum(lengths[i] for i in row) <= 37 for row in rows)


def test_first_fit_opens_a_row_only_when_all_are_too_full():
    draw = random.Random(1)
    lengths = [draw.randint(1, 37) for _ in range(200)]
    rows = first_fit(lengths, 37)
    for r, row in enumerate(rows):
        for i in row:
            for earlier in rows[:r]:  # nobody could have joined an earlier row when it came
                assert sum(lengths[j] for j in earlier if j < i) + lengths[i] > 37
    assert len(first_fit_decreasing(lengths, 37)) <= len(rows) < len(next_fit(lengths, 37))


@pytest.mark.parametrize("fit", [first_fit, next_fit])
def test_what_no_row_can_hold_is_refused(fit):
    with pytest.raises(ValueError, match="sequence 1 has 11 tokens"):
        fit([3, 11], 10)
    with pytest.raises(ValueError, match="sequence 2 has 0 tokens"):
        fit([3, 10, 0], 10)


# -------------------------------------------------------------------------------------------------- into rows and back


def test_unpack_undoes_pack_in_the_original_order():
    tokens, places = sequences()
    p = packed(length=29)
    assert p.tokens.shape == (len(p.ids), 29, D) and p.positions.shape == (len(p.ids), 29, 2)
    for back, original in ((unpack(p.tokens, p.ids, p.count), tokens), (unpack(p.positions, p.ids, p.count), places)):
        assert len(back) == len(original)
        for a, b in zip(back, original, strict=True):
            assert torch.equal(a, b)


def test_padding_has_an_id_of_its_own():
    p = packed()
    pad = p.ids == PAD
    assert pad.any() and not p.tokens[pad].any() and not p.positions[pad].any()
    lengths = torch.tensor([h * w for h, w in GRIDS])
    assert torch.equal(torch.bincount(p.ids[~pad]), lengths)
    assert p.padding == pytest.approx(1 - lengths.sum().item() / p.ids.numel())


def test_packing_refuses_what_does_not_fit():
    tokens, places = sequences()
    with pytest.raises(ValueError, match="each of the 6 sequences once"):
        pack(tokens, places, [[0, 1], [2, 3, 4]])
    with pytest.raises(ValueError, match="each of the 6 sequences once"):
        pack(tokens, places, [[0, 1, 5], [2, 3, 4, 5]])
    with pytest.raises(ValueError, match="together"):
        pack(tokens, [p[1:] for p in places], [[0, 1, 5], [2, 3, 4]])
    with pytest.raises(ValueError, match="more than length=20"):
        packed(length=20)


def test_videos_pack_beside_each_other_too():
    p = packed([(2, 3, 5), (1, 1, 7), (3, 2, 2)], capacity=31)
    assert p.positions.shape[-1] == 3
    assert torch.equal(unpack(p.positions, p.ids, 3)[0], grid_positions((2, 3, 5)))


# --------------------------------------------------------------------------------------- each sequence on its own


def test_mask_against_a_loop():
    ids = torch.tensor([[0, 0, 1, 1, 1, PAD], [2, 3, 2, PAD, 3, PAD]])
    keep = block_mask(ids)
    assert keep.dtype == torch.bool
    for b in range(2):
        for i in range(6):
            for j in range(6):
                expected = i == j or (ids[b, i] == ids[b, j] and ids[b, i] != PAD)
                assert keep[b, i, j].item() == bool(expected)


def test_attention_in_a_row_equals_attention_alone():
    p = packed()
    q, k, v = (torch.randn(3, *p.ids.shape, 2, 5).transpose(2, 3)).unbind(0)
    together = attention(q, k, v, block_mask(p.ids)[:, None])[0].transpose(1, 2).flatten(2)
    parts = [unpack(x.transpose(1, 2).flatten(2), p.ids, p.count) for x in (q, k, v)]
    for i, one in enumerate(unpack(together, p.ids, p.count)):
        a, b, c = (part[i].unflatten(-1, (2, 5)).transpose(0, 1)[None] for part in parts)
        torch.testing.assert_close(one, attention(a, b, c)[0][0].transpose(0, 1).flatten(1))


def test_flex_attention_computes_the_same():
    p = packed()
    q, k, v = torch.randn(3, len(p.ids), 2, p.ids.shape[1], 16)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=block_mask(p.ids)[:, None])
    with pytest.warns(UserWarning, match=r"without torch\.compile"):
        out = document_attention(q, k, v, p.ids)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_nested_tensors_compute_the_same():
    tokens, _ = sequences(d=16)
    rows = first_fit([len(t) for t in tokens], 23)
    p = pack(tokens, sequences()[1], rows)
    x = p.tokens.unflatten(-1, (2, 8)).transpose(1, 2)
    together = F.scaled_dot_product_attention(x, x, x, attn_mask=block_mask(p.ids)[:, None]).transpose(1, 2).flatten(2)
    ragged = torch.nested.nested_tensor([t.unflatten(-1, (2, 8)) for t in tokens], layout=torch.jagged).transpose(1, 2)
    theirs = F.scaled_dot_product_attention(ragged, ragged, ragged).transpose(1, 2)
    for ours, other in zip(unpack(together, p.ids, p.count), theirs.unbind(), strict=True):
        torch.testing.assert_close(ours, other.flatten(1), rtol=0, atol=1e-5)


def test_pool_against_a_loop_wherever_the_tokens_lie():
    tokens, _ = sequences()
    p = packed()
    means = torch.stack([t.mean(0) for t in tokens])
    torch.testing.assert_close(pool(p.tokens + (p.ids == PAD)[..., None] * 1e6, p.ids, p.count), means)
    order = torch.randperm(p.ids.shape[1])
    torch.testing.assert_close(pool(p.tokens[:, order], p.ids[:, order], p.count), means)
    assert not pool(p.tokens, p.ids, p.count + 2)[-2:].any()  # images without tokens


def test_gradients_stay_inside_an_image():
    p = packed()
    tokens = p.tokens.clone().requires_grad_()
    x = tokens[:, None]
    out = pool(attention(x, x, x, block_mask(p.ids)[:, None])[0][:, 0], p.ids, p.count)
    for i in range(p.count):
        (grad,) = torch.autograd.grad(out[i].sum(), tokens, retain_graph=True)
        touched = grad.abs().sum(-1) > 0
        assert torch.equal(touched, p.ids == i)


# ---------------------------------------------------------------------------------------------- places and dropping


@pytest.mark.parametrize("grid", [(3, 5), (1, 4), (2, 3, 5), (7,)])
def test_positions_count_like_an_odometer(grid):
    index = torch.arange(torch.tensor(grid).prod().item())
    expected = torch.stack(torch.unravel_index(index, grid), dim=-1)
    assert torch.equal(grid_positions(grid), expected.float())
    torch.testing.assert_close(grid_positions(grid, fractional=True), expected / torch.tensor(grid))


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 0\)"):
        grid_positions((3, 0))


def test_tables_are_read_row_by_row_and_between_rows():
    model = FactorisedPositions((5, 7), D)
    down, across = model.tables
    places = grid_positions((5, 7))
    expected = (down[:, None] + across[None]).flatten(0, 1)
    torch.testing.assert_close(model(places), expected)
    between = torch.tensor([[[1.25, 6.0], [4.0, 0.5]]])
    by_hand = torch.stack([0.75 * down[1] + 0.25 * down[2] + across[6], down[4] + (across[0] + across[1]) / 2])
    torch.testing.assert_close(model(between), by_hand[None])


def test_fractions_reach_from_the_first_row_to_the_last():
    model = FactorisedPositions((5, 7), D, fractional=True)
    down, across = model.tables
    corners = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    expected = torch.stack([down[0] + across[6], down[4] + across[0], down[2] + across[3]])
    torch.testing.assert_close(model(corners), expected)
    fine, coarse = (model(grid_positions((n, n), fractional=True)).unflatten(0, (n, n)) for n in (6, 3))
    torch.testing.assert_close(fine[::2, ::2], coarse)  # every second patch of twice the resolution


def test_dropped_tokens_take_their_positions_along():
    tokens = torch.arange(77.0).view(11, 7)
    places = torch.stack([tokens[:, 0], -tokens[:, 0]], dim=-1)
    kept, at = drop_tokens(tokens, places, 0.4, generator=torch.Generator().manual_seed(3))
    assert len(kept) == 11 - 4 and torch.equal(kept[:, 0], at[:, 0])
    assert (kept[1:, 0] > kept[:-1, 0]).all()
    again = drop_tokens(tokens, places, 0.4, generator=torch.Generator().manual_seed(3))[0]
    other = drop_tokens(tokens, places, 0.4, generator=torch.Generator().manual_seed(4))[0]
    assert torch.equal(kept, again) and not torch.equal(kept, other)


def test_one_token_always_stays_and_evaluation_keeps_all():
    tokens, places = torch.randn(5, 3), torch.randn(5, 2)
    assert len(drop_tokens(tokens, places, 1.0)[0]) == 1
    assert torch.equal(drop_tokens(tokens[:1], places[:1], 0.9)[0], tokens[:1])
    g = torch.Generator().manual_seed(0)
    before = g.get_state()
    assert torch.equal(drop_tokens(tokens, places, 0.9, training=False, generator=g)[0], tokens)
    assert torch.equal(g.get_state(), before)
    with pytest.raises(ValueError, match=r"rate=1\.5"):
        drop_tokens(tokens, places, 1.5, training=False)


def test_every_token_is_dropped_equally_often():
    tokens, places, g = torch.arange(5.0)[:, None], torch.zeros(5, 2), torch.Generator().manual_seed(0)
    seen = torch.cat([drop_tokens(tokens, places, 0.6, generator=g)[0][:, 0] for _ in range(2000)]).long()
    assert (torch.bincount(seen, minlength=5) / 2000 - 0.4).abs().max() < 0.05

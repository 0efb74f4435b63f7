"""NaViT: packed images equal images alone, and images alone equal timm's NaFlexVit with the same weights."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from course_lib.models.navit import NaViT, NormedAttention, pack_images, qk_norm_block
from course_lib.models.vit import vit_block
from course_lib.nn.attention import MultiHeadAttention, attention
from course_lib.nn.packing import first_fit_decreasing, next_fit, unpack
from course_lib.nn.patches import patchify_image

PATCH, CHANNELS, CLASSES, D, HEADS, LAYERS, D_FF = 3, 2, 7, 20, 5, 2, 40
SIZES = [(6, 15), (3, 3), (21, 6), (9, 12), (3, 18), (12, 12)]  # pixels: 10, 1, 14, 12, 6 and 16 patches
CAPACITY = 23


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(model: nn.Module, std: float = 0.3) -> nn.Module:
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model.eval()


def small(**options) -> NaViT:
    return NaViT(PATCH, CHANNELS, CLASSES, D, HEADS, LAYERS, D_FF, grid=(7, 8), **options)


def pictures(sizes=SIZES) -> list[torch.Tensor]:
    return [torch.randn(CHANNELS, *size) for size in sizes]


def run(model, images, capacity=CAPACITY, **options):
    return model(pack_images(images, PATCH, capacity, model.fractional, **options))


# ------------------------------------------------------------------------------------------------- as an oracle


def plain(model, image):
    """One image through the same weights, with no packing, no mask and no pooling by number."""
    h, w = image.shape[1] // PATCH, image.shape[2] // PATCH
    down, across = model.positions.tables
    if model.fractional:
        at = lambda table, n: torch.stack(  # noqa: E731
            [_between(table, i / n * (len(table) - 1)) for i in range(n)]
        )
    else:
        at = lambda table, n: table[:n]  # noqa: E731
    x = model.to_token(patchify_image(image[None], PATCH)) + (at(down, h)[:, None] + at(across, w)[None]).flatten(0, 1)
    for block in model.blocks:
        x = block(x)
    return model.head(model.norm(x.mean(1)))[0]


def _between(table, place):
    low = math.floor(place)
    part = place - low
    return table[low] * (1 - part) + (table[low + 1] * part if part else 0)


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("block", [vit_block, qk_norm_block])
@pytest.mark.parametrize("full", [False, True])
def test_packed_equals_alone(fractional, block, full):
    model = randomise(small(fractional=fractional, block=block))
    images = pictures()
    expected = torch.stack([plain(model, image) for image in images])
    torch.testing.assert_close(run(model, images, full=full), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows_of", [next_fit, first_fit_decreasing])
@pytest.mark.parametrize("capacity", [16, 59, 101])
def test_who_shares_a_row_does_not_matter(rows_of, capacity):
    model = randomise(small())
    images = pictures()
    torch.testing.assert_close(run(model, images, capacity, rows_of=rows_of), run(model, images), rtol=0, atol=2e-5)


def test_equals_timms_naflexvit():
    """One image per row with padding, which is how NaFlex runs; positions of ours where its tables have those sizes."""
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    cfg = NaFlexVitCfg(
        patch_size=PATCH,
        embed_dim=D,
        depth=LAYERS,
        num_heads=HEADS,
        mlp_ratio=D_FF / D,
        pos_embed="factorized",
        pos_embed_grid_size=(7, 8),
        global_pool="avg",
        fc_norm=True,
    )
    theirs = randomise(NaFlexVit(cfg, in_chans=CHANNELS, num_classes=CLASSES))
    weights, ours = theirs.state_dict(), small()
    found = {
        "positions.tables.0": weights["embeds.pos_embed_y"][0],
        "positions.tables.1": weights["embeds.pos_embed_x"][0],
    }
    names = {"attn.proj": "attention.to_out", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "norm1": "norm1"}
    for kind in ("weight", "bias"):
        outside = {"to_token": "embeds.proj", "norm": "fc_norm", "head": "head"}
        found |= {f"{our}.{kind}": weights[f"{name}.{kind}"] for our, name in outside.items()}
        for i in range(LAYERS):
            inside = {**names, "norm2": "norm2"}.items()
            found |= {f"blocks.{i}.{our}.{kind}": weights[f"blocks.{i}.{name}.{kind}"] for name, our in inside}
            thirds = weights[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            found |= {f"blocks.{i}.attention.to_{x}.{kind}": third for x, third in zip("qkv", thirds, strict=True)}
    ours.load_state_dict(found)
    image = torch.randn(CHANNELS, 7 * PATCH, 8 * PATCH)  # as large as the tables, which it would stretch otherwise
    tokens = patchify_image(image[None], PATCH)
    places = torch.cartesian_prod(torch.arange(7), torch.arange(8))[None]
    padded, at = nn.functional.pad(tokens, (0, 0, 0, 5)), nn.functional.pad(places, (0, 0, 0, 5))
    valid = torch.arange(61)[None] < 56
    expected = theirs(padded, patch_coord=at, patch_valid=valid)
    torch.testing.assert_close(run(ours, [image], 61, full=True), expected, rtol=0, atol=2e-5)


# ---------------------------------------------------------------------------------------------- nothing leaks


def test_no_gradient_from_one_image_to_another():
    model = randomise(small())
    images = [image.requires_grad_() for image in pictures()]
    logits = run(model, images)
    for i in range(len(images)):
        grads = torch.autograd.grad(logits[i].sum(), images, retain_graph=True)
        assert [bool(g.any()) for g in grads] == [j == i for j in range(len(images))]


def test_padding_is_never_read():
    model = randomise(small())
    packed = pack_images(pictures(), PATCH, CAPACITY, full=True)
    expected = model(packed)
    packed.tokens[packed.ids < 0] = 1e3
    assert torch.equal(model(packed), expected)


def test_a_mask_with_padding_zero_fails_only_where_there_is_padding():
    """The trap of section 9: ids padded with 0 make padding a part of the first image."""
    images, equal = pictures(), pictures([(6, 12)] * 4)
    model = randomise(small())

    def with_zero(images, capacity):
        packed = pack_images(images, PATCH, capacity)
        wrong = packed.ids.clamp(min=0)
        return model(type(packed)(packed.tokens, wrong, packed.positions, packed.count)) - model(packed)

    assert not with_zero(equal, 16).any()
    moved = with_zero(images, CAPACITY).abs().amax(-1) > 1e-3
    assert moved.tolist() == [True] + [False] * 5


# ----------------------------------------------------------------------------------------------- data and beginnings


def test_dropping_keeps_tokens_with_their_places():
    images = pictures()
    whole = pack_images(images, PATCH, CAPACITY)
    g = torch.Generator().manual_seed(1)
    some = pack_images(images, PATCH, CAPACITY, rates=[0.5, 0.5, 0.0, 0.25, 0.9, 1.0], generator=g)
    kept = unpack(torch.cat([some.tokens, some.positions], -1), some.ids, some.count)
    every = unpack(torch.cat([whole.tokens, whole.positions], -1), whole.ids, whole.count)
    assert [len(k) for k in kept] == [5, 1, 14, 9, 1, 1]
    for few, many in zip(kept, every, strict=True):
        assert all((token == many).all(-1).any() for token in few)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="7 x 6 pixels"):
        pack_images(pictures([(7, 6)]), PATCH, CAPACITY)
    with pytest.raises(ValueError, match="sequence 1 has 14 tokens"):
        pack_images(pictures([(3, 3), (21, 6)]), PATCH, 13)


def test_first_loss_is_a_uniform_guess_and_everything_learns():
    model = small()
    logits = run(model, pictures())
    assert not logits.any()
    nn.init.normal_(model.head.weight)
    run(model, pictures()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_qk_norm_bounds_the_scores():
    inner = NormedAttention(4, attend=attention)
    q, k, v = torch.randn(3, 2, 3, 11, 4)
    out, weights = inner(q, k, v)
    torch.testing.assert_close(inner(1000 * q, 7 * k, v)[1], weights, rtol=0, atol=1e-3)
    normed = [(x - x.mean(-1, keepdim=True)) / x.var(-1, correction=0, keepdim=True).add(1e-6).sqrt() for x in (q, k)]
    torch.testing.assert_close(out, attention(*normed, v)[0])
    scores = normed[0] @ normed[1].transpose(-2, -1) / 2
    assert scores.abs().max() <= math.sqrt(4) + 1e-4  # sqrt(d) sqrt(d) / sqrt(d)
    block = qk_norm_block(D, HEADS, D_FF)
    assert isinstance(block.attention, MultiHeadAttention)


def test_blocks_can_be_swapped():
    """A learner's attention goes in through ``block``."""
    model, images = randomise(small()), pictures()
    slow = small(block=lambda d, h, f: vit_block(d, h, f))
    slow.load_state_dict(model.state_dict())
    for block in slow.blocks:
        block.attention.attend = partial(attention)
    torch.testing.assert_close(run(slow.eval(), images), run(model, images), rtol=0, atol=2e-5)

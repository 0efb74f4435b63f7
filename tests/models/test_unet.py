"""The U-Nets against loops, against the paper's numbers, and against diffusers' blocks with the same weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.models.unet import (
    DiffusionUNet,
    DoubleConv,
    ImageAttention,
    ResBlock,
    UNet,
    Upsample,
    crop_concat,
    original_unet,
    transposed_convolution,
)
from course_lib.nn.attention import attention_maps


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(model: nn.Module) -> nn.Module:
    """Move every parameter away from its start: biases of 0 and norms of 1 hide mistakes."""
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


# ----------------------------------------------------------------------------------------------- loops over pixels


def loop_conv(x, weight, bias):
    """A valid convolution of one picture, (c, h, w), as a sum over every pixel of every window."""
    c_out, _, k, _ = weight.shape
    out = x.new_empty(c_out, x.shape[1] - k + 1, x.shape[2] - k + 1)
    for o in range(c_out):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                out[o, i, j] = (x[:, i : i + k, j : j + k] * weight[o]).sum() + bias[o]
    return out


def loop_pool(x):
    out = x.new_empty(len(x), x.shape[1] // 2, x.shape[2] // 2)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = torch.stack([x[:, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)]).amax(0)
    return out


def loop_up(x, weight, bias):
    """Each pixel becomes a 2 x 2 square."""
    out = x.new_empty(weight.shape[1], 2 * x.shape[1], 2 * x.shape[2])
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = weight[:, :, i % 2, j % 2].T @ x[:, i // 2, j // 2] + bias
    return out


def loop_unet(model, x):
    """A valid U-Net of two levels on one picture, without any of the model's own operations."""

    def double(part, x):
        return loop_conv(loop_conv(x, part[0].weight, part[0].bias).relu(), part[2].weight, part[2].bias).relu()

    kept = []
    for down in model.downs:
        x = double(down, x)
        kept.append(x)
        x = loop_pool(x)
    x = double(model.bottom, x)
    for i, (up, convs) in enumerate(zip(model.ups, model.convs, strict=True)):
        x, skip = loop_up(x, up.weight, up.bias), kept[len(kept) - 1 - i]
        dy, dx = (skip.shape[1] - x.shape[1]) // 2, (skip.shape[2] - x.shape[2]) // 2
        skip = torch.stack([skip[:, dy + r] for r in range(x.shape[1])], 1)
        skip = torch.stack([skip[:, :, dx + c] for c in range(x.shape[2])], 2)
        x = double(convs, torch.cat([skip, x]))
    return loop_conv(x, model.to_logits.weight, model.to_logits.bias)


def test_the_whole_network_equals_loops_over_pixels():
    model = randomise(UNet(2, 3, base=2, levels=2, padding=0)).double()
    x = torch.randn(2, 44, 48, dtype=torch.float64)
    torch.testing.assert_close(model(x[None])[0], loop_unet(model, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("k", "stride"), [(3, 2), (2, 2), (2, 3), (5, 1), (1, 1), (1, 3), (4, 2)])
def test_transposed_convolution_equals_torch(k, stride):
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 5, k, k, dtype=torch.float64, requires_grad=True)
    ours, theirs = transposed_convolution(x, weight, stride), F.conv_transpose2d(x, weight, stride=stride)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    reading = torch.randn_like(ours)
    for mine, other in zip(
        *(torch.autograd.grad((y * reading).sum(), (x, weight)) for y in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


def test_it_is_the_transpose_of_a_convolution():
    """<conv(a), x> = <a, transposed(x)>: which is where the name comes from."""
    a, x, weight = (torch.randn(s, dtype=torch.float64) for s in ((1, 5, 13, 9), (1, 3, 6, 4), (3, 5, 3, 3)))
    forward = (F.conv2d(a, weight, stride=2) * x).sum()
    torch.testing.assert_close(forward, (a * transposed_convolution(x, weight, 2)).sum())


def test_uneven_overlaps_paint_a_checkerboard_and_even_ones_do_not():
    ones = torch.ones(1, 1, 5, 5)
    row = transposed_convolution(ones, torch.ones(1, 1, 3, 3), 2)[0, 0, 4, 2:7]
    assert row.tolist() == [4, 2, 4, 2, 4]
    assert (transposed_convolution(ones, torch.ones(1, 1, 2, 2), 2) == 1).all()
    repeated = F.conv2d(F.interpolate(ones, scale_factor=2.0), torch.ones(1, 1, 3, 3))
    assert (repeated == 9).all()


def test_transposed_convolution_refuses_a_stride_below_one():
    with pytest.raises(ValueError, match="stride=0"):
        transposed_convolution(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3), 0)


def test_the_crop_is_the_middle_and_comes_first():
    """On an index picture every pixel says where it came from."""
    height, width, h, w = 11, 14, 5, 7
    skip = (torch.arange(height)[:, None] * width + torch.arange(width)).float()[None, None]
    up = -torch.ones(1, 2, h, w)
    both = crop_concat(up, skip)
    assert both.shape == (1, 3, h, w)
    assert both[0, 0, 0, 0] == 3 * width + 3 and both[0, 0, -1, -1] == 7 * width + 9
    assert (both[:, 1:] == -1).all()
    with pytest.raises(ValueError, match="5 x 7 pixels out of a skip of 4 x 9"):
        crop_concat(up, torch.zeros(1, 1, 4, 9))


# ---------------------------------------------------------------------------------------------- the paper's numbers


def shapes_of(model, x):
    seen = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[1:])))
        for m in model.modules()
        if isinstance(m, DoubleConv | nn.ConvTranspose2d) or m is model.to_logits
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_every_shape_of_figure_1():
    with torch.device("meta"):
        shapes = shapes_of(original_unet(), torch.empty(1, 1, 572, 572))
    sizes = [(c, s, s) for c, s in (
        (64, 568), (128, 280), (256, 136), (512, 64), (1024, 28),
        (512, 56), (512, 52), (256, 104), (256, 100), (128, 200), (128, 196), (64, 392), (64, 388), (2, 388),
    )]  # fmt: skip
    assert shapes == sizes


def test_parameters_of_the_paper_in_closed_form():
    """Weights and biases of every convolution of figure 1, counted from its channels."""

    def conv(c_in, c_out, k):
        return c_in * c_out * k * k + c_out

    widths = [64, 128, 256, 512, 1024]
    total = sum(conv(i, o, 3) + conv(o, o, 3) for i, o in zip([1, *widths], widths, strict=False))
    total += sum(conv(2 * c, c, 2) + conv(2 * c, c, 3) + conv(c, c, 3) for c in widths[:-1])
    total += conv(64, 2, 1)
    with torch.device("meta"):
        model = original_unet()
    assert sum(p.numel() for p in model.parameters()) == total == 31_030_658
    # 23 convolutional layers in total (section 2)
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules()) == 23


def test_initial_weights_keep_the_size_of_features():
    """Section 3: normal with standard deviation sqrt(2 / N)."""
    model = UNet(1, 2, base=32, levels=2)
    assert model.bottom[2].weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.05)
    assert model.ups[0].weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert all(not p.any() for n, p in model.named_parameters() if n.endswith("bias"))


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_with_padding_the_size_stays(levels):
    x = torch.randn(2, 3, 16, 24)
    assert UNet(3, 5, base=2, levels=levels)(x).shape == (2, 5, 16, 24)


@pytest.mark.parametrize(("size", "padding"), [((7, 8), 1), ((8, 6), 1), ((46, 44), 0)])
def test_sizes_that_cannot_be_halved_are_refused(size, padding):
    with pytest.raises(ValueError, match="cannot be halved at level"):
        UNet(1, 1, base=2, levels=2, padding=padding)(torch.randn(1, 1, *size))


def test_a_unet_moves_with_its_picture():
    """A shift by a multiple of 2**levels shifts the result: nothing knows where it is."""
    model = randomise(UNet(1, 2, base=3, levels=2, padding=0))
    x = torch.randn(1, 1, 60, 60)
    a, b = model(x[..., :52, :52]), model(x[..., 4:56, 4:56])
    torch.testing.assert_close(a[..., 4:, 4:], b[..., :-4, :-4], rtol=1e-4, atol=1e-4)


def test_skips_are_the_only_way_for_single_pixels():
    """With a silenced bottom the top skip alone still carries pixel (i, j) to pixel (i, j)."""
    model = UNet(1, 1, base=4, levels=2, join=lambda up, skip: crop_concat(0 * up, skip))
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    model(x)[0, 0, 3, 5].backward()
    assert x.grad[0, 0, 3, 5] != 0
    assert not x.grad[0, 0, :, 0].any()  # two and two convolutions reach four pixels


# ---------------------------------------------------------------------------------------------------- diffusion blocks


@pytest.mark.parametrize(("c_in", "c_out"), [(12, 12), (12, 20)])
def test_res_block_equals_diffusers(c_in, c_out):
    resnet = pytest.importorskip("diffusers.models.resnet")
    theirs = randomise(resnet.ResnetBlock2D(in_channels=c_in, out_channels=c_out, temb_channels=7, groups=4, eps=1e-5))
    ours = ResBlock(c_in, c_out, 7, groups=4)
    names = dict(norm1="norm1", conv1="conv1", time="time_emb_proj", norm2="norm2", conv2="conv2")
    if c_in != c_out:
        names["shortcut"] = "conv_shortcut"
    for mine, other in names.items():
        getattr(ours, mine).load_state_dict(getattr(theirs, other).state_dict())
    x, t = torch.randn(3, c_in, 5, 11), torch.randn(3, 7)
    torch.testing.assert_close(ours(x, t), theirs(x, t), rtol=0, atol=1e-5)


def test_upsample_equals_diffusers():
    upsampling = pytest.importorskip("diffusers.models.upsampling")
    theirs, ours = randomise(upsampling.Upsample2D(5, use_conv=True)), Upsample(5)
    ours.conv.load_state_dict(theirs.conv.state_dict())
    x = torch.randn(2, 5, 3, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_image_attention_equals_diffusers():
    processor = pytest.importorskip("diffusers.models.attention_processor")
    theirs = randomise(
        processor.Attention(16, heads=4, dim_head=4, bias=True, norm_num_groups=8, residual_connection=True, eps=1e-5)
    )
    ours = ImageAttention(16, heads=4)
    ours.norm.load_state_dict(theirs.group_norm.state_dict())
    pairs = dict(to_q=theirs.to_q, to_k=theirs.to_k, to_v=theirs.to_v, to_out=theirs.to_out[0])
    for name, part in pairs.items():
        getattr(ours.self_attention, name).load_state_dict(part.state_dict())
    x = torch.randn(2, 16, 5, 3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_a_new_block_is_silent_and_samples_do_not_meet():
    block = ResBlock(8, 8, 5)
    x, t = torch.randn(3, 8, 4, 6), torch.randn(3, 5)
    assert torch.equal(block(x, t), x)
    block = randomise(ResBlock(8, 16, 5)).train()
    before = block(x, t)[0]
    x[1], t[2] = 0, 0
    torch.testing.assert_close(block(x, t)[0], before)


def test_a_new_attention_is_silent():
    attention = ImageAttention(16, context_dim=5)
    x = torch.randn(2, 16, 4, 3)
    assert torch.equal(attention(x, torch.randn(2, 7, 5)), x)
    with pytest.raises(ValueError, match="context_dim"):
        ImageAttention(16)(x, torch.randn(2, 7, 5))


# ------------------------------------------------------------------------------------------------------ DiffusionUNet


def small(**kw) -> DiffusionUNet:
    return DiffusionUNet(channels=3, base=8, widths=(1, 2, 4), **kw)


def xt_and_t(b=2, h=16, w=8):
    return torch.randn(b, 3, h, w), torch.rand(b)


@pytest.mark.parametrize("blocks", [1, 2])
def test_one_block_more_on_the_way_up(blocks):
    model = small(blocks=blocks, attend=(1,))
    stages = [[p for p in parts if hasattr(p, "block")] for parts in (model.downs, model.ups)]
    assert [len(s) for s in stages] == [3 * blocks, 3 * (blocks + 1)]
    assert [sum(p.attention is not None for p in s) for s in stages] == [blocks, blocks + 1]
    assert sum(not hasattr(p, "block") for p in model.downs) == 2
    xt, t = xt_and_t()
    assert model(xt, t).shape == xt.shape


def test_a_new_network_predicts_nothing_and_every_weight_learns_once_it_speaks():
    model = small(condition_dim=5, context_dim=7, attend=(1,))
    xt, t = xt_and_t()
    inputs = dict(condition=torch.randn(2, 5), context=torch.randn(2, 11, 7))
    assert not model(xt, t, **inputs).any()
    (randomise(model)(xt, t, **inputs) * torch.randn_like(xt)).sum().backward()
    # A bias on keys cannot be felt: it adds the same to all scores of a query.
    silent = [n for n, p in model.named_parameters() if not p.grad.any() and not n.endswith("to_k.bias")]
    assert not silent


@pytest.mark.parametrize("what", ["t", "condition", "context"])
def test_each_sample_follows_its_own_inputs(what):
    model = randomise(small(condition_dim=5, context_dim=7)).eval()
    xt, t = xt_and_t()
    inputs = dict(t=t, condition=torch.randn(2, 5), context=torch.randn(2, 11, 7))
    before = model(xt, **inputs)
    inputs[what] = inputs[what].clone()
    inputs[what][1] += 0.5 if what != "t" else 0.1
    after = model(xt, **inputs)
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-3)


def test_padding_of_the_context_is_never_read():
    model = randomise(small(context_dim=7))
    xt, t = xt_and_t()
    context = torch.randn(2, 5, 7)
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    before = model(xt, t, context=context, context_keep=keep)
    context[0, 3:] = 9.0
    torch.testing.assert_close(model(xt, t, context=context, context_keep=keep), before)
    torch.testing.assert_close(model(xt[:1], t[:1], context=context[:1, :3]), before[:1], rtol=1e-4, atol=1e-4)


def test_the_bottom_sees_everything():
    model = small()
    with attention_maps(model) as maps:
        model(*xt_and_t())
    assert maps["bottom.0.attention.self_attention"].shape == (2, 4, 8, 8)  # 4 x 2 places


def test_what_the_network_cannot_use_is_refused():
    model = small()
    xt, t = xt_and_t()
    with pytest.raises(ValueError, match="multiples of 4"):
        model(xt[..., :6], t)
    with pytest.raises(ValueError, match="condition_dim"):
        model(xt, t, condition=torch.randn(2, 5))
    with pytest.raises(ValueError, match="context_dim"):
        model(xt, t, context=torch.randn(2, 3, 5))


def test_it_is_cheap_where_lessons_use_it():
    assert sum(p.numel() for p in DiffusionUNet().parameters()) < 1.2e6
    assert DiffusionUNet(out_channels=2)(torch.zeros(1, 1, 32, 32), torch.zeros(1)).shape == (1, 2, 32, 32)

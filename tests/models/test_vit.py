"""ViT against torchvision's and timm's with the same weights, and against what the paper says of its first moment."""

import math

import pytest
import torch
from torch import nn

from course_lib.models.vit import ViT, attention_rollout, from_torchvision, resize_positions, vit_block
from course_lib.nn.attention import attention_maps
from course_lib.nn.patches import patchify_image, unpatchify_image

PATCH, CLASSES, D, HEADS, LAYERS, D_FF = 3, 7, 20, 5, 2, 13
SIZES = dict(d=D, heads=HEADS, layers=LAYERS, d_ff=D_FF)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(model: nn.Module, std: float = 0.3) -> nn.Module:
    """Move every parameter away from its start: a head of zeros and norms of one hide mistakes."""
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model.eval()


def small(height: int = 6, width: int = 15, channels: int = 2) -> ViT:
    return ViT((height, width), PATCH, channels, CLASSES, **SIZES)


# ------------------------------------------------------------------------------------------------- as an oracle


def test_equals_torchvision():
    from torchvision.models.vision_transformer import VisionTransformer

    theirs = randomise(VisionTransformer(15, PATCH, LAYERS, HEADS, D, D_FF, num_classes=CLASSES)).double()
    ours = from_torchvision(theirs.state_dict(), heads=HEADS).double()
    image = torch.randn(2, 3, 15, 15, dtype=torch.float64, requires_grad=True)
    expected, out = theirs(image), ours(image)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        *(torch.autograd.grad(y.sin().sum(), image)[0] for y in (out, expected)), rtol=0, atol=1e-10
    )


def test_equals_timm_for_other_channels_and_oblong_images():
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer((6, 15), PATCH, 2, CLASSES, embed_dim=D, depth=LAYERS, num_heads=HEADS, mlp_ratio=2)
    randomise(theirs)
    ours = ViT((6, 15), PATCH, 2, CLASSES, d=D, heads=HEADS, layers=LAYERS, d_ff=2 * D)
    weights = theirs.state_dict()
    found = {
        "class_token": weights["cls_token"][0, 0],
        "positions": weights["pos_embed"][0],
        "to_token.weight": weights["patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1),
        "to_token.bias": weights["patch_embed.proj.bias"],
    }
    names = {
        "attn.proj": "attention.to_out",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    for kind in ("weight", "bias"):
        found |= {f"{part}.{kind}": weights[f"{part}.{kind}"] for part in ("norm", "head")}
        for i in range(LAYERS):
            found |= {f"blocks.{i}.{our}.{kind}": weights[f"blocks.{i}.{name}.{kind}"] for name, our in names.items()}
            thirds = weights[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            found |= {f"blocks.{i}.attention.to_{x}.{kind}": third for x, third in zip("qkv", thirds, strict=True)}
    ours.load_state_dict(found)
    image = torch.randn(2, 2, 6, 15)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-5)


def test_runs_the_real_b_16_with_torchvisions_weights():
    """ImageNet's size: 1000 classes, 224 pixels, 86,567,656 weights, here with random values."""
    from torchvision.models import vit_b_16

    theirs = randomise(vit_b_16(), std=0.05)
    weights = theirs.state_dict()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs(image)
        del theirs
        ours = from_torchvision(weights).eval()
        assert sum(p.numel() for p in ours.parameters()) == 86_567_656
        out = ours(image)
    assert out.shape == (1, 1000) and out.std() > 0.05
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_published_files_have_older_names():
    """torchvision renames them while loading; the file itself says mlp.linear_1 and mlp.linear_2."""
    from torchvision.models.vision_transformer import VisionTransformer

    theirs = randomise(VisionTransformer(6, PATCH, LAYERS, HEADS, D, D_FF, num_classes=CLASSES))
    image = torch.randn(2, 3, 6, 6)
    file = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): value
        for name, value in theirs.state_dict().items()
    }
    torch.testing.assert_close(from_torchvision(file, heads=HEADS)(image), theirs(image), rtol=0, atol=1e-5)


def test_weights_that_do_not_fit_are_refused():
    from torchvision.models.vision_transformer import VisionTransformer

    good = VisionTransformer(6, PATCH, LAYERS, HEADS, D, D_FF, num_classes=CLASSES).state_dict()
    with pytest.raises(ValueError, match=r"'conv_proj\.0\.weight' has no place"):
        from_torchvision({**good, "conv_proj.0.weight": torch.zeros(1)}, heads=HEADS)
    with pytest.raises(ValueError, match=r"the weights lack 'head\.bias'"):
        from_torchvision({n: v for n, v in good.items() if n != "heads.head.bias"}, heads=HEADS)
    with pytest.raises(ValueError, match="do not fit"):
        from_torchvision({n: v for n, v in good.items() if n != "encoder.ln.bias"}, heads=HEADS)


# ---------------------------------------------------------------------------------------- what the paper promises


def test_an_untrained_model_prefers_no_class():
    model = small()
    logits = model(torch.randn(5, 2, 6, 15))
    assert not logits.any()
    assert nn.functional.cross_entropy(logits, torch.arange(5)).item() == pytest.approx(math.log(CLASSES))


def test_initial_values_are_those_of_the_papers_code():
    model = ViT((60, 60), PATCH, 1, CLASSES, d=128, heads=4, layers=2, d_ff=128)
    assert not model.class_token.any()
    assert model.positions.shape == (1 + 20 * 20, 128)
    assert model.positions.mean().abs() < 0.001 and abs(model.positions.std().item() - 0.02) < 0.001
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5 and all(norm.eps == 1e-6 for norm in norms)


def test_all_tokens_reach_the_class_token_through_one_layer():
    model = randomise(small())
    image = torch.randn(1, 2, 6, 15, requires_grad=True)
    model(image).sum().backward()
    per_patch = patchify_image(image.grad, PATCH).abs().sum(-1)
    assert (per_patch > 0).all()


def shuffled(image: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return unpatchify_image(patchify_image(image, PATCH)[:, order], PATCH, *image.shape[-2:])


def test_without_positions_a_shuffled_picture_is_the_same_picture():
    model = randomise(small()).double()
    image, order = torch.randn(3, 2, 6, 15, dtype=torch.float64), torch.randperm(10)
    assert (model(image) - model(shuffled(image, order))).abs().max() > 0.01
    with torch.no_grad():
        model.positions.zero_()
    torch.testing.assert_close(model(shuffled(image, order)), model(image), rtol=0, atol=1e-12)


def test_images_of_another_shape_are_refused():
    model = small()
    with pytest.raises(ValueError, match=r"reads images of \(6, 15\), not of \(15, 6\)"):
        model(torch.randn(2, 2, 15, 6))
    with pytest.raises(ValueError, match="7 x 15 pixels does not split into squares of 3 x 3"):
        small(height=7)


def test_batch_elements_do_not_meet():
    model = randomise(small())
    images = torch.randn(11, 2, 6, 15)
    together = model(images)
    for i in range(11):
        torch.testing.assert_close(model(images[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)


def test_blocks_attend_with_biases():
    assert vit_block(D, HEADS, D_FF).attention.to_q.bias is not None


# --------------------------------------------------------------------------------------------------- positions


def test_resizing_is_linear_between_fixed_corners():
    """A ramp stays a ramp: vectors that are an affine function of the place keep being one."""
    h, w, new_h, new_w = 3, 5, 7, 2

    def ramp(rows, columns):
        y = torch.linspace(0, 1, rows)[:, None, None].expand(rows, columns, 1)
        x = torch.linspace(0, 1, columns)[None, :, None].expand(rows, columns, 1)
        return torch.cat([y, x, y - 2 * x + 3], dim=-1).flatten(0, 1)

    first = torch.randn(1, 3)
    got = resize_positions(torch.cat([first, ramp(h, w)]), (h, w), (new_h, new_w))
    torch.testing.assert_close(got, torch.cat([first, ramp(new_h, new_w)]))


def test_resizing_equals_what_the_papers_code_calls():
    """Its ``interpolate_posembed`` is scipy's zoom of order 1."""
    ndimage = pytest.importorskip("scipy.ndimage")
    table = torch.randn(1 + 3 * 4, 5, dtype=torch.float64)
    grid = table[1:].reshape(3, 4, 5).numpy()
    expected = torch.from_numpy(ndimage.zoom(grid, (7 / 3, 11 / 4, 1), order=1)).reshape(77, 5)
    torch.testing.assert_close(resize_positions(table, (3, 4), (7, 11))[1:], expected, rtol=0, atol=1e-12)


def test_a_resized_model_reads_larger_images():
    model, larger = randomise(small()), small(9, 21)
    weights = model.state_dict()
    weights["positions"] = resize_positions(weights["positions"], (2, 5), (3, 7))
    larger.load_state_dict(weights)
    assert larger(torch.randn(2, 2, 9, 21)).shape == (2, CLASSES)
    with pytest.raises(ValueError, match=r"11 positions are not one .* and 5 x 5 = 25"):
        resize_positions(model.positions, (5, 5), (3, 7))


# ------------------------------------------------------------------------------------------------------ rollout


def test_rollout_follows_every_path():
    """Against a sum over all ways through three layers, each step half staying and half looking."""
    n, maps = 4, [torch.rand(2, HEADS, 4, 4).softmax(-1) for _ in range(3)]
    shares = attention_rollout(maps)
    steps = [(m.mean(1) + torch.eye(n)) / 2 for m in maps]
    for b in range(2):
        for i in range(n):
            for j in range(n):
                ways = sum(
                    steps[2][b, i, k] * steps[1][b, k, m] * steps[0][b, m, j] for k in range(n) for m in range(n)
                )
                assert shares[b, 2, i, j].item() == pytest.approx(ways.item(), abs=1e-6)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 3, n))


def test_rollout_of_a_model():
    model = randomise(small())
    with torch.no_grad(), attention_maps(model) as maps:
        model(torch.randn(2, 2, 6, 15))
    assert list(maps) == [f"blocks.{i}.attention" for i in range(LAYERS)]
    assert attention_rollout(list(maps.values())).shape == (2, LAYERS, 11, 11)

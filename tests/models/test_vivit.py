"""ViViT against transformers' VivitModel with copied weights, against slow loops, and against the paper's promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.models.vivit import (
    ENCODERS,
    AxialBlock,
    Encoder,
    FactorisedDotProductAttention,
    FactorisedEncoder,
    JointEncoder,
    ViViT,
    axial_attention,
    factorised_dot_product,
    inflate,
    reach,
    silence,
    start_from_image,
    tubelet_embed,
)
from course_lib.nn.attention import MultiHeadAttention, attention, attention_maps, fused_attention
from course_lib.nn.blocks import PreNormBlock

D, HEADS, LAYERS, D_FF, CLASSES = 12, 2, 2, 19, 7
SIZES = dict(d=D, heads=HEADS, layers=LAYERS, d_ff=D_FF)
SIZE, TUBELET = (6, 10, 21), (2, 5, 3)  # a grid of 3 frames and 2 x 7 places
F_, S = 3, 14


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(model: nn.Module, std: float = 0.3) -> nn.Module:
    """Move every parameter away from its start: zeros and ones hide mistakes."""
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model.eval()


def small(encoder: str = "1 joint", size=SIZE, tubelet=TUBELET, **options) -> ViViT:
    return ViViT(size, tubelet, 2, CLASSES, **SIZES, encoder=ENCODERS[encoder], **options)


# ------------------------------------------------------------------------------------------------- as an oracle


def tanh_gelu_block(d: int, heads: int, d_ff: int) -> PreNormBlock:
    """The published model's activation is the tanh approximation of GELU."""
    attend = lambda d, heads: MultiHeadAttention(d, heads, attend=fused_attention, bias=True)  # noqa: E731
    return PreNormBlock(d, heads, d_ff, attend, lambda: nn.GELU(approximate="tanh"))


def test_model_1_equals_transformers():
    """VivitModel is Model 1 with a class token; ours adds the class token's position to the class token itself."""
    from transformers import VivitConfig, VivitForVideoClassification

    config = VivitConfig(
        image_size=15, num_frames=6, tubelet_size=[2, 3, 5], num_channels=2, hidden_size=D, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=D_FF, num_labels=CLASSES, layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    assert config.hidden_act == "gelu_fast"
    theirs = randomise(VivitForVideoClassification(config)).double()
    w = theirs.state_dict()
    names = {
        "attention.attention.query": "attention.to_q", "attention.attention.key": "attention.to_k",
        "attention.attention.value": "attention.to_v", "attention.output.dense": "attention.to_out",
        "attention.q_proj": "attention.to_q", "attention.k_proj": "attention.to_k",
        "attention.v_proj": "attention.to_v", "attention.o_proj": "attention.to_out",
        "layernorm_before": "norm1", "layernorm_after": "norm2", "intermediate.dense": "mlp.0",
        "output.dense": "mlp.2", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
    }  # fmt: skip
    found = {}
    for name, value in w.items():
        part = name.removeprefix("vivit.")
        if part.startswith(("layers.", "encoder.layer.")):
            number, rest = part.removeprefix("layers.").removeprefix("encoder.layer.").split(".", 1)
            rest, kind = rest.rsplit(".", 1)
            found[f"encoder.encoder.blocks.{number}.{names[rest]}.{kind}"] = value
        elif part.startswith("layernorm."):
            found[f"encoder.encoder.norm.{part.removeprefix('layernorm.')}"] = value
        elif part.startswith("classifier."):
            found[f"head.{part.removeprefix('classifier.')}"] = value
    positions = w["vivit.embeddings.position_embeddings"][0]
    found["encoder.encoder.class_token"] = w["vivit.embeddings.cls_token"][0, 0] + positions[0]
    found["positions"] = positions[1:].reshape(3, 15, D)
    found["weight"] = w["vivit.embeddings.patch_embeddings.projection.weight"]
    found["bias"] = w["vivit.embeddings.patch_embeddings.projection.bias"]

    make = lambda *a: JointEncoder(*a, block=tanh_gelu_block, class_token=True)  # noqa: E731
    ours = ViViT((6, 15, 15), (2, 3, 5), 2, CLASSES, **SIZES, encoder=make).double()
    ours.load_state_dict(found)
    video = torch.randn(3, 2, 6, 15, 15, dtype=torch.float64, requires_grad=True)
    expected, out = theirs(video.transpose(1, 2)).logits, ours(video)
    assert out.std() > 0.1
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        *(torch.autograd.grad(y.sin().sum(), video)[0] for y in (out, expected)), rtol=0, atol=1e-10
    )


def test_tubelets_equal_a_convolution():
    video, weight, bias = torch.randn(2, 3, 6, 10, 21), torch.randn(D, 3, *TUBELET), torch.randn(D)
    expected = F.conv3d(video, weight, bias, stride=TUBELET).flatten(2).mT
    torch.testing.assert_close(tubelet_embed(video, weight, bias), expected, rtol=0, atol=2e-5)


def test_tubelets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(6, 10, 20\) is no multiple of the patch \(2, 5, 3\)"):
        tubelet_embed(torch.randn(1, 1, 6, 10, 20), torch.randn(D, 1, *TUBELET), torch.zeros(D))
    with pytest.raises(ValueError, match="no multiple"):
        small(size=(5, 10, 21))
    with pytest.raises(ValueError, match=r"reads clips of \(6, 10, 21\), not of \(6, 21, 10\)"):
        small()(torch.randn(1, 2, 6, 21, 10))


@pytest.mark.parametrize("axis", ["space", "time"])
def test_axial_attention_equals_a_loop_over_sequences(axis):
    attend = randomise(MultiHeadAttention(D, HEADS)).double()
    x = torch.randn(2, F_, S, D, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for b in range(2):
        if axis == "space":
            for f in range(F_):
                expected[b, f] = attend(x[b, f][None])[0]
        else:
            for s in range(S):
                expected[b, :, s] = attend(x[b, :, s][None])[0]
    torch.testing.assert_close(axial_attention(x, attend, axis), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="axis='height' is unknown"):
        axial_attention(x, attend, "height")


def test_factorised_dot_product_equals_a_loop_over_queries():
    q, k, v = (torch.randn(2, 4, F_, S, 5, dtype=torch.float64) for _ in range(3))
    out = factorised_dot_product(q, k, v)
    for b in range(2):
        for h in range(4):
            for f in range(F_):
                for s in range(S):
                    keys = [(g, s) for g in range(F_)] if h < 2 else [(f, r) for r in range(S)]
                    scores = torch.stack([q[b, h, f, s] @ k[b, h, *key] for key in keys]) / math.sqrt(5)
                    expected = sum(w * v[b, h, *key] for w, key in zip(scores.softmax(0), keys, strict=True))
                    torch.testing.assert_close(out[b, h, f, s], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="3 heads do not split"):
        factorised_dot_product(*(x[:, :3] for x in (q, k, v)))


def test_factorised_dot_product_is_joint_attention_with_a_mask():
    """Model 4 as Model 1 with two masks, one for each half of the heads."""
    q, k, v = (torch.randn(2, 4, F_, S, 5, dtype=torch.float64) for _ in range(3))
    frame, place = torch.arange(F_ * S) // S, torch.arange(F_ * S) % S
    keep = torch.stack([place[:, None] == place] * 2 + [frame[:, None] == frame] * 2)[None]
    expected = attention(*(x.flatten(2, 3) for x in (q, k, v)), keep)[0].unflatten(2, (F_, S))
    torch.testing.assert_close(factorised_dot_product(q, k, v), expected, rtol=0, atol=1e-12)


def test_model_3_equals_its_equations():
    """Equations 4 to 6, one clip at a time, and the paper's reshapes: (f, s, d) for space and (s, f, d) for time."""
    block = randomise(AxialBlock(D, HEADS, D_FF)).double()
    x = torch.randn(2, F_, S, D, dtype=torch.float64)
    for one, out in zip(x, block(x), strict=True):
        y = one + block.space(block.norm_space(one))
        z = y + block.time(block.norm_time(y).transpose(0, 1)).transpose(0, 1)
        torch.testing.assert_close(out, z + block.mlp(block.norm_mlp(z)), rtol=0, atol=1e-12)


def test_model_2_equals_a_loop_over_frames():
    model = randomise(FactorisedEncoder((F_, S), **SIZES, time_layers=3, class_token=True)).double()
    x = torch.randn(2, F_, S, D, dtype=torch.float64)
    frames = torch.stack([model.encoder(x[:, f]) for f in range(F_)], dim=1)
    torch.testing.assert_close(model(x), model.time_encoder(frames + model.time_positions), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="knows 3 places in time, not 2"):
        model(x[:, :2])


# ------------------------------------------------------------------------------------------- what the paper says


def test_an_untrained_model_prefers_no_class():
    for name in ENCODERS:
        logits = small(name)(torch.randn(3, 2, *SIZE))
        assert logits.shape == (3, CLASSES) and not logits.any(), name


def test_parameters_of_the_four_models():
    """Model 4 has those of Model 1, Model 3 one more attention and norm in each block, Model 2 a second encoder."""
    count = {name: sum(p.numel() for p in small(name).parameters()) for name in ENCODERS}
    attention_and_norm = 4 * (D * D + D) + 2 * D
    one_block = 4 * (D * D + D) + 4 * D + 2 * D * D_FF + D_FF + D
    assert count["4 factorised dot product"] == count["1 joint"] == count["frame pooling"]
    assert count["3 factorised self-attention"] == count["1 joint"] + LAYERS * attention_and_norm
    assert count["2 factorised encoder"] == count["1 joint"] + one_block + 2 * D + F_ * D


def test_joint_weights_fit_model_4():
    small("4 factorised dot product").load_state_dict(small("1 joint").state_dict())


def patterns() -> dict[str, torch.Tensor]:
    frame, place = torch.arange(F_ * S) // S, torch.arange(F_ * S) % S
    return {"frame": frame[:, None] == frame, "place": place[:, None] == place}


def test_who_looks_at_whom():
    """One block of Model 1 and of Model 3 connects everything, one of Model 4 a cross, one of Model 2 a frame."""
    same = patterns()
    cross = same["frame"] | same["place"]
    blocks = {name: randomise(small(name)).encoder.encoder.blocks for name in ENCODERS}

    def flat(block):
        return lambda x: block(x.flatten(1, 2)).unflatten(1, (F_, S))

    def in_frames(block):
        return lambda x: block(x.flatten(0, 1)).unflatten(0, (-1, F_))

    assert reach(flat(blocks["1 joint"][0]), F_, S, D).all()
    assert reach(blocks["3 factorised self-attention"][0], F_, S, D).all()
    assert torch.equal(reach(in_frames(blocks["2 factorised encoder"][0]), F_, S, D), same["frame"])
    one = flat(blocks["4 factorised dot product"][0])
    assert torch.equal(reach(one, F_, S, D), cross)
    assert reach(lambda x: flat(blocks["4 factorised dot product"][1])(one(x)), F_, S, D).all()


def test_each_half_of_model_3_sees_its_axis():
    block, same = randomise(AxialBlock(D, HEADS, D_FF)), patterns()
    for axis, pattern in (("space", "frame"), ("time", "place")):
        silent = randomise(AxialBlock(D, HEADS, D_FF))
        silence(silent.time if axis == "space" else silent.space)
        assert torch.equal(reach(silent, F_, S, D), same[pattern])
    assert reach(block, F_, S, D).all()


@pytest.mark.parametrize("dated", [False, True])
def test_frame_pooling_without_dates_reads_a_heap_of_frames(dated):
    model = randomise(small("frame pooling", tubelet=(1, 5, 3), dated=dated)).double()
    video = torch.randn(2, 2, *SIZE, dtype=torch.float64)
    moved = (model(video) - model(video.flip(2))).abs().max()
    assert moved > 1e-3 if dated else moved < 1e-12


def test_other_models_mind_the_order_of_frames():
    for name in list(ENCODERS)[1:]:
        model = randomise(small(name))
        video = torch.randn(2, 2, *SIZE)
        assert (model(video) - model(video.flip(2))).abs().max() > 1e-3, name


def test_batch_elements_do_not_meet():
    video = torch.randn(5, 2, *SIZE)
    for name in ENCODERS:
        model = randomise(small(name))
        together = model(video)
        for i in range(5):
            torch.testing.assert_close(model(video[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)


def test_masks_and_odd_heads_are_refused():
    attend = FactorisedDotProductAttention(D, HEADS, F_)
    with pytest.raises(ValueError, match="takes no mask"):
        attend(torch.randn(1, F_ * S, D), keep=torch.ones(1, 1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="3 heads do not split"):
        FactorisedDotProductAttention(D, 3, F_)


def test_maps_are_collected_where_they_are_one_matrix():
    model, video = small("3 factorised self-attention"), torch.randn(2, 2, *SIZE)
    with torch.no_grad(), attention_maps(model) as maps:
        model(video)
    assert {name.split(".")[-1]: tuple(m.shape) for name, m in maps.items()} == {
        "space": (2 * F_, HEADS, S, S),
        "time": (2 * S, HEADS, F_, F_),
    }
    with torch.no_grad(), attention_maps(small("4 factorised dot product")) as maps:
        assert not maps


# ---------------------------------------------------------------------------------------------- from an image model


def image_model() -> ViViT:
    return randomise(small("1 joint", size=(1, *SIZE[1:]), tubelet=(1, *TUBELET[1:])))


@pytest.mark.parametrize("mode", ["inflation", "central frame"])
def test_a_still_clip_looks_like_its_image(mode):
    image, weight, bias = torch.randn(2, 3, 10, 21), torch.randn(D, 3, 5, 3), torch.randn(D)
    still = image[:, :, None].expand(-1, -1, 8, -1, -1)
    of_clip = tubelet_embed(still, inflate(weight, 4, mode), bias).unflatten(1, (2, S))
    of_image = tubelet_embed(image[:, :, None], weight[:, :, None], bias)
    torch.testing.assert_close(of_clip, of_image[:, None].expand_as(of_clip), rtol=0, atol=1e-4)


def test_the_central_frame_is_seen_alone():
    weight = torch.randn(D, 3, 5, 3)
    for frames in (1, 2, 3, 4, 5):
        grown = inflate(weight, frames, "central frame")
        assert [f for f in range(frames) if grown[:, :, f].any()] == [frames // 2]
    with pytest.raises(ValueError, match="mode='mean' is unknown"):
        inflate(weight, 2, "mean")
    with pytest.raises(ValueError, match="frames=0"):
        inflate(weight, 0, "inflation")


@pytest.mark.parametrize("name", ["frame pooling", "3 factorised self-attention"])
def test_a_new_video_model_is_the_image_model_on_every_frame(name):
    """With one frame per box: the mean over frames of what the image model makes of each."""
    image = image_model()
    video = start_from_image(small(name, tubelet=(1, *TUBELET[1:])), image)
    clip = torch.randn(2, 2, *SIZE)
    frames = torch.stack([image.encoder(image.tokens(clip[:, :, f : f + 1])) for f in range(SIZE[0])])
    torch.testing.assert_close(video.encoder(video.tokens(clip)), frames.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_every_variant_takes_an_image_models_weights(name):
    image, video = image_model(), small(name)
    start_from_image(video, image, "inflation")
    old, new = image.encoder.encoder.blocks[1], video.encoder.encoder.blocks[1]
    pairs = [(old.attention, new.space), (old.mlp, new.mlp)] if name.startswith("3") else [(old, new)]
    for one, other in pairs:
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(video.positions[0], image.positions[0]) and torch.equal(video.positions[2], image.positions[0])
    torch.testing.assert_close(video.weight.sum(2), image.weight[:, :, 0])
    assert not video.head.weight.any()


def test_image_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"has the grid \(1, 14\), not \(3, 14\)"):
        start_from_image(small(), small())


@pytest.mark.parametrize(("parts", "learns"), [(("to_out",), True), (("to_q", "to_k", "to_v", "to_out"), False)])
def test_zero_weights_throughout_never_train(parts, learns):
    """The paper's words, "initialise all weights of the temporal MSA with zeroes", taken literally."""
    block = AxialBlock(D, HEADS, D_FF)
    silence(block.time, parts)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-2, weight_decay=0.0)
    x, wanted = torch.randn(5, F_, S, D), torch.randn(5, F_, S, D)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(block(x), wanted).backward()
        optimizer.step()
    assert bool(block.time.to_out.weight.any()) == learns
    assert bool(block.time.to_v.weight.any()) == learns
    assert block.time.to_out.bias.any()  # the output's bias moves in any case


def test_an_encoder_reads_its_class_token():
    plain, token = Encoder(D, HEADS, LAYERS, D_FF), Encoder(D, HEADS, LAYERS, D_FF, class_token=True)
    assert plain.class_token is None and not token.class_token.any()
    x = torch.randn(2, 5, D)
    assert plain(x).shape == token(x).shape == (2, D)
    for block in (*plain.blocks, *token.blocks):
        block.attention.to_out = nn.Identity()
        block.forward = lambda x: x
    torch.testing.assert_close(plain(x), plain.norm(x).mean(1))
    torch.testing.assert_close(token(x), torch.zeros(2, D))

"""CLIP against transformers' CLIPModel with copied weights, and its losses against open_clip's."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.data.tokenizer import Tokenizer
from course_lib.models.clip import (
    CLIP,
    CLIPConfig,
    ImageTower,
    QuickGELU,
    TextTower,
    clip_loss,
    film_strip,
    loss_floor,
    multi_positive_loss,
    siglip_loss,
    zero_shot,
)

VOCABULARY, LENGTH, D, HEADS, LAYERS, D_OUT, PATCH, SIDE = 23, 13, 12, 3, 2, 7, 5, 15


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def towers() -> CLIP:
    image = ImageTower((SIDE, SIDE), PATCH, 3, D, HEADS, LAYERS, D_OUT)
    model = CLIP(image, TextTower(VOCABULARY, LENGTH, D, HEADS, LAYERS, D_OUT))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model


def captions(b: int = 5, n: int = 11) -> torch.Tensor:
    """Random ids with <eos> at another place in every row, and zeros behind it."""
    tokens = torch.randint(0, VOCABULARY - 1, (b, n))
    for row in range(b):
        tokens[row, n - 2 - row :] = 0
        tokens[row, n - 2 - row] = VOCABULARY - 1
    return tokens


def copy_block(ours, theirs) -> None:
    pairs = [
        *((ours.norm1, theirs.layer_norm1), (ours.norm2, theirs.layer_norm2)),
        *((ours.attention.to_q, theirs.self_attn.q_proj), (ours.attention.to_k, theirs.self_attn.k_proj)),
        *((ours.attention.to_v, theirs.self_attn.v_proj), (ours.attention.to_out, theirs.self_attn.out_proj)),
        *((ours.mlp[0], theirs.mlp.fc1), (ours.mlp[2], theirs.mlp.fc2)),
    ]
    for mine, reference in pairs:
        reference.weight.copy_(mine.weight)
        reference.bias.copy_(mine.bias)


@pytest.fixture
def reference():
    """transformers' model with the weights of ours: ``(ours, theirs)``."""
    transformers = pytest.importorskip("transformers")
    shared = dict(hidden_size=D, intermediate_size=4 * D, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    text = dict(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, eos_token_id=VOCABULARY - 1, **shared)
    vision = dict(image_size=SIDE, patch_size=PATCH, **shared)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=D_OUT)
    theirs, ours = transformers.CLIPModel(config).eval(), towers()
    with torch.no_grad():
        embeddings = theirs.vision_model.embeddings
        weight = ours.image.embed.weight.view(D, PATCH, PATCH, 3).permute(0, 3, 1, 2)
        embeddings.patch_embedding.weight.copy_(weight)
        embeddings.class_embedding.copy_(ours.image.class_token)
        embeddings.position_embedding.weight.copy_(ours.image.positions)
        theirs.text_model.embeddings.token_embedding.weight.copy_(ours.text.embed.weight)
        theirs.text_model.embeddings.position_embedding.weight.copy_(ours.text.positions)
        norms = [
            (ours.image.norm_pre, theirs.vision_model.pre_layrnorm),
            (ours.image.norm_post, theirs.vision_model.post_layernorm),
            (ours.text.norm, theirs.text_model.final_layer_norm),
        ]
        for mine, other in norms:
            other.load_state_dict(mine.state_dict())
        theirs.visual_projection.weight.copy_(ours.image.project.weight)
        theirs.text_projection.weight.copy_(ours.text.project.weight)
        theirs.logit_scale.copy_(ours.log_scale)
        for mine, other in zip(ours.image.blocks, theirs.vision_model.encoder.layers, strict=True):
            copy_block(mine, other)
        for mine, other in zip(ours.text.blocks, theirs.text_model.encoder.layers, strict=True):
            copy_block(mine, other)
    return ours, theirs


@torch.no_grad()
def test_both_towers_equal_those_of_transformers(reference):
    ours, theirs = reference
    picture, tokens = torch.randn(5, 3, SIDE, SIDE), captions()
    out = theirs(input_ids=tokens, pixel_values=picture)
    image, text = ours(picture, tokens)
    torch.testing.assert_close(F.normalize(image, dim=-1), out.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(text, dim=-1), out.text_embeds, rtol=0, atol=1e-5)
    hidden = out.text_model_output.last_hidden_state
    torch.testing.assert_close(ours.text.features(tokens), hidden, rtol=0, atol=1e-5)
    logits = ours.log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    torch.testing.assert_close(logits, out.logits_per_image, rtol=1e-5, atol=1e-5)


def test_losses_equal_those_of_open_clip():
    loss = pytest.importorskip("open_clip.loss")
    for b in (1, 7, 11):
        image, text = 3 * torch.randn(b, 5), torch.randn(b, 5)
        unit = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        scale, bias = torch.tensor(1.7), torch.tensor(-3.0)
        mine = clip_loss(image, text, scale)
        torch.testing.assert_close(mine, loss.ClipLoss()(*unit, scale.exp()), rtol=0, atol=1e-5)
        mine = siglip_loss(image, text, scale, bias)
        torch.testing.assert_close(mine, loss.SigLipLoss()(*unit, scale.exp(), bias), rtol=1e-5, atol=1e-5)


def test_clip_loss_is_symmetric_and_blind_to_length():
    image, text, scale = torch.randn(7, 5), torch.randn(7, 5), torch.tensor(2.0)
    loss = clip_loss(image, text, scale)
    torch.testing.assert_close(loss, clip_loss(text, image, scale))
    torch.testing.assert_close(loss, clip_loss(image * torch.rand(7, 1).add(0.1), 5 * text, scale))


def test_multi_positive_loss_equals_a_loop_and_clip_loss_without_repeats():
    logits, ids = torch.randn(7, 7), torch.tensor([5, -3, 5, 900, 5, -3, 0])
    total = 0.0
    for scores in (logits, logits.T):
        for i in range(7):
            partners = [j for j in range(7) if ids[j] == ids[i]]
            total -= sum(scores[i].log_softmax(0)[j] for j in partners) / len(partners) / 7
    torch.testing.assert_close(multi_positive_loss(logits, ids), total / 2)
    image, text, scale = torch.randn(7, 5), torch.randn(7, 5), torch.tensor(2.0)
    logits = scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    torch.testing.assert_close(multi_positive_loss(logits, torch.randperm(7)), clip_loss(image, text, scale))


def test_the_floor_is_what_a_perfect_model_reaches():
    ids = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    perfect = F.one_hot(ids).float()
    assert clip_loss(perfect, perfect, torch.tensor(6.0)).item() == pytest.approx(loss_floor(ids), abs=1e-5)
    assert loss_floor(torch.arange(7)) == 0
    random = [loss_floor(torch.randint(10, (64,))) for _ in range(300)]
    assert sum(random) / 300 == pytest.approx(1.93, abs=0.02)


def test_zero_shot_equals_a_loop():
    image, prompts, scale = torch.randn(5, 7), 4 * torch.randn(3, 2, 7), torch.tensor(1.3)
    for i in range(5):
        cosines = []
        for k in range(3):
            mean = sum(p / p.norm() for p in prompts[k]) / 2
            cosines.append(image[i] @ mean / image[i].norm() / mean.norm())
        expected = (scale.exp() * torch.stack(cosines)).softmax(0)
        torch.testing.assert_close(zero_shot(image, prompts, scale)[i], expected)


# ------------------------------------------------------------------------------------------------------------- towers


def test_what_follows_eos_changes_nothing():
    tower, tokens = towers().text, captions()
    changed = tokens.clone()
    for row in changed:
        end = int(row.argmax())
        row[end + 1 :] = torch.randint(0, VOCABULARY, (len(row) - end - 1,))
    assert not torch.equal(tokens, changed)
    torch.testing.assert_close(tower(tokens), tower(changed))
    torch.testing.assert_close(tower(tokens), tower(F.pad(tokens, (0, LENGTH - tokens.shape[1]))))


def test_a_feature_depends_on_its_past_only():
    tower, tokens = towers().text, captions()
    later = tokens.clone()
    later[:, 4] = (later[:, 4] + 1) % VOCABULARY
    before, after = tower.features(tokens), tower.features(later)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-3


def test_too_long_a_caption_is_refused():
    with pytest.raises(ValueError, match=r"14 tokens.*length=13"):
        towers().text(torch.full((1, 14), VOCABULARY - 1))


def test_our_eos_is_the_largest_id():
    assert Tokenizer.eos == len(Tokenizer()) - 1


def test_quick_gelu_is_near_gelu():
    x = torch.linspace(-5, 5, 101)
    assert 1e-3 < (QuickGELU()(x) - F.gelu(x)).abs().max() < 0.03


def test_film_strip():
    video = torch.randn(2, 3, 7, 4, 5)
    stacked, side = film_strip(video, (0, 5, 2)), film_strip(video, (0, 5, 2), side_by_side=True)
    assert stacked.shape == (2, 9, 4, 5) and side.shape == (2, 3, 4, 15)
    assert torch.equal(stacked[:, 3:6], video[:, :, 5]) and torch.equal(side[..., 5:10], video[:, :, 5])
    with pytest.raises(ValueError, match="frame 7"):
        film_strip(video, (0, 7))


# --------------------------------------------------------------------------------------------------------- the whole


def test_temperature_starts_at_007_and_is_clamped():
    model = towers()
    assert CLIP(model.image, model.text).log_scale.item() == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    model.clamp_scale()
    assert model.log_scale.exp().item() == pytest.approx(100, rel=1e-5)


def test_initial_spreads_are_the_published_ones():
    model = CLIP.build(CLIPConfig(len(Tokenizer())))
    block, d, layers = model.text.blocks[0], 128, 4
    expected = {
        model.text.embed: 0.02,
        block.attention.to_q: d**-0.5,
        block.attention.to_out: (2 * layers * d) ** -0.5,
        block.mlp[0]: (2 * d) ** -0.5,
        block.mlp[2]: (2 * layers * d) ** -0.5,
        model.text.project: d**-0.5,
    }
    for part, std in expected.items():
        assert part.weight.std().item() == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_saved_and_loaded(tmp_path, side_by_side):
    config = CLIPConfig(len(Tokenizer()), height=24, width=32, d=16, layers=1, d_out=8, side_by_side=side_by_side)
    model = CLIP.build(config)
    model.save(tmp_path / "clip.safetensors", {"seed": 3})
    again = CLIP.from_checkpoint(tmp_path / "clip.safetensors")
    assert again.config == config
    video = torch.rand(3, 3, 9, 24, 32) * 2 - 1
    texts = ["a 3 moving left", "a red 16", "two digits"]
    clips, words = again.embed_clips(video), again.embed_captions(texts)
    torch.testing.assert_close(clips, model.embed_clips(video), rtol=0, atol=0.03)
    torch.testing.assert_close(words.norm(dim=-1), torch.ones(3))
    with pytest.raises(ValueError, match="no checkpoint"):
        CLIP.from_checkpoint(tmp_path / "nothing.safetensors")


def test_one_batch_can_be_learned_by_heart():
    model = CLIP.build(CLIPConfig(len(Tokenizer()), height=24, width=24, d=32, layers=1, d_out=16))
    picture = torch.randn(8, 12, 24, 24)
    tokens = Tokenizer().encode([f"a {i} moving {way}" for i in range(4) for way in ("left", "right")])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = clip_loss(*model(picture, tokens), model.log_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1

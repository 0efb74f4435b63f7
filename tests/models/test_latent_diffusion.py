"""Cross-attention against PyTorch's, the loss against a loop, and that the two stages fit together."""

import pytest
import torch
import torch.nn as nn

from course_lib.diffusion.schedules import sqrt_linear_schedule
from course_lib.models.autoencoder import AutoencoderConfig, KLAutoencoder
from course_lib.models.latent_diffusion import (
    FIRST_STAGE,
    LatentDiffusion,
    LatentDiffusionConfig,
    Pixels,
    latent_loss,
    save_autoencoder,
    still_autoencoder,
)
from course_lib.models.unet import ImageAttention
from course_lib.nn.attention import CrossAttention, attention, attention_maps

TINY = LatentDiffusionConfig(base=8, widths=(1, 2), d_text=8, text_layers=1, heads=2)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Initial zeros and ones hide broken parts."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g) * 0.3
    return module


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first_stage() -> KLAutoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=3, latent_channels=5, width=8, width_low=8, blocks=1, patch=2)
    model = randomise(KLAutoencoder(config))
    model.fit_whitening(model.latents(randn(7, 3, 16, 24).clamp(-1, 1)))
    return model


def build(stage=None) -> LatentDiffusion:
    torch.manual_seed(0)
    model = LatentDiffusion(TINY, stage or first_stage())
    randomise(nn.ModuleList([model.text_encoder, model.unet]))
    return model


# --------------------------------------------------------------------------------------------------- cross-attention


def test_cross_attention_equals_pytorchs():
    ours = randomise(CrossAttention(12, 7, heads=3))
    theirs = nn.MultiheadAttention(12, 3, kdim=7, vdim=7, batch_first=True)
    theirs.in_proj_bias.data.zero_()
    for mine, other in (("to_q", "q_proj_weight"), ("to_k", "k_proj_weight"), ("to_v", "v_proj_weight")):
        getattr(theirs, other).data.copy_(getattr(ours, mine).weight)
    theirs.out_proj.load_state_dict(ours.to_out.state_dict())
    x, context = randn(2, 5, 12), randn(2, 11, 7, seed=1)
    keep = torch.rand(2, 11, generator=torch.Generator().manual_seed(2)) < 0.5
    expected = theirs(x, context, context, key_padding_mask=~keep)[0]  # True forbids there
    torch.testing.assert_close(ours(x, context, keep), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="d=12"):
        CrossAttention(12, 7, heads=5)


def test_a_caption_of_padding_alone_leaves_the_bias_and_finite_gradients():
    ours = randomise(CrossAttention(12, 7, heads=3))
    x, context = randn(2, 5, 12).requires_grad_(), randn(2, 11, 7, seed=1).requires_grad_()
    keep = torch.ones(2, 11, dtype=torch.bool)
    keep[0] = False
    out = ours(x, context, keep)
    torch.testing.assert_close(out[0], ours.to_out.bias.expand(5, 12))
    out.square().sum().backward()
    assert context.grad.isfinite().all() and not context.grad[0].any() and context.grad[1].any()


def test_where_a_place_looks_can_be_seen():
    block = randomise(ImageAttention(8, context_dim=7, heads=2, groups=4))
    keep = torch.tensor([[True] * 4 + [False], [True] * 5])
    with attention_maps(block) as maps:
        block(randn(2, 8, 3, 4), randn(2, 5, 7, seed=1), keep)
    weights = maps["cross_attention"]
    assert weights.shape == (2, 2, 12, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 12))
    assert not weights[0, :, :, 4].any() and weights[1, :, :, 4].all()


def test_image_attention_reads_a_context_of_any_width_through_diffusers_weights():
    processor = pytest.importorskip("diffusers.models.attention_processor")
    theirs = randomise(processor.Attention(8, cross_attention_dim=7, heads=2, dim_head=4))
    ours = CrossAttention(8, 7, heads=2)
    for name, part in dict(to_q=theirs.to_q, to_k=theirs.to_k, to_v=theirs.to_v, to_out=theirs.to_out[0]).items():
        getattr(ours, name).load_state_dict(part.state_dict())
    x, context = randn(2, 12, 8), randn(2, 5, 7, seed=1)
    torch.testing.assert_close(ours(x, context), theirs(x, context), rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_equals_a_loop():
    model = build()
    z0, eps = randn(3, 5, 4, 6), randn(3, 5, 4, 6, seed=1)
    tokens = model.tokenizer.encode(["a red 3 at the top-left", "an 8", "a 5"], 11)
    t, dropped = torch.tensor([0, 500, 999]), torch.tensor([False, True, False])
    before, errors = tokens.clone(), []
    for i, caption in enumerate(["a red 3 at the top-left", "", "a 5"]):
        a = model.alpha_bar[t[i]].item()
        zt = a**0.5 * z0[i] + (1 - a) ** 0.5 * eps[i]
        guess = model(zt[None], t[i : i + 1], model.tokenizer.encode([caption]))[0]
        errors.append((guess - eps[i]).square())
    loss = latent_loss(model, z0, tokens, t, eps, dropped)
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=0, atol=1e-5)
    assert torch.equal(tokens, before)


def test_only_the_text_encoder_and_the_unet_learn():
    model = build().train()
    z0 = model.first_stage.latents(randn(2, 3, 16, 24).clamp(-1, 1))
    tokens = model.tokenizer.encode(["a red 3", "an 8"])
    latent_loss(model, z0, tokens, torch.tensor([1, 2]), randn(*z0.shape), torch.tensor([False, False])).backward()
    assert not model.first_stage.training and all(p.grad is None for p in model.first_stage.parameters())
    learn = [*model.text_encoder.parameters(), *model.unet.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learn)


def test_padding_does_not_change_what_is_seen():
    model = build()
    z, t = randn(2, 5, 4, 6), torch.tensor([3, 700])
    texts = ["a red 3", "a large blue 7 in the centre"]
    short, long = model.tokenizer.encode(texts), model.tokenizer.encode(texts, 19)
    torch.testing.assert_close(model(z, t, short), model(z, t, long), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- sampling


def test_guidance_of_one_ignores_the_empty_caption_and_of_zero_the_prompt():
    model, g = build().requires_grad_(False), lambda: torch.Generator().manual_seed(1)

    def last(prompts, w):
        return [s.xt for s in model.sample_steps(prompts, model.noise(2, g(), (16, 24)), guidance=w, steps=4)][-1]

    torch.testing.assert_close(last(["a 3", "a 7"], 0.0), last(["", ""], 1.0), rtol=0, atol=1e-4)
    assert not torch.allclose(last(["a 3", "a 7"], 1.0), last(["", ""], 1.0), atol=1e-2)


def test_pictures_come_out_in_range_and_follow_the_generator():
    model = build()
    draw = lambda seed: model.generate("a 3", torch.Generator().manual_seed(seed), steps=3, size=(16, 24))  # noqa: E731
    assert draw(0).shape == (1, 3, 16, 24) and draw(0).abs().max() <= 1
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_without_a_first_stage_it_is_a_diffusion_model_of_pixels():
    model = build(Pixels())
    assert model.noise(2, size=(16, 24)).shape == (2, 3, 16, 24)
    assert model.generate(["a 3", "a 7"], steps=2, size=(16, 24)).shape == (2, 3, 16, 24)
    pictures = randn(2, 3, 16, 24).clamp(-1, 1)
    assert torch.equal(model.first_stage.pictures(model.first_stage.latents(pictures)), pictures)


def test_the_schedule_is_that_of_the_released_code_and_ends_before_pure_noise():
    model = build()
    assert torch.equal(model.alpha_bar, sqrt_linear_schedule(1000)[1])
    assert model.alpha_bar[-1].sqrt() == pytest.approx(0.068, abs=1e-3)


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_a_saved_model_answers_alike_and_does_not_carry_its_first_stage(tmp_path, monkeypatch):
    stage = first_stage()
    save_autoencoder(tmp_path / "first.safetensors", stage, {})
    model = build(stage)
    model.save(tmp_path / "second.safetensors", {})
    import course_lib.models.latent_diffusion as module

    monkeypatch.setattr(module, "still_autoencoder", lambda: still_autoencoder(tmp_path / "first.safetensors"))
    loaded = LatentDiffusion.from_checkpoint(tmp_path / "second.safetensors")
    assert loaded.config == model.config and not loaded.training
    z, t, tokens = randn(2, 5, 4, 6), torch.tensor([3, 700]), model.tokenizer.encode(["a 3", "a 7"])
    torch.testing.assert_close(loaded(z, t, tokens), model(z, t, tokens), rtol=0.05, atol=0.1)  # packed weights
    size = (tmp_path / "second.safetensors").stat().st_size
    assert size < 2 * sum(p.numel() for part in (model.unet, model.text_encoder) for p in part.parameters()) + 40_000
    with pytest.raises(ValueError, match=FIRST_STAGE):
        still_autoencoder(tmp_path / "second.safetensors")


def test_the_shipped_first_stage_gives_four_times_smaller_latents_of_unit_variance():
    from course_lib.data.digits import load_digits
    from course_lib.data.moving_mnist import seeded
    from course_lib.training.train_latent import draw, still_scenes

    model = still_autoencoder()
    pictures = draw(still_scenes(200, seeded(0, 0)), [load_digits("embedded", "heldout")], seeded(0, 1))[:, :, 0]
    z = model.latents(pictures)
    assert z.shape == (200, 4, 12, 12)
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.3 and (z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.15
    assert 10 * torch.log10(4 / (model.pictures(z) - pictures).square().mean()) > 33  # the README says 35.3


def test_cross_attention_with_the_readable_attention_is_the_same():
    ours = randomise(CrossAttention(12, 7, heads=3))
    x, context = randn(2, 5, 12), randn(2, 11, 7, seed=1)
    fused = ours(x, context)
    ours.attend = attention
    torch.testing.assert_close(ours(x, context), fused, rtol=0, atol=1e-5)

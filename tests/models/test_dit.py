"""DiT against diffusers' model with the same weights, against a slow loop, and at birth."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from course_lib.models.dit import (
    BLOCKS,
    DiT,
    DiTBlock,
    DiTConfig,
    forward_flops,
    forward_with_cfg,
    from_official,
)
from course_lib.nn.modulation import timestep_embedding
from course_lib.nn.positions import sincos_2d

CONFIG = DiTConfig(size=(6, 10), channels=3, classes=7, patch=2, d=20, depth=2, heads=5, mlp_ratio=3)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model off its initial values: zeros hide every dependency."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return model.eval()


def inputs(config: DiTConfig = CONFIG, b: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(b, config.channels, *config.size, generator=g)
    return x, torch.rand(b, generator=g), torch.randint(config.classes + 1, (b,), generator=g)


# ------------------------------------------------------------------------------------------------------------ oracles


def official_weights(
    d: int = 24, depth: int = 3, patch: int = 2, channels: int = 5, grid: int = 4, classes: int = 11
) -> dict[str, torch.Tensor]:
    """Random weights with the names and shapes of the published files."""
    g = torch.Generator().manual_seed(7)
    shapes = {
        "x_embedder.proj.weight": (d, channels, patch, patch),
        "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256),
        "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d),
        "t_embedder.mlp.2.bias": (d,),
        "y_embedder.embedding_table.weight": (classes + 1, d),
        "final_layer.linear.weight": (patch**2 * 2 * channels, d),
        "final_layer.linear.bias": (patch**2 * 2 * channels,),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d),
        "final_layer.adaLN_modulation.1.bias": (2 * d,),
    }
    for i in range(depth):
        parts = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for name, shape in {**parts, "adaLN_modulation.1": (6 * d, d)}.items():
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = shape, shape[:1]
    weights = {name: 0.3 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return weights | {"pos_embed": sincos_2d((grid, grid), d)[None]}


def diffusers_model(weights: dict[str, torch.Tensor], heads: int):
    """diffusers' DiT with the same weights. Each of its blocks owns a copy of the embeddings of time and label."""
    from diffusers import DiTTransformer2DModel

    d, channels, patch, _ = weights["x_embedder.proj.weight"].shape
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=d // heads,
        in_channels=channels,
        out_channels=2 * channels,
        num_layers=depth,
        sample_size=round(weights["pos_embed"].shape[1] ** 0.5) * patch,
        patch_size=patch,
        num_embeds_ada_norm=len(weights["y_embedder.embedding_table.weight"]) - 1,
        norm_eps=1e-6,
    )
    names = {
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.linear": "proj_out_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
    }
    found = {}
    for kind in ("weight", "bias"):
        found |= {f"{new}.{kind}": weights[f"{old}.{kind}"] for old, new in names.items()}
        for i in range(depth):
            block, new = f"blocks.{i}", f"transformer_blocks.{i}"
            for part, third in zip(("to_q", "to_k", "to_v"), weights[f"{block}.attn.qkv.{kind}"].chunk(3), strict=True):
                found[f"{new}.attn1.{part}.{kind}"] = third
            found[f"{new}.attn1.to_out.0.{kind}"] = weights[f"{block}.attn.proj.{kind}"]
            found[f"{new}.ff.net.0.proj.{kind}"] = weights[f"{block}.mlp.fc1.{kind}"]
            found[f"{new}.ff.net.2.{kind}"] = weights[f"{block}.mlp.fc2.{kind}"]
            found[f"{new}.norm1.linear.{kind}"] = weights[f"{block}.adaLN_modulation.1.{kind}"]
            embedder = f"{new}.norm1.emb.timestep_embedder"
            found[f"{embedder}.linear_1.{kind}"] = weights[f"t_embedder.mlp.0.{kind}"]
            found[f"{embedder}.linear_2.{kind}"] = weights[f"t_embedder.mlp.2.{kind}"]
            table = f"{new}.norm1.emb.class_embedder.embedding_table.weight"
            found[table] = weights["y_embedder.embedding_table.weight"]
    model.load_state_dict(found)  # the positions are not in it: they are the same table
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # the exponent i / half of the paper's code
    return model.eval()


def test_equals_diffusers_with_official_weights():
    weights, heads = official_weights(), 3
    ours, theirs = from_official(weights, heads).eval(), diffusers_model(weights, heads)
    assert ours.config.learn_sigma and ours.config.size == (8, 8) and ours.config.time_scale == 1
    g = torch.Generator().manual_seed(2)
    x, t, y = torch.randn(7, 5, 8, 8, generator=g), torch.tensor([0, 1, 37, 250, 500, 998, 999]), torch.arange(5, 12)
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=y).sample
        found = ours(x, t, y)
    assert expected.std() > 1
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_official_weights_that_do_not_fit_are_refused():
    weights = official_weights()
    with pytest.raises(ValueError, match="do not fit"):
        from_official(weights | {"blocks.1.attn.rel_pos": torch.zeros(3)}, 3)
    del weights["final_layer.linear.bias"]
    with pytest.raises(ValueError, match="lack"):
        from_official(weights, 3)
    with pytest.raises(ValueError, match="lack"):
        from_official({"weight": torch.zeros(2)})


def test_a_block_equals_the_paper_written_token_by_token():
    torch.manual_seed(3)
    block = shaken(DiTBlock(12, 3, 19))
    x, condition = torch.randn(2, 5, 12), torch.randn(2, 12)
    out = block(x, condition)
    for i in range(2):
        silu = condition[i] * torch.sigmoid(condition[i])
        v = (block.modulation[1].weight @ silu + block.modulation[1].bias).view(6, 12)

        def read(tokens, shift, scale):
            mean, var = tokens.mean(-1, keepdim=True), tokens.var(-1, correction=0, keepdim=True)
            return (tokens - mean) / (var + 1e-6).sqrt() * (1 + scale) + shift

        a = x[i] + v[2] * block.attention(read(x[i], v[0], v[1])[None])[0]
        expected = torch.stack([a[n] + v[5] * block.mlp(read(a[n], v[3], v[4])) for n in range(5)])
        assert torch.allclose(out[i], expected, atol=1e-5)


def test_positions_equal_the_reference_and_the_first_half_is_the_column():
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    reference = get_2d_sincos_pos_embed(20, 5, base_size=5, output_type="pt").float()
    assert torch.allclose(sincos_2d((5, 5), 20), reference, atol=1e-6)
    table = sincos_2d((3, 7), 20).view(3, 7, 20)
    assert torch.equal(table[0, :, :10], table[2, :, :10])  # the same in every row
    assert torch.equal(table[:, 0, 10:], table[:, 6, 10:])
    assert len(table.flatten(0, 1).unique(dim=0)) == 21
    for bad in (6, 0, 2):
        with pytest.raises(ValueError, match=f"dim={bad}"):
            sincos_2d((3, 7), bad)


def test_time_features_equal_the_reference():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 0.5, 1, 17.25, 999])
    reference = get_timestep_embedding(t, 14, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(timestep_embedding(t, 14), reference, atol=1e-4)
    assert torch.equal(timestep_embedding(t[:1], 14)[0], torch.tensor([1.0] * 7 + [0.0] * 7))
    assert timestep_embedding(torch.tensor([3.0]), 4)[0, 1] == pytest.approx(math.cos(3 / 100), abs=1e-6)
    assert torch.equal(timestep_embedding(torch.tensor([3]), 4), timestep_embedding(torch.tensor([3.0]), 4))
    for bad in (7, 0, 1):
        with pytest.raises(ValueError, match=f"dim={bad}"):
            timestep_embedding(t, bad)


# ------------------------------------------------------------------------------------------------------------ at birth


@pytest.mark.parametrize("name", BLOCKS)
def test_a_new_model_predicts_zero_whatever_steers_it(name):
    torch.manual_seed(0)
    model = DiT(CONFIG, BLOCKS[name]).eval()
    assert torch.equal(model(*inputs()), torch.zeros(2, 3, 6, 10))
    assert not torch.allclose(shaken(model)(*inputs()), torch.zeros(2, 3, 6, 10), atol=0.1)


def test_a_new_block_is_the_identity_and_its_weights_are_those_of_the_paper():
    torch.manual_seed(0)
    model = DiT(DiTConfig(d=96, depth=2))
    x, condition = torch.randn(2, 7, 96), torch.randn(2, 96)
    assert torch.equal(model.blocks[1](x, condition), x)
    for weight in (model.label.table.weight, model.time[0].weight, model.time[2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    limit = (6 / (96 + 4 * 96)) ** 0.5
    assert model.blocks[0].mlp[0].weight.abs().max().item() == pytest.approx(limit, rel=0.01)
    assert model.blocks[0].mlp[0].bias.abs().max() == 0
    assert "positions" not in dict(model.named_parameters())


# --------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("name", BLOCKS)
def test_everything_depends_on_everything_and_every_weight_learns(name):
    model = shaken(DiT(CONFIG, BLOCKS[name]))
    x, t, y = inputs()
    y = torch.tensor([2, 5])
    out = model(x, t, y)
    assert out.shape == x.shape
    assert not torch.allclose(out, model(x, t.flip(0), y))
    assert not torch.allclose(out, model(x, t, y.flip(0)))
    assert not torch.allclose(out, model(x, t, torch.full_like(y, model.null)))
    moved = x.clone()
    moved[0, 2, 5, 9] += 1
    touched = (model(moved, t, y) - out).abs().flatten(2).amax(-1) > 1e-6
    assert touched[0].all() and not touched[1].any()
    model(*inputs(b=7)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_labels_are_dropped_in_training_only():
    model = shaken(DiT(CONFIG))
    x, t, _ = inputs()
    y = torch.tensor([2, 5])
    assert torch.equal(model(x, t, y), model(x, t, y))
    model.train()
    model.label.drop = 1.0
    assert torch.equal(model(x, t, y), model.eval()(x, t, torch.full_like(y, model.null)))


def test_guidance_keeps_the_halves_together():
    model = shaken(DiT(DiTConfig(**{**vars(CONFIG), "learn_sigma": True})))
    x, t, _ = inputs(b=3)
    labels, null = torch.tensor([0, 3, 6]), torch.full((3,), model.null)
    cond, uncond = model(x, t, labels), model(x, t, null)
    out = forward_with_cfg(model, torch.cat([x, x + 1]), torch.cat([t, t]), torch.cat([labels, null]), 3.0)
    guided = uncond[:, :3] + 3 * (cond[:, :3] - uncond[:, :3])
    assert torch.allclose(out[:3, :3], guided, atol=1e-5) and torch.equal(out[:3, :3], out[3:, :3])
    assert torch.allclose(out[:, 3:], torch.cat([cond, uncond])[:, 3:], atol=1e-5)
    with pytest.raises(ValueError, match="two halves"):
        forward_with_cfg(model, x, t, labels, 1.0)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not split"):
        DiT(DiTConfig(size=(9, 12)))
    with pytest.raises(ValueError, match="heads=5"):
        DiT(DiTConfig(d=96, heads=5))
    with pytest.raises(ValueError, match="this model reads"):
        x, t, y = inputs()
        DiT(CONFIG)(x.transpose(2, 3), t, y)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("config", [CONFIG, DiTConfig(size=(12, 12), patch=3, d=32, learn_sigma=True)], ids=["a", "b"])
def test_flops_are_what_torch_counts(name, config):
    model = DiT(config, BLOCKS[name]).eval()
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # counts no fused one
        model(*inputs(config, b=1))
    assert counter.get_total_flops() == forward_flops(config, BLOCKS[name])


@pytest.mark.parametrize(
    ("d", "depth", "heads", "gflops"), [(384, 12, 6, 6.06), (768, 12, 12, 23.01), (1024, 24, 16, 80.71)]
)
def test_flops_of_the_paper_are_half_of_ours(d, depth, heads, gflops):
    config = DiTConfig(size=(32, 32), classes=1000, d=d, depth=depth, heads=heads, learn_sigma=True)
    assert forward_flops(config) / 2e9 == pytest.approx(gflops, rel=0.01)

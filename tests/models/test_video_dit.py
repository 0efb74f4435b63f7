"""The spacetime transformer: what must hold at initialisation, and what may depend on what."""

import pytest
import torch

from course_lib.models.dit import DiTBlock
from course_lib.models.video_dit import CaptionEncoder, SelfAttention, VideoDiT, VideoDiTConfig

CONFIG = VideoDiTConfig(vocabulary=19, latent_channels=3, latent_size=(6, 4, 6), dim=12, depth=2, heads=3, mlp_ratio=2)


def model(moved: bool = False) -> VideoDiT:
    torch.manual_seed(0)
    dit = VideoDiT(CONFIG)
    if moved:  # off the zeros of initialisation, which hide every dependency
        with torch.no_grad():
            for p in dit.parameters():
                p.add_(0.2 * torch.randn(p.shape))
    return dit


def inputs(b: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(b, 3, 6, 4, 6, generator=g)
    return x, torch.rand(b, generator=g), torch.randint(1, 19, (b, 5), generator=g)


def test_a_new_model_predicts_zero_and_a_new_block_is_the_identity():
    x, t, caption = inputs()
    assert torch.equal(model()(x, t, caption), torch.zeros_like(x))
    torch.manual_seed(0)
    tokens, condition = torch.randn(2, 7, 12), torch.randn(2, 12)
    assert torch.equal(model().blocks[1](tokens, condition), tokens)
    moved = DiTBlock(12, 3, 24, attention=SelfAttention, bias=False)  # without VideoDiT.initialise nothing is zero
    assert not torch.allclose(moved(tokens, condition), tokens)


def test_shape_and_dependence_on_each_input():
    dit = model(moved=True)
    x, t, caption = inputs()
    out = dit(x, t, caption)
    assert out.shape == x.shape
    assert not torch.allclose(out, dit(x, t.flip(0), caption))
    assert not torch.allclose(out, dit(x, t, caption.flip(0)))
    changed = x.clone()
    changed[0, 0, 5, 3, 5] += 1
    touched = (dit(changed, t, caption) != out).flatten(2).any(-1)
    assert touched[0].all() and not touched[1].any()  # all of the clip, nothing of its neighbour
    first_frame = (dit(changed, t, caption) - out)[0, :, 0].abs().max()
    assert first_frame > 1e-5  # joint attention: the last frame reaches the first


def test_a_caption_is_a_bag_of_words_and_padding_is_nothing():
    torch.manual_seed(0)
    encoder = CaptionEncoder(19, 12)
    words = torch.tensor([[3, 7, 11, 0, 0]])
    assert torch.allclose(encoder(words), encoder(torch.tensor([[11, 3, 7]])), atol=1e-6)
    assert not torch.allclose(encoder(words), encoder(torch.tensor([[3, 7, 12]])))
    assert not torch.allclose(encoder(words), encoder(torch.tensor([[3, 7, 11, 11]])))
    empty = encoder(torch.zeros(1, 4, dtype=torch.long))
    assert torch.equal(empty, encoder(torch.zeros(1, 2, dtype=torch.long)))
    with torch.no_grad():
        encoder.words.weight[0] += 100  # the row of <pad> is never read
    assert torch.equal(empty, encoder(torch.zeros(1, 4, dtype=torch.long)))


def test_a_piece_of_a_clip_takes_the_positions_of_its_place():
    dit = model(moved=True)
    x, t, caption = inputs()
    piece = x[:, :, 2:4]
    at = torch.tensor([1, 1])
    with torch.no_grad():
        out = dit(piece, t, caption, at)
        assert not torch.allclose(out, dit(piece, t, caption))
        assert torch.allclose(dit(piece, t, caption), dit(piece, t, caption, torch.tensor([0, 0])), atol=1e-6)
        rows = dit.positions.view(3, 6, 12)
        rows[0] = rows[1].clone()  # move the place of patch 1 to patch 0
    assert torch.allclose(dit(piece, t, caption), out, atol=1e-6)


def test_positions_start_as_scaled_sines_and_learn():
    from course_lib.nn.positions import sincos_3d

    dit = model()
    assert torch.equal(dit.positions, 0.5 * sincos_3d((3, 2, 3), 12))
    assert dit.positions.requires_grad


def test_normalised_queries_and_keys_bound_the_logits():
    torch.manual_seed(0)
    attention = SelfAttention(12, 3)
    x = torch.randn(1, 5, 12)
    spread = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:24] *= 1000  # of queries and keys only
    assert torch.allclose(attention(x), spread, atol=1e-4)


def test_every_parameter_gets_a_gradient():
    dit = model(moved=True)
    x, t, caption = inputs(7)
    dit(x, t, caption).square().mean().backward()
    missing = [n for n, p in dit.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert missing == []


def test_sizes_that_do_not_fit_are_refused():
    x, t, caption = inputs()
    with pytest.raises(ValueError, match="does not fit the trained grid"):
        model()(x.repeat(1, 1, 2, 1, 1), t, caption)
    with pytest.raises(ValueError, match="does not fit the trained grid"):
        model()(x.transpose(3, 4), t, caption)
    with pytest.raises(ValueError, match="heads=5"):
        VideoDiT(VideoDiTConfig(vocabulary=3, dim=12, heads=5))

"""The pre-norm block against PyTorch's layer with the same weights, and what its straight path promises."""

from functools import partial

import pytest
import torch
from torch import nn

from course_lib.nn.attention import MultiHeadAttention
from course_lib.nn.blocks import PreNormBlock

B, N, D, HEADS, D_FF = 2, 5, 12, 3, 17


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model.double()


def test_equals_torchs_layer_with_norm_first():
    theirs = nn.TransformerEncoderLayer(
        D, HEADS, D_FF, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
    )
    randomise(theirs)
    ours = PreNormBlock(D, HEADS, D_FF, attention=partial(MultiHeadAttention, bias=True)).double()
    with torch.no_grad():
        for part, weight, bias in zip(
            (ours.attention.to_q, ours.attention.to_k, ours.attention.to_v),
            theirs.self_attn.in_proj_weight.chunk(3),
            theirs.self_attn.in_proj_bias.chunk(3),
            strict=True,
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    ours.attention.to_out.load_state_dict(theirs.self_attn.out_proj.state_dict())
    pairs = [(ours.norm1, theirs.norm1), (ours.norm2, theirs.norm2)]
    pairs += [(ours.mlp[0], theirs.linear1), (ours.mlp[2], theirs.linear2)]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    x = torch.randn(B, N, D, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    out, expected = ours(x, keep[:, None, :]), theirs(x, src_key_padding_mask=~keep)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), x)[0] for y in (out, expected)), rtol=0, atol=1e-10)


def test_parts_that_say_nothing_leave_the_stream_as_it_is():
    block = randomise(PreNormBlock(D, HEADS, D_FF))
    with torch.no_grad():
        block.attention.to_out.weight.zero_()
        block.mlp[2].weight.zero_()
        block.mlp[2].bias.zero_()
    x = 100 * torch.randn(B, N, D, dtype=torch.float64)
    assert torch.equal(block(x), x)


def test_what_a_block_adds_does_not_depend_on_the_size_of_the_stream():
    block = randomise(PreNormBlock(D, HEADS, D_FF, eps=1e-12))
    x = torch.randn(B, N, D, dtype=torch.float64)
    first = block.attention(block.norm1(x))
    torch.testing.assert_close(block.attention(block.norm1(1000 * x)), first, rtol=1e-6, atol=1e-6)


def test_the_activation_and_the_attention_are_exchangeable():
    calls = []

    class Silent(nn.Module):
        def __init__(self, d, heads):
            super().__init__()
            calls.append((d, heads))

        def forward(self, x, keep=None):
            return torch.zeros_like(x)

    block = PreNormBlock(D, HEADS, D_FF, attention=Silent, activation=nn.ReLU)
    x = torch.randn(B, N, D)
    torch.testing.assert_close(block(x), x + block.mlp[2](block.mlp[0](block.norm2(x)).relu()))
    assert calls == [(D, HEADS)]

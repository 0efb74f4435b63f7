"""Attention against PyTorch's kernels, a loop over single queries, and closed forms."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from course_lib.nn.attention import MultiHeadAttention, attention, attention_maps, fused_attention

B, H, QUERIES, KEYS, D, D_V = 2, 3, 5, 7, 11, 13


def inputs(seed=0, dtype=torch.float64, grad=False):
    g = torch.Generator().manual_seed(seed)
    shapes = [(B, H, QUERIES, D), (B, H, KEYS, D), (B, H, KEYS, D_V)]
    return [torch.randn(*shape, generator=g, dtype=dtype, requires_grad=grad) for shape in shapes]


def some_keep(seed=1, shape=(B, H, QUERIES, KEYS)):
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    keep[..., 3] = True  # every query may look somewhere
    return keep


KEEPS = {
    "none": None,
    "full": some_keep(),
    "per batch": some_keep(2, (B, 1, 1, KEYS)),
    "per head": some_keep(3, (1, H, QUERIES, KEYS)),
    "shared": some_keep(4, (1, 1, QUERIES, KEYS)),
}


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
@pytest.mark.parametrize("attend", [attention, fused_attention])
def test_equals_scaled_dot_product_attention_with_gradients(attend, keep):
    ours, theirs = inputs(grad=True), inputs(grad=True)
    out, expected = attend(*ours, keep)[0], F.scaled_dot_product_attention(*theirs, attn_mask=keep)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    out.sin().sum().backward()
    expected.sin().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)


def test_equals_a_loop_over_single_queries():
    q, k, v = inputs()
    keep = some_keep()
    out, weights = attention(q, k, v, keep)
    for b in range(B):
        for h in range(H):
            for i in range(QUERIES):
                allowed = [j for j in range(KEYS) if keep[b, h, i, j]]
                e = {j: math.exp(sum(float(x * y) for x, y in zip(q[b, h, i], k[b, h, j], strict=True)) / math.sqrt(D))
                     for j in allowed}  # fmt: skip
                expected = sum(e[j] * v[b, h, j] for j in allowed) / sum(e.values())
                torch.testing.assert_close(out[b, h, i], expected, rtol=0, atol=1e-12)
                assert all(weights[b, h, i, j] == 0 for j in range(KEYS) if j not in allowed)


def test_closed_forms():
    q, k, v = inputs()
    out, weights = attention(torch.zeros_like(q), k, v)  # no preference: the mean of the values
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / KEYS))
    ones = torch.ones_like(v)  # a weighted mean of ones is one
    torch.testing.assert_close(attention(q, k, ones)[0], torch.ones_like(out))
    shifted = k + torch.randn(D, dtype=k.dtype)  # adds the same number to all scores of a query
    torch.testing.assert_close(attention(q, shifted, v)[0], attention(q, k, v)[0])


def test_two_keys_by_hand():
    """Scores 2 and 0 at d = 4, so 1 and 0 after scaling: weights e / (e + 1) and 1 / (e + 1)."""
    q = torch.tensor([[[[2.0, 0, 0, 0]]]])
    k = torch.tensor([[[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]]])
    v = torch.tensor([[[[1.0], [0.0]]]])
    assert attention(q, k, v)[0].item() == pytest.approx(math.e / (math.e + 1), abs=1e-6)


def test_a_query_with_no_allowed_key_gets_zeros_and_finite_gradients():
    q, k, v = inputs(grad=True)
    keep = some_keep()
    keep[1, 2, 4] = False
    out, weights = attention(q, k, v, keep)
    assert (out[1, 2, 4] == 0).all() and (weights[1, 2, 4] == 0).all()
    torch.testing.assert_close(out, fused_attention(q, k, v, keep)[0])
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(g.isfinite().all() for g in grads) and (grads[0][1, 2, 4] == 0).all()


def test_fused_attention_refuses_keys_and_values_of_unequal_number():
    q, k, v = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 5, 4), torch.randn(1, 1, 7, 4)
    with pytest.raises(ValueError, match="5 keys and 7 values"):
        inspect.unwrap(fused_attention)(q, k, v)  # without jaxtyping's check, which tests add


def test_huge_scores_stay_finite():
    q, k, v = inputs(dtype=torch.float32)
    out, weights = attention(1e3 * q, 1e3 * k, v)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(1e3 * q, 1e3 * k, v))
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, QUERIES))


def test_scaled_scores_have_variance_one():
    """The reason for 1 / sqrt(d): independent unit-variance queries and keys give dot products of variance d."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 400, 256, generator=g), torch.randn(1, 1, 400, 256, generator=g)
    log_weights = attention(q, k, k)[1].log()
    scores = log_weights - log_weights.mean(-1, keepdim=True)
    assert scores.var().item() == pytest.approx(1.0, abs=0.02)


# ------------------------------------------------------------------------------------------------------ several heads


def copied_from(theirs: nn.MultiheadAttention, attend=attention) -> MultiHeadAttention:
    """Our module with the weights of PyTorch's."""
    ours = MultiHeadAttention(theirs.embed_dim, theirs.num_heads, attend=attend, bias=True).double()
    with torch.no_grad():
        for part, weight, bias in zip(
            (ours.to_q, ours.to_k, ours.to_v), theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        ours.to_out.load_state_dict(theirs.out_proj.state_dict())
    return ours


@pytest.mark.parametrize("attend", [attention, fused_attention])
@pytest.mark.parametrize("cross", [False, True])
def test_equals_torch_multihead_attention(attend, cross):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = copied_from(theirs, attend)
    x = torch.randn(B, QUERIES, 12, dtype=torch.float64)
    context = torch.randn(B, KEYS, 12, dtype=torch.float64) if cross else x
    n = context.shape[1]
    keep = some_keep(shape=(B, QUERIES, n))
    blocked = ~keep.repeat_interleave(3, dim=0)  # theirs: (b * heads, queries, keys), True means blocked
    expected, expected_weights = theirs(x, context, context, attn_mask=blocked, average_attn_weights=False)
    with attention_maps(ours) as maps:
        out = ours(x, context if cross else None, keep)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(maps[""], expected_weights, rtol=0, atol=1e-12)


def test_permuting_tokens_permutes_the_output():
    module = MultiHeadAttention(12, 3).double()
    x = torch.randn(B, KEYS, 12, dtype=torch.float64)
    order = torch.randperm(KEYS)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


def test_one_head_reads_only_its_slice():
    """With the identity as output projection, channels 4 to 7 come from head 1 alone."""
    module = MultiHeadAttention(12, 3).double()
    nn.init.eye_(module.to_out.weight)
    x = torch.randn(B, KEYS, 12, dtype=torch.float64)
    q, k, v = (part(x)[..., 4:8] for part in (module.to_q, module.to_k, module.to_v))
    alone = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(module(x)[..., 4:8], alone)


def test_has_four_square_matrices_as_in_the_paper():
    assert sum(p.numel() for p in MultiHeadAttention(12, 3).parameters()) == 4 * 12 * 12


def test_width_must_split_into_heads():
    with pytest.raises(ValueError, match="d=12 does not split into heads=5"):
        MultiHeadAttention(12, 5)
    with pytest.raises(ValueError, match="heads=0"):
        MultiHeadAttention(12, 0)


def test_maps_are_detached_named_and_stop_after_the_block():
    model = nn.ModuleDict({"one": MultiHeadAttention(12, 3, fused_attention), "two": MultiHeadAttention(12, 2)})
    x, keep = torch.randn(B, QUERIES, 12), some_keep(shape=(B, 1, QUERIES))
    with attention_maps(model) as maps:
        model["one"](x, keep=keep)
        model["two"](x)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "one": (B, 3, QUERIES, QUERIES),
        "two": (B, 2, QUERIES, QUERIES),
    }
    assert not maps["one"].requires_grad
    assert (maps["one"].masked_select(~keep[:, None]) == 0).all()
    before = maps["two"]
    model["two"](2 * x)
    assert maps["two"] is before


def test_maps_show_the_attention_that_the_module_uses():
    def unscaled(q, k, v, keep=None):
        return attention(q * q.shape[-1] ** 0.5, k, v, keep)

    x = torch.randn(B, QUERIES, 12)
    module = MultiHeadAttention(12, 3, unscaled)
    q, k = (rearrange(part(x), "b n (h d) -> b h n d", h=3) for part in (module.to_q, module.to_k))
    with attention_maps(module) as maps:
        module(x)
    torch.testing.assert_close(maps[""], (q @ k.mT).softmax(-1))

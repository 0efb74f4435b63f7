"""The Transformer against PyTorch's layers with the same weights, and against what the paper promises."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from course_lib.models.transformer import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    Transformer,
    continue_tokens,
    next_token_loss,
    paper_learning_rate,
    sinusoidal_positions,
)
from course_lib.nn.attention import MultiHeadAttention, fused_attention

B, N, SOURCE, D, HEADS, D_FF, LAYERS, VOCABULARY = 2, 5, 7, 12, 3, 17, 2, 19
with_bias = partial(MultiHeadAttention, bias=True)  # PyTorch's layers have biases where the paper has none


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(model: nn.Module) -> nn.Module:
    """Move every parameter away from its start: biases of 0 and norms of 1 hide mistakes."""
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


def tokens(length: int, batch: int = B) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length))


def small_transformer(**kw) -> Transformer:
    encoder = Encoder(VOCABULARY, D, HEADS, LAYERS, D_FF)
    return Transformer(encoder, Decoder(VOCABULARY, D, HEADS, LAYERS, D_FF), **kw)


# -------------------------------------------------------------------------------------------------------- positions


def test_positions_equal_the_formula():
    table = sinusoidal_positions(101, 26)
    for p in (0, 1, 7, 100):
        for i in range(13):
            angle = p / 10000 ** (2 * i / 26)
            assert table[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=2e-5)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=2e-5)


def test_a_shift_is_a_rotation_of_each_pair():
    """The paper's reason for sines: the vector at p + 5 is a fixed linear function of the vector at p."""
    d, shift = 14, 5
    table = sinusoidal_positions(40, d).double().unflatten(1, (d // 2, 2))
    angle = shift * 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    sin, cos = table[..., 0], table[..., 1]
    moved = torch.stack([sin * angle.cos() + cos * angle.sin(), cos * angle.cos() - sin * angle.sin()], -1)
    torch.testing.assert_close(moved[:-shift], table[shift:], rtol=0, atol=1e-5)


def test_positions_need_an_even_width():
    with pytest.raises(ValueError, match="d=7 is odd"):
        sinusoidal_positions(3, 7)


# ----------------------------------------------------------------------------------------------- layers, as an oracle


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    parts = (ours.to_q, ours.to_k, ours.to_v)
    for part, weight, bias in zip(parts, theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True):
        part.weight.copy_(weight)
        part.bias.copy_(bias)
    ours.to_out.load_state_dict(theirs.out_proj.state_dict())


@torch.no_grad()
def copy_layer(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy a layer of PyTorch's encoder or decoder into ours."""
    copy_attention(ours.self_attention, theirs.self_attn)
    if isinstance(theirs, nn.TransformerDecoderLayer):
        copy_attention(ours.cross_attention, theirs.multihead_attn)
    ours.feed_forward[0].load_state_dict(theirs.linear1.state_dict())
    ours.feed_forward[2].load_state_dict(theirs.linear2.state_dict())
    for i, norm in enumerate(ours.norms, start=1):
        norm.load_state_dict(getattr(theirs, f"norm{i}").state_dict())


def test_encoder_layers_equal_torch():
    make = nn.TransformerEncoderLayer(D, HEADS, D_FF, dropout=0.0, batch_first=True)
    theirs = randomise(nn.TransformerEncoder(make, LAYERS, enable_nested_tensor=False)).double()
    ours = nn.ModuleList(EncoderLayer(D, HEADS, D_FF, attention=with_bias) for _ in range(LAYERS)).double()
    for mine, other in zip(ours, theirs.layers, strict=True):
        copy_layer(mine, other)
    x = torch.randn(B, N, D, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    expected = theirs(x, src_key_padding_mask=~keep)
    out = x
    for layer in ours:
        out = layer(out, keep[:, None, :])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), x)[0] for y in (out, expected)), rtol=0, atol=1e-10)


def test_decoder_layers_equal_torch():
    make = nn.TransformerDecoderLayer(D, HEADS, D_FF, dropout=0.0, batch_first=True)
    theirs = randomise(nn.TransformerDecoder(make, LAYERS)).double()
    ours = nn.ModuleList(DecoderLayer(D, HEADS, D_FF, attention=with_bias) for _ in range(LAYERS)).double()
    for mine, other in zip(ours, theirs.layers, strict=True):
        copy_layer(mine, other)
    x, memory = torch.randn(B, N, D, dtype=torch.float64), torch.randn(B, SOURCE, D, dtype=torch.float64)
    memory_keep = torch.tensor([[1] * 4 + [0] * 3, [1] * 7], dtype=torch.bool)
    causal = torch.ones(N, N, dtype=torch.bool).tril()
    expected = theirs(x, memory, tgt_mask=~causal, memory_key_padding_mask=~memory_keep)
    for layer in ours:
        x = layer(x, memory, causal[None], memory_keep[:, None, :])
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-11)


def test_whole_decoder_equals_torch_between_embedding_and_logits():
    make = nn.TransformerDecoderLayer(D, HEADS, D_FF, dropout=0.0, batch_first=True)
    theirs = randomise(nn.TransformerDecoder(make, LAYERS)).double()
    ours = Decoder(VOCABULARY, D, HEADS, LAYERS, D_FF, layer=partial(DecoderLayer, attention=with_bias)).double()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        copy_layer(mine, other)
    ids, memory = tokens(N), torch.randn(B, SOURCE, D, dtype=torch.float64)
    memory_keep = torch.tensor([[1] * 4 + [0] * 3, [1] * 7], dtype=torch.bool)
    x = ours.embed.weight[ids] * math.sqrt(D) + sinusoidal_positions(N, D).double()
    blocked = torch.ones(N, N, dtype=torch.bool).triu(1)
    expected = theirs(x, memory, tgt_mask=blocked, memory_key_padding_mask=~memory_keep) @ ours.embed.weight.T
    torch.testing.assert_close(ours(ids, memory, memory_keep), expected, rtol=0, atol=1e-11)


def test_dropout_is_on_in_training_and_off_in_evaluation():
    model = Decoder(VOCABULARY, D, HEADS, LAYERS, D_FF, dropout=0.5, cross=False)
    ids = tokens(N)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


# --------------------------------------------------------------------------------------------------- who sees what


def influence(model, embed: nn.Embedding, ids: torch.Tensor, *rest) -> torch.Tensor:
    """(n_out, n_in) booleans: does output i of the first row move with the embedding of token j?"""
    rows = embed.weight.detach()[ids].requires_grad_()
    hook = embed.register_forward_hook(lambda *_: rows)
    out = model(ids, *rest)
    hook.remove()
    scalars = out[0] @ torch.randn(out.shape[-1])
    grads = [torch.autograd.grad(scalar, rows, retain_graph=True)[0] for scalar in scalars]
    return torch.stack([g[0].abs().sum(-1) > 0 for g in grads])


def test_decoder_sees_itself_and_the_past_only():
    model = randomise(Decoder(VOCABULARY, D, HEADS, LAYERS, D_FF, cross=False))
    assert torch.equal(influence(model, model.embed, tokens(N)), torch.ones(N, N).tril().bool())


def test_encoder_sees_everything_but_padding():
    model = randomise(Encoder(VOCABULARY, D, HEADS, LAYERS, D_FF))
    keep = torch.tensor([[1, 1, 1, 0, 0]] * B, dtype=torch.bool)
    seen = influence(model, model.embed, tokens(N), keep)
    assert seen[:3, :3].all() and not seen[:3, 3:].any()


def test_padding_of_the_source_changes_nothing():
    model = randomise(small_transformer()).double()
    source, target = tokens(SOURCE), tokens(N)
    keep = torch.ones(B, SOURCE, dtype=torch.bool)
    longer = torch.cat([source, tokens(3)], dim=1)
    longer_keep = torch.cat([keep, torch.zeros(B, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(model(source, target, keep), model(longer, target, longer_keep))


def test_batch_elements_do_not_meet_even_when_batch_and_length_are_equal():
    model = randomise(small_transformer())
    source, target = tokens(N, N), tokens(N, N)
    together = model(source, target)
    for b in range(N):
        torch.testing.assert_close(model(source[b : b + 1], target[b : b + 1])[0], together[b], rtol=1e-4, atol=1e-4)


def test_without_positions_the_encoder_is_blind_to_order():
    none = lambda length, d: torch.zeros(length, d)  # noqa: E731
    order = torch.randperm(SOURCE)
    ids = tokens(SOURCE)
    for positions, equal in ((none, True), (sinusoidal_positions, False)):
        model = randomise(Encoder(VOCABULARY, D, HEADS, LAYERS, D_FF, positions=positions)).double()
        assert torch.allclose(model(ids[:, order]), model(ids)[:, order]) is equal


# --------------------------------------------------------------------------------------------------- sizes and starts


def test_embeddings_start_as_large_as_positions():
    model = Encoder(997, 64, 4, 1, 17)
    embedded = (model.embed.weight * math.sqrt(64)).norm(dim=-1).mean()
    positions = sinusoidal_positions(50, 64).norm(dim=-1).mean()
    assert 1.2 < (embedded / positions).item() < 1.6  # sqrt(64) against sqrt(32)


def test_first_loss_is_near_a_uniform_guess():
    model = Decoder(997, 64, 4, 2, 128, cross=False)
    ids = torch.randint(997, (11, 13))
    # Logits of variance 1 cost half a nat more than logits of 0; tying adds a little: it favours the token just read.
    assert next_token_loss(model(ids[:, :-1]), ids[:, 1:]).item() == pytest.approx(math.log(997) + 0.5, abs=0.5)


def test_tying_and_sharing_leave_one_matrix():
    model = small_transformer()
    assert model.encoder.embed.weight is model.decoder.embed.weight is model.decoder.to_logits.weight
    apart = small_transformer(share=False)
    assert apart.encoder.embed.weight is not apart.decoder.embed.weight
    untied = Decoder(VOCABULARY, D, HEADS, LAYERS, D_FF, tie=False)
    assert untied.embed.weight is not untied.to_logits.weight
    with pytest.raises(ValueError, match=r"cannot share .*\(23, 12\) and \(19, 12\)"):
        Transformer(Encoder(23, D, HEADS, 1, D_FF), Decoder(VOCABULARY, D, HEADS, 1, D_FF))


def test_base_model_has_the_papers_size():
    """The base model has 65 million parameters with a joint vocabulary of about 37,000 tokens (table 3)."""
    with torch.device("meta"):
        encoder, decoder = (part(37000, 512, 8, 6, 2048) for part in (Encoder, Decoder))
    assert sum(p.numel() for p in Transformer(encoder, decoder).parameters()) == pytest.approx(65e6, rel=0.04)


def test_fused_attention_gives_the_same_model():
    model = randomise(small_transformer())
    source, target = tokens(SOURCE), tokens(N)
    expected = model(source, target)
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.attend = fused_attention
    torch.testing.assert_close(model(source, target), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------- training and continuing


def test_learning_rate_is_the_papers():
    assert paper_learning_rate(4000, 512) == pytest.approx(512**-0.5 * 4000**-0.5)
    assert paper_learning_rate(1000, 512) == pytest.approx(paper_learning_rate(4000, 512) / 4)
    assert paper_learning_rate(16000, 512) == pytest.approx(paper_learning_rate(4000, 512) / 2)
    rates = [paper_learning_rate(s, 64, warmup=7) for s in range(1, 20)]
    assert max(rates) == rates[6]
    with pytest.raises(ValueError, match="step=0"):
        paper_learning_rate(0, 512)


def test_loss_counts_targets_and_spreads_the_smoothing():
    logits, targets = torch.randn(B, N, VOCABULARY), tokens(N).clamp(min=1)
    targets[0, 3:] = 0
    log_p = logits.log_softmax(-1)
    picked = log_p.gather(-1, targets[..., None])[..., 0]
    counted = targets != 0
    torch.testing.assert_close(next_token_loss(logits, targets, pad=0), -picked[counted].mean())
    smooth = 0.9 * picked + 0.1 * log_p.mean(-1)
    torch.testing.assert_close(next_token_loss(logits, targets, pad=0, smoothing=0.1), -smooth[counted].mean())
    torch.testing.assert_close(next_token_loss(logits, targets), -picked.mean())


def counting(tokens):
    """A model that is sure the next token is one more than the last, modulo the vocabulary."""
    return 9.0 * nn.functional.one_hot((tokens + 1) % VOCABULARY, VOCABULARY).float()


def test_continuing_stops_at_the_end_token_of_every_row():
    prompt = torch.tensor([[3, 4], [6, 7]])
    expected = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [6, 7, 8, 9, 9, 9, 9]])
    assert torch.equal(continue_tokens(counting, prompt, end=9, longest=50), expected)
    assert torch.equal(continue_tokens(counting, prompt, end=9, longest=4), expected[:, :4])
    assert torch.equal(continue_tokens(counting, prompt, end=9, longest=2), prompt)


def test_temperature_one_draws_from_the_model():
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    model = lambda ids: probabilities.log().expand(*ids.shape, 3)  # noqa: E731
    g = torch.Generator().manual_seed(0)
    prompt = torch.zeros(20000, 1, dtype=torch.int64)
    drawn = continue_tokens(model, prompt, end=99, longest=2, temperature=1.0, generator=g)
    torch.testing.assert_close(drawn[:, 1].bincount() / 20000, probabilities, rtol=0, atol=0.015)
    half = continue_tokens(model, prompt, end=99, longest=2, temperature=0.5, generator=g)
    squared = probabilities.square() / probabilities.square().sum()
    torch.testing.assert_close(half[:, 1].bincount() / 20000, squared, rtol=0, atol=0.015)


def test_continuing_refuses_nonsense():
    with pytest.raises(ValueError, match="empty"):
        continue_tokens(counting, torch.zeros(2, 0, dtype=torch.int64), end=9, longest=5)
    with pytest.raises(ValueError, match="temperature=-1"):
        continue_tokens(counting, torch.zeros(2, 1, dtype=torch.int64), end=9, longest=5, temperature=-1.0)


@pytest.mark.parametrize("seed", range(6))
def test_translate_takes_the_likeliest_token_at_every_place(seed):
    torch.manual_seed(seed)
    decoder = Decoder(VOCABULARY, D, HEADS, LAYERS, D_FF, tie=False)  # a tied one with random weights repeats itself
    model = randomise(Transformer(Encoder(VOCABULARY, D, HEADS, LAYERS, D_FF), decoder)).eval()
    source, keep = tokens(SOURCE), torch.tensor([[1] * 2 + [0] * 5, [1] * 7], dtype=torch.bool)
    end = VOCABULARY - 1
    out = model.translate(source, start=1, end=end, longest=6, source_keep=keep)
    assert (out[:, 0] == 1).all()
    again = model(source, out, keep).argmax(-1)
    for b in range(B):
        for i in range(1, out.shape[1]):
            assert out[b, i] == (end if out[b, i - 1] == end else again[b, i - 1])


def test_learns_to_copy():
    encoder = Encoder(11, 32, 2, 1, 64)
    model = Transformer(encoder, Decoder(11, 32, 2, 1, 64))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    for _ in range(200):
        source = torch.randint(1, 11, (32, 5))
        target = torch.cat([torch.zeros(32, 1, dtype=torch.int64), source], dim=1)
        loss = next_token_loss(model(source, target[:, :-1]), target[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    source = torch.randint(1, 11, (64, 5))
    assert (model.translate(source, start=0, end=99, longest=6)[:, 1:] == source).float().mean() > 0.9

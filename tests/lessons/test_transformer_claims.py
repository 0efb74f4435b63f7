"""The direction of every claim that lesson 02 makes, at sizes that train in seconds, with fixed seeds."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from course_lib.data.captions import describe, questions
from course_lib.data.sampling import sample_scenes
from course_lib.data.tokenizer import Tokenizer
from course_lib.models.transformer import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    Transformer,
    next_token_loss,
    sinusoidal_positions,
)
from course_lib.nn.attention import MultiHeadAttention, attention, attention_maps, fused_attention
from course_lib.training.loop import train

SYMBOLS, START, LENGTH = 10, 10, 6


def unscaled(q, k, v, keep=None):
    return attention(q * math.sqrt(q.shape[-1]), k, v, keep)


def blind(q, k, v, keep=None):
    return fused_attention(q, k, v, None)


def no_positions(length, d):
    return torch.zeros(length, d)


def batch(step, b=32):
    source = torch.randint(SYMBOLS, (b, LENGTH), generator=torch.Generator().manual_seed(step))
    return source, torch.cat([torch.full((b, 1), START), source.flip(1)], dim=1)


def reverser(d, heads, steps, lr, attend=fused_attention, positions=sinusoidal_positions):
    """Train a Transformer of one layer to reverse, and return it with its accuracy."""
    torch.manual_seed(0)
    make_attention = partial(MultiHeadAttention, attend=attend)
    make_encoder_layer, make_decoder_layer = (
        partial(c, attention=make_attention) for c in (EncoderLayer, DecoderLayer)
    )
    model = Transformer(
        Encoder(SYMBOLS + 1, d, heads, 1, 64, layer=make_encoder_layer, positions=positions),
        Decoder(SYMBOLS + 1, d, heads, 1, 64, layer=make_decoder_layer, positions=positions),
    )

    def loss_of_step(step):
        source, target = batch(step)
        return next_token_loss(model(source, target[:, :-1]), target[:, 1:])

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in train(loss_of_step, model, [optimizer], steps=steps):
        pass
    source, target = batch(10**6, 200)
    written = model.translate(source, START, end=-1, longest=LENGTH + 1)
    return model, (written == target)[:, 1:].float().mean().item()


@pytest.fixture(scope="module")
def with_positions():
    return reverser(32, 2, 250, 5e-3)


def test_position_matters(with_positions):
    accuracy, without = with_positions[1], reverser(32, 2, 250, 5e-3, positions=no_positions)[1]
    assert accuracy > 0.9
    assert 1 / SYMBOLS < without < 0.5  # it still knows which symbols there are


def test_a_reverser_reads_along_the_antidiagonal(with_positions):
    source, target = batch(10**6, 50)
    with torch.no_grad(), attention_maps(with_positions[0]) as maps:
        with_positions[0](source, target[:, :-1])
    weights = maps["decoder.layers.0.cross_attention"].mean(0)
    share = weights.flip(-1).diagonal(dim1=-2, dim2=-1).mean(-1)
    assert share.max() > 3 / LENGTH


def test_wide_heads_need_the_scale_at_every_learning_rate():
    torch.set_flush_denormal(True)  # weights like 1e-40, of which there are many without the scale, are slow
    try:
        scaled = reverser(128, 1, 120, 2e-3, attend=attention)[1]
        without = {rate: reverser(128, 1, 120, rate, attend=unscaled)[1] for rate in (5e-4, 2e-3, 8e-3)}
    finally:
        torch.set_flush_denormal(False)
    assert scaled > max(without.values()) + 0.3, without


def test_without_the_scale_softmax_starts_decided_and_its_gradient_small():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 500, 256, generator=g), torch.randn(1, 1, 12, 256, generator=g)
    strongest = {f: f(q, k, k)[1].amax(-1).mean().item() for f in (attention, unscaled)}
    assert strongest[attention] < 0.5 and strongest[unscaled] > 0.9
    scores = q @ k.transpose(-2, -1)
    # The largest slope of a softmax row is w (1 - w) at its strongest weight.
    slope = {}
    for divisor in (1, 16):
        weights = (scores / divisor).softmax(-1)
        slope[divisor] = (weights * (1 - weights)).mean()
    assert slope[1] < slope[16] / 4


def test_without_a_causal_mask_the_loss_falls_below_what_is_honest():
    """Random tokens cannot be predicted: nobody honest gets below ln 10 nats."""
    final = {}
    for name, attend in (("honest", fused_attention), ("cheating", blind)):
        torch.manual_seed(0)
        layer = partial(DecoderLayer, attention=partial(MultiHeadAttention, attend=attend))
        model = Decoder(SYMBOLS, 32, 2, 1, 64, layer=layer, cross=False)

        def loss_of_step(step, model=model):
            ids = torch.randint(SYMBOLS, (32, 9), generator=torch.Generator().manual_seed(step))
            return next_token_loss(model(ids[:, :-1]), ids[:, 1:])

        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98), weight_decay=0.0)
        final[name] = sum(s.loss for s in train(loss_of_step, model, [optimizer], steps=300) if s.step > 280) / 20
    assert final["honest"] > math.log(SYMBOLS) - 0.1
    assert final["cheating"] < math.log(SYMBOLS) / 3


@pytest.mark.parametrize("positions", [sinusoidal_positions, no_positions])
def test_answers_become_cheaper_than_captions(positions):
    """A reader looks answers up; attributes in a caption stay dice. Its causal mask is order enough for that."""
    tokenizer, g = Tokenizer(), torch.Generator().manual_seed(0)
    texts = []
    for scene in sample_scenes(2000, g, colour=True, sizes=("small", "medium", "large")).to_scenes():
        asked = [qa for qa in questions(scene) if qa.question.startswith(("where", "what colour"))]
        caption = describe(scene, "descriptive").split(".")[0]
        texts.append(f"{caption}. " + " ".join(f"{qa.question} {qa.answer}" for qa in asked))
    ids = tokenizer.encode(texts)
    train_ids, test_ids = ids[:-200], ids[-200:]
    torch.manual_seed(0)
    layer = partial(DecoderLayer, attention=partial(MultiHeadAttention, attend=fused_attention))
    model = Decoder(len(tokenizer), 48, 4, 2, 96, layer=layer, positions=positions, cross=False)

    def loss_of_step(step):
        chosen = torch.randint(len(train_ids), (32,), generator=torch.Generator().manual_seed(step))
        return next_token_loss(model(train_ids[chosen, :-1]), train_ids[chosen, 1:], pad=tokenizer.pad)

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in train(loss_of_step, model, [optimizer], steps=220):
        pass
    inputs, targets = test_ids[:, :-1], test_ids[:, 1:]
    with torch.no_grad():
        surprise = F.cross_entropy(model(inputs).transpose(1, 2), targets, reduction="none")
    question_mark = tokenizer.encode("?")[1]
    full_stop = tokenizer.encode(".")[1]
    asked, closed = (inputs == question_mark).cumsum(1), (inputs == full_stop).cumsum(1)
    in_answer = (asked == closed) & (asked > 0) & (targets != tokenizer.pad)
    in_caption = ((inputs == question_mark).cumsum(1) == 0) & (targets != tokenizer.pad)
    assert surprise[in_answer].mean() < 0.6 * surprise[in_caption].mean()


def test_a_causal_mask_leaks_order_and_an_encoder_has_none():
    """Without positions: the encoder's vectors are shuffled with the tokens, the decoder's last one changes."""
    torch.manual_seed(0)
    encoder = Encoder(SYMBOLS, 32, 2, 2, 64, positions=no_positions)
    decoder = Decoder(SYMBOLS, 32, 2, 2, 64, positions=no_positions, cross=False)
    tokens, order = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([2, 0, 1, 4, 3, 5])  # the last stays last
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens[:, order]), encoder(tokens)[:, order], atol=1e-5, rtol=0)
        assert (decoder(tokens[:, order]) - decoder(tokens))[:, -1].abs().max() > 1e-2


def test_the_two_dotted_lines_are_what_they_say():
    """Writing only the commonest symbol, or the symbols in random order, is right as often as the counts say."""
    g = torch.Generator().manual_seed(0)
    source = torch.randint(SYMBOLS, (2000, 12), generator=g)
    counts = F.one_hot(source).sum(1) / 12.0
    commonest = (source == counts.argmax(1, keepdim=True)).float().mean()
    shuffled = (source == source.gather(1, torch.rand(2000, 12, generator=g).argsort(1))).float().mean()
    assert torch.isclose(commonest, counts.amax(1).mean(), atol=1e-5)
    assert torch.isclose(shuffled, counts.square().sum(1).mean(), atol=0.01)

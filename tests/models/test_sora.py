"""The generator's network: packed is alone, sizes are free, every frame has its own time, captions reach their clip."""

import pytest
import torch

from course_lib.models.sora import WAYS, Sora, SoraConfig, Text, TextReader
from course_lib.nn.positions import rotary_angles, rotate

SIZES = ((5, 6, 6), (1, 4, 8), (3, 8, 4), (2, 2, 2))


def small(**sizes) -> SoraConfig:
    return SoraConfig(**{"latent_channels": 3, "d": 24, "depth": 2, "heads": 2, "d_text": 7} | sizes)


def shaken(config: SoraConfig) -> Sora:
    torch.manual_seed(0)
    model = Sora(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def batch(sizes=SIZES, seed=0) -> tuple[list, list, Text]:
    g = torch.Generator().manual_seed(seed)
    clips = [torch.randn(3, *size, generator=g) for size in sizes]
    times = [torch.rand(size[0], generator=g) for size in sizes]
    keep = torch.arange(4) < torch.randint(1, 5, (len(sizes), 1), generator=g)
    words = torch.randn(len(sizes), 4, 7, generator=g)
    return clips, times, Text(words, keep, torch.randn(len(sizes), 7, generator=g))


def one(text: Text, i: int) -> Text:
    return Text(*(part[i : i + 1] for part in text))


@pytest.mark.parametrize("way", WAYS)
def test_packed_is_alone(way):
    model, (clips, times, text) = shaken(small(attention=way)), batch()
    together = model(clips, times, text, row=70)
    for i in range(len(clips)):
        alone = model(clips[i : i + 1], times[i : i + 1], one(text, i))[0]
        assert alone.shape == clips[i].shape
        torch.testing.assert_close(together[i], alone, atol=2e-5, rtol=1e-4)


def test_nothing_passes_from_one_clip_to_another():
    model, (clips, times, text) = shaken(small()), batch()
    clips[1].requires_grad_()
    words = text.words.clone().requires_grad_()
    out = model(clips, times, text._replace(words=words), row=70)
    sum(out[i].square().sum() for i in (0, 2, 3)).backward()
    assert clips[1].grad is None or not clips[1].grad.any()
    assert not words.grad[1].any() and all(words.grad[i].any() for i in (0, 2, 3))


def test_words_that_are_not_there_are_not_read():
    model, (clips, times, text) = shaken(small()), batch()
    loud = torch.where(text.keep[..., None], text.words, 100.0)
    assert not text.keep.all()
    for a, b in zip(model(clips, times, text), model(clips, times, text._replace(words=loud)), strict=True):
        torch.testing.assert_close(a, b)


def test_every_frame_has_its_own_time():
    model, (clips, times, text) = shaken(small(depth=1)), batch()
    model.blocks[0].attention.out.weight.data.zero_()  # frames cannot hear of each other's time by attention
    before = model(clips, times, text)[0]
    times[0] = times[0].clone()
    times[0][3] = 0.0
    moved = (model(clips, times, text)[0] - before).abs().amax(dim=(0, 2, 3))
    assert moved[3] > 1e-3 and moved[[0, 1, 2, 4]].max() < 1e-5


def test_a_piece_knows_when_it_happens():
    model, (clips, times, text) = shaken(small()), batch()
    at_first = model(clips, times, text)
    later = model(clips, times, text, begin=[0, 0, 2, 0])
    assert (later[2] - at_first[2]).abs().max() > 1e-3
    assert all(torch.equal(later[i], at_first[i]) for i in (0, 1, 3))


def test_a_new_model_says_nothing_and_a_new_block_changes_nothing():
    torch.manual_seed(0)
    clips, times, text = batch()
    model = Sora(small())
    assert all(not v.any() for v in model(clips, times, text))
    for p in model.out.parameters():
        torch.nn.init.normal_(p)
    deep = model(clips, times, text)
    model.blocks = model.blocks[:0]
    for a, b in zip(deep, model(clips, times, text), strict=True):
        assert torch.equal(a, b)


def test_attention_by_distance():
    """Rotated queries and keys meet in a product that knows only how far apart they are."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 12, generator=g)
    here, there = torch.tensor([[[3.0, 1.0, 2.0]]]), torch.tensor([[[1.0, 4.0, 2.0]]])
    pairs, far = (2, 2, 2), torch.tensor([[[5.0, 7.0, 11.0]]])
    product = lambda a, b: (rotate(q, rotary_angles(a, pairs)) * rotate(k, rotary_angles(b, pairs))).sum()  # noqa: E731
    torch.testing.assert_close(product(here, there), product(here + far, there + far))
    assert (product(here, there) - product(here, there + far)).abs() > 1e-3
    # the definition, with complex numbers: channel i is the real part and channel d/2 + i the imaginary one
    turned = torch.complex(*q.chunk(2, dim=-1)) * torch.exp(1j * rotary_angles(here, pairs))
    torch.testing.assert_close(rotate(q, rotary_angles(here, pairs)), torch.cat([turned.real, turned.imag], dim=-1))


def test_attention_knows_where_tokens_are_from_each_other():
    """Without rotary positions, and with the others silenced, mirrored patches would give the mirrored answer."""
    model, (clips, times, text) = shaken(small()), batch(((1, 4, 8),))
    model.place.weight.data.zero_()
    mirrored = lambda x: x.unflatten(3, (4, 2)).flip(3).flatten(3)  # noqa: E731
    there = mirrored(model([mirrored(clips[0])], times, text)[0])
    assert (there - model(clips, times, text)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_who_looks_at_whom(way):
    """By gradients of one block: everybody; the own frame; the own window of the own frame."""
    model = shaken(small(attention=way, depth=1))
    clips, times, text = batch(((2, 8, 8),))
    clips[0].requires_grad_()
    model(clips, times, text)[0][:, 0, 0, 0].sum().backward()
    heard = clips[0].grad.abs().sum(0)[:, ::2, ::2] > 0  # frames x 4 x 4 patches
    expected = {"joint": 32, "factorised": 16, "windowed": 16}[way]
    assert heard.sum() == expected and heard[0].all() and heard[1].all() == (way == "joint")


def test_the_caption_is_read_by_the_frozen_tower_of_lesson_05():
    reader = TextReader()
    text = reader(["a 3 moving left", ""])
    assert text.words.shape[:2] == text.keep.shape and text.words.shape[2] == 128 == text.whole.shape[1]
    assert text.keep.sum(1).tolist() == [6, 2] and torch.equal(text.whole[0], text.words[0, 5])
    assert not any(p.requires_grad for p in reader.parameters())


def test_bad_input_is_named():
    model, (clips, times, text) = shaken(small()), batch()
    with pytest.raises(ValueError, match="3 clips, 4 times and 4 captions"):
        model(clips[:3], times, text)
    with pytest.raises(ValueError, match="sideways"):
        Sora(small(attention="sideways"))


def test_a_checkpoint_comes_back(tmp_path):
    model, (clips, times, text) = shaken(small()), batch()
    model.save(tmp_path / "sora.safetensors", {"seed": 0})
    back = Sora.from_checkpoint(tmp_path / "sora.safetensors")
    assert back.config == model.config
    for a, b in zip(model(clips, times, text), back(clips, times, text), strict=True):  # a byte for most weights
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99

"""The direction of every claim that lesson 09 makes, at sizes that train in seconds, with fixed seeds."""

import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from course_lib.data.digits import load_digits
from course_lib.models.navit import NaViT, pack_images
from course_lib.models.vit import ViT, resize_positions
from course_lib.nn.packing import block_mask, document_attention, first_fit, first_fit_decreasing, next_fit
from course_lib.training.loop import train

PATCH = 7
DIGITS, UNSEEN = load_digits("embedded"), load_digits("embedded", "heldout")
TRAINED, LARGE, ROW = 28, 42, 36  # pixels of the longer side: the largest trained, the one tested, and tokens in a row


def as_it_is(image, side):
    rows, columns = ((image > 40).any(axis).nonzero()[:, 0] for axis in (1, 0))
    ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float() / 127.5 - 1
    size = [max(1, round(n * side / max(ink.shape))) for n in ink.shape]
    ink = F.interpolate(ink[None, None], size=size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    return F.pad(ink, (0, -size[1] % PATCH, 0, -size[0] % PATCH), value=-1.0)


def make(n, sides, seed=0):
    g = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(DIGITS), (n,), generator=g)
    each = torch.tensor(sides)[torch.randint(len(sides), (n,), generator=g)].tolist()
    return [as_it_is(DIGITS.images[i], side) for i, side in zip(chosen, each, strict=True)], DIGITS.labels[chosen]


def squeeze(images, edge=28):
    resized = [F.interpolate(x[None], size=(edge, edge), mode="bilinear", antialias=True)[0] for x in images]
    return torch.stack(resized)


def fit(model, batch, labels, steps):
    def loss_of_step(step):
        chosen = torch.randint(len(labels), (64,), generator=torch.Generator().manual_seed(step))
        return F.cross_entropy(model(batch(chosen.tolist())), labels[chosen])

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01)
    for _ in train(loss_of_step, model, [optimizer], steps=steps):
        pass
    return model.eval()


@torch.no_grad()
def accuracy(model, packed):
    return (model(packed).argmax(-1) == UNSEEN.labels).float().mean().item()


@pytest.fixture(scope="module")
def readers():
    images, labels = make(4000, range(14, TRAINED + 1))
    found = {}
    for fractional in (False, True):
        torch.manual_seed(0)
        model = NaViT(PATCH, 1, 10, d=48, heads=4, layers=3, d_ff=96, grid=(8, 8), fractional=fractional)
        cut = lambda chosen, f=fractional: pack_images([images[i] for i in chosen], PATCH, ROW, f)  # noqa: E731
        found[fractional] = fit(model, cut, labels, 300)
    return found


@pytest.fixture(scope="module")
def tests():
    return {side: [as_it_is(image, side) for image in UNSEEN.images] for side in (14, 21, TRAINED, LARGE)}


def test_fractional_positions_read_larger_digits_than_absolute_ones(readers, tests):
    right = {
        (f, side): accuracy(model, pack_images(tests[side], PATCH, ROW, f))
        for f, model in readers.items()
        for side in (TRAINED, LARGE)
    }
    assert min(right[False, TRAINED], right[True, TRAINED]) > 0.7, right
    assert right[True, LARGE] > right[False, LARGE] + 0.1, right
    packed = pack_images(tests[LARGE], PATCH, ROW)
    shrunk = replace(packed, positions=packed.positions * (TRAINED // PATCH - 1) / (LARGE // PATCH - 1))
    assert accuracy(readers[False], shrunk) > right[False, LARGE] + 0.05, right


def test_a_smaller_picture_reads_better_than_few_patches_of_a_larger_one(readers, tests):
    small = pack_images(tests[14], PATCH, ROW, True)
    g = torch.Generator().manual_seed(0)
    rates = [0.65] * len(UNSEEN)
    few = pack_images(tests[TRAINED], PATCH, ROW, True, rates=rates, generator=g)
    assert (few.ids >= 0).sum() > (small.ids >= 0).sum()
    assert accuracy(readers[True], small) > accuracy(readers[True], few) + 0.05


def test_a_vit_of_one_size_reads_no_other_even_with_stretched_positions(tests):
    images, labels = make(4000, range(14, TRAINED + 1))
    squares = squeeze(images)
    torch.manual_seed(0)
    vit = fit(ViT((28, 28), PATCH, 1, 10, 48, 4, 3, 96), lambda chosen: squares[chosen], labels, 200)
    edge = LARGE // PATCH
    larger = ViT((LARGE, LARGE), PATCH, 1, 10, 48, 4, 3, 96)
    positions = resize_positions(vit.state_dict()["positions"], (4, 4), (edge, edge))
    larger.load_state_dict({**vit.state_dict(), "positions": positions})
    own, other = accuracy(vit, squeeze(tests[LARGE])), accuracy(larger, squeeze(tests[LARGE], LARGE))
    assert own > other + 0.2, (own, other)


def test_padding_zero_hurts_one_picture_of_the_batch_or_one_in_each_row(readers, tests):
    mixed = [tests[side][i] for i, side in enumerate([14, 21, 28] * 20)]
    model, packed = readers[True], pack_images(mixed, PATCH, 50, True)

    @torch.no_grad()
    def hurt(packed, ids):
        return ((model(replace(packed, ids=ids)) - model(packed)).abs().amax(-1) > 1e-3).nonzero()[:, 0].tolist()

    assert hurt(packed, packed.ids.clamp(min=0)) == [0]
    first = packed.ids[:, :1]
    padded = (packed.ids < 0).any(1)
    assert hurt(packed, torch.where(packed.ids < 0, first, packed.ids)) == sorted(first[padded, 0].tolist())
    equal = pack_images(list(squeeze(mixed)), PATCH, 48, True)
    assert hurt(equal, equal.ids.clamp(min=0)) == []


def test_packing_leaves_little_padding():
    sides = torch.randint(14, 57, (1000,), generator=torch.Generator().manual_seed(5)).tolist()
    lengths = [as_it_is(UNSEEN.images[i % len(UNSEEN)], side).numel() // 49 for i, side in enumerate(sides)]
    waste = lambda rule, c: 1 - sum(lengths) / (c * len(rule(lengths, c)))  # noqa: E731
    assert 1 - sum(lengths) / (64 * len(lengths)) > 0.5
    for capacity in (64, 128, 256):
        assert waste(first_fit_decreasing, capacity) <= waste(first_fit, capacity) < waste(next_fit, capacity)
        assert waste(first_fit, capacity) < 0.05


def test_packed_steps_are_faster_than_padded_ones_and_long_rows_slower():
    images, labels = make(128, range(14, 57))
    model = NaViT(PATCH, 1, 10, d=64, heads=4, layers=2, d_ff=128, grid=(8, 8))
    ways = {c: pack_images(images, PATCH, c) for c in (64, 1024)}
    ways["padded"] = pack_images(images, PATCH, 64, rows_of=lambda lengths, _: [[i] for i in range(len(lengths))])
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(4):
        for name, packed in ways.items():
            began = time.perf_counter()
            model.zero_grad()
            F.cross_entropy(model(packed), labels).backward()
            best[name] = min(best[name], time.perf_counter() - began)
    assert best["padded"] > 1.3 * best[64], best
    assert best[1024] > 1.3 * best[64], best


def test_flex_attention_has_no_backward_pass_on_a_cpu():
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="backward"):
        document_attention(q, q, q, torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1]]))


def test_a_row_of_eight_pictures_compares_eight_times_the_pairs():
    ids = torch.arange(8).repeat_interleave(16)[None]
    assert ids.shape[1] ** 2 == 8 * block_mask(ids).sum().item()

"""The direction of every claim that lesson 04 makes, at sizes that train in seconds, with fixed seeds."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.data.digits import load_digits
from course_lib.models.vit import ViT, attention_rollout, from_torchvision, resize_positions
from course_lib.nn.attention import attention_maps
from course_lib.nn.patches import patchify_image, unpatchify_image
from course_lib.training.loop import train

DIGITS, UNSEEN = load_digits("embedded"), load_digits("embedded", "heldout")


def as_pictures(images):
    return images[:, None].float() / 127.5 - 1


def make_pairs(source, n, seed, edge=14):
    """Two digits side by side; the label is the one on the left."""
    chosen = torch.randint(len(source), (n, 2), generator=torch.Generator().manual_seed(seed))
    small = source.at_size(edge)
    picture = torch.cat([small[chosen[:, 0]], small[chosen[:, 1]]], dim=2)
    return as_pictures(picture), source.labels[chosen[:, 0]]


def shuffle_squares(x):
    tokens = patchify_image(x, 7)
    order = torch.rand(tokens.shape[:2], generator=torch.Generator().manual_seed(9)).argsort(1)
    return unpatchify_image(tokens.gather(1, order[..., None].expand_as(tokens)), 7, *x.shape[-2:])


def build(image_size, positions=True, layers=2):
    torch.manual_seed(0)
    model = ViT(image_size, 7, 1, 10, d=48, heads=4, layers=layers, d_ff=96)
    if not positions:
        model.positions.requires_grad_(False).zero_()
    return model


def fit(model, x, y, steps, lr):
    def loss_of_step(step):
        chosen = torch.randint(len(x), (48,), generator=torch.Generator().manual_seed(step))
        return F.cross_entropy(model(x[chosen]), y[chosen])

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    for _ in train(loss_of_step, model, [optimizer], steps=steps):
        pass
    return model.eval()


@torch.no_grad()
def accuracy(model, x, y):
    return (model(x).argmax(-1) == y).float().mean().item()


@pytest.fixture(scope="module")
def left_readers():
    x, y = make_pairs(DIGITS, 8000, 0)
    return {on: fit(build((14, 28), positions=on), x, y, 250, 3e-3) for on in (True, False)}


def test_which_is_left_needs_positions(left_readers):
    x, y = make_pairs(UNSEEN, 500, 1)
    with_positions, without = left_readers[True], left_readers[False]
    assert accuracy(with_positions, x, y) > 0.85
    assert accuracy(with_positions, shuffle_squares(x), y) < 0.65
    assert 0.3 < accuracy(without, x, y) < 0.65  # it knows which two digits there are


def test_without_positions_shuffling_changes_nothing(left_readers):
    x, _ = make_pairs(UNSEEN, 200, 1)
    with torch.no_grad():
        moved = {on: (m(x) - m(shuffle_squares(x))).abs().max().item() for on, m in left_readers.items()}
    assert moved[False] < 1e-4 and moved[True] > 1


def test_the_halves_swapped_change_the_answer_of_the_one_with_positions_only(left_readers):
    x, _ = make_pairs(UNSEEN, 200, 1)
    swapped = torch.cat([x[..., 14:], x[..., :14]], dim=-1)
    with torch.no_grad():
        same = {on: (m(x).argmax(-1) == m(swapped).argmax(-1)).float().mean().item() for on, m in left_readers.items()}
    assert same[False] > 0.98 and same[True] < 0.4


def test_a_heap_of_large_squares_is_enough_to_read_a_digit():
    x, y = as_pictures(DIGITS.images), DIGITS.labels
    heap = fit(build((28, 28), positions=False), x, y, 200, 3e-3)
    assert accuracy(heap, as_pictures(UNSEEN.images), UNSEEN.labels) > 0.8


def test_stretched_positions_learn_larger_pictures_sooner(left_readers):
    x, y = make_pairs(DIGITS, 2000, 0, edge=28)
    test_x, test_y = make_pairs(UNSEEN, 300, 1, edge=28)
    old, right = left_readers[True].state_dict(), {}
    stretched = resize_positions(old["positions"], (2, 4), (4, 8))
    elsewhere = 1 + torch.randperm(32, generator=torch.Generator().manual_seed(0))
    rows = {"stretched": stretched, "shuffled": torch.cat([stretched[:1], stretched[elsewhere]]), "new": None}
    for name, positions in rows.items():
        model = build((28, 56))
        model.load_state_dict({**old, "positions": model.positions.detach() if positions is None else positions})
        right[name] = accuracy(fit(model, x, y, 60, 1e-3), test_x, test_y)
    assert right["stretched"] > max(right["new"], right["shuffled"]) + 0.05


def test_rollout_finds_the_left_digit(left_readers):
    """The class token of the one that must answer "left" looks at the left half."""
    x, _ = make_pairs(UNSEEN, 100, 1)
    share = {}
    for on, model in left_readers.items():
        with torch.no_grad(), attention_maps(model) as maps:
            model(x)
        grid = attention_rollout(list(maps.values()))[:, -1, 0, 1:].unflatten(-1, (2, 4)).mean((0, 1))
        share[on] = (grid[:2].sum() / grid.sum()).item()
    assert share[True] > 0.6 and share[False] < 0.58


def test_a_cnn_makes_fewer_mistakes_and_its_lead_in_points_shrinks_as_all_errors_do():
    def cnn():
        torch.manual_seed(0)
        layers = []
        for before, after, stride in ((1, 16, 2), (16, 32, 2), (32, 64, 2)):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    x, y = as_pictures(DIGITS.images), DIGITS.labels
    wrong = {"cnn": {}, "vit": {}}
    for amount in (100, len(x)):
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:amount]
        for name, make, lr in (("cnn", cnn, 5e-3), ("vit", lambda: build((28, 28)), 2e-3)):
            model = fit(make(), x[some], y[some], 150, lr)
            wrong[name][amount] = 1 - accuracy(model, as_pictures(UNSEEN.images), UNSEEN.labels)
    cnn_wrong, vit_wrong = wrong["cnn"], wrong["vit"]
    assert vit_wrong[100] - cnn_wrong[100] > 0.01
    assert vit_wrong[100] - cnn_wrong[100] > vit_wrong[len(x)] - cnn_wrong[len(x)]
    assert vit_wrong[len(x)] < 0.6 * vit_wrong[100] and cnn_wrong[len(x)] < 0.6 * cnn_wrong[100]


def test_norms_that_differ_are_told_apart_when_weights_are_read_from_torchvision():
    """With all weights shaken, as in the lesson, two swapped norms show; in a fresh model they would not."""
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    sizes = dict(image_size=28, patch_size=7, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5)
    theirs = VisionTransformer(**sizes).eval()
    image, difference = torch.randn(3, 3, 28, 28), {}
    other = {"ln_1": "ln_2", "ln_2": "ln_1"}
    for shaken in (False, True):
        with torch.no_grad():
            for p in theirs.parameters() if shaken else [theirs.heads.head.weight]:
                p.add_(0.2 * torch.randn_like(p))
            state, expected = theirs.state_dict(), theirs(image)
            swapped = {re.sub("ln_[12]", lambda found: other[found[0]], k): v for k, v in state.items()}
            difference[shaken] = (from_torchvision(swapped, heads=2)(image) - expected).abs().max().item()
            right = (from_torchvision(state, heads=2)(image) - expected).abs().max().item()
        assert right < 1e-4
    assert difference[False] < 1e-4 and difference[True] > 0.1

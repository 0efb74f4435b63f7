"""W.A.L.T: windows, who sees whom, pictures among clips, low-rank modulation, the second look."""

import pytest
import torch

from course_lib.models.walt import (
    AdaLNLoRA,
    Walt,
    WaltConfig,
    WindowBlock,
    given,
    picture_mask,
    self_conditioned,
    unwindow,
    walt_loss,
    window,
)

SMALL = WaltConfig(11, latent_channels=3, grid=(3, 4, 6), box=(2, 3), d=24, depth=4, heads=2, rank=2)


def scrambled(module):
    """Every weight moved, so that no zero hides a path."""
    torch.manual_seed(1)
    for p in module.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return module.double().eval()


def latents(b=2, seed=0):
    return torch.randn(b, 3, 3, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reach(function, x):
    """(tokens out, tokens in) of the first sample: does a token of the result depend on a token of x?"""
    x = x.clone().requires_grad_()
    out = function(x)[0].flatten(1)  # (z, tokens)
    rows = []
    for i in range(out.shape[1]):
        (grad,) = torch.autograd.grad(out[:, i].square().sum(), x, retain_graph=True)
        rows.append(grad[0].abs().sum(0).flatten() > 0)
    return torch.stack(rows)


def places():
    """(tokens, 3): frame, row and column of each token of the small grid."""
    return torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(6))


def test_windows_against_a_loop():
    x = torch.arange(2 * 4 * 6 * 10 * 3).view(2, 4, 6, 10, 3)
    boxes = []
    for sample in x:
        for f in range(0, 4, 2):
            for h in range(0, 6, 3):
                for w in range(0, 10, 5):
                    box = [sample[f + i, h + j, w + k] for i in range(2) for j in range(3) for k in range(5)]
                    boxes.append(torch.stack(box))
    assert torch.equal(window(x, (2, 3, 5)), torch.stack(boxes))
    assert torch.equal(unwindow(window(x, (2, 3, 5)), (2, 3, 5), (4, 6, 10)), x)


@pytest.mark.parametrize("size", [(3, 3, 5), (2, 4, 5), (2, 3, 4), (0, 3, 5)])
def test_a_grid_that_does_not_split_is_refused(size):
    with pytest.raises(ValueError, match="4 x 6 x 10 tokens is no whole number of boxes"):
        window(torch.zeros(1, 4, 6, 10, 2), size)


def test_two_kinds_of_windows_see_what_they_should():
    place = places()
    same_frame = place[:, None, 0] == place[None, :, 0]
    same_box = (place[:, None, 1] // 2 == place[None, :, 1] // 2) & (place[:, None, 2] // 3 == place[None, :, 2] // 3)
    modulation = torch.randn(1, 6 * 8, dtype=torch.float64)
    x = torch.randn(1, 8, 3, 4, 6, dtype=torch.float64)
    for size, expected in (((1, 4, 6), same_frame), ((3, 2, 3), same_box)):
        block = scrambled(WindowBlock(8, 2, 16, size))
        assert torch.equal(reach(lambda z, b=block: b(z.movedim(1, -1), modulation).movedim(-1, 1), x), expected)


def test_one_block_of_each_kind_reaches_everything():
    model = scrambled(Walt(SMALL))
    t, caption = torch.tensor([0.3], dtype=torch.float64), torch.tensor([[3, 4, 0]])
    assert reach(lambda z: model(z, t, caption), latents(1)).all()


def test_a_stack_of_pictures_shares_nothing_and_a_clip_beside_it_is_untouched():
    model = scrambled(Walt(SMALL))
    t, caption = torch.tensor([0.3, 0.6], dtype=torch.float64), torch.tensor([[3, 4, 0], [5, 0, 0]])
    flags = torch.tensor([True, False])
    place = places()
    same_frame = place[:, None, 0] == place[None, :, 0]
    x = latents()
    assert torch.equal(reach(lambda z: model(z, t, caption, is_image=flags), x), same_frame)
    both = model(x, t, caption, is_image=flags)
    torch.testing.assert_close(both[1:], model(x[1:], t[1:], caption[1:]))


def test_a_picture_is_the_same_wherever_it_lies_in_its_stack():
    model = scrambled(Walt(SMALL))
    t, caption, flag = torch.tensor([0.3], dtype=torch.float64), torch.tensor([[3, 4, 0]]), torch.tensor([True])
    x = latents(1)
    turned = model(x.flip(2), t, caption, is_image=flag).flip(2)
    torch.testing.assert_close(model(x, t, caption, is_image=flag), turned)


def test_the_mask_is_one_square_per_window():
    mask = picture_mask(torch.tensor([True, False, True]), windows=2, n=5)
    assert mask.shape == (6, 5, 5)
    assert torch.equal(mask[0], torch.eye(5, dtype=torch.bool)) and mask[2:4].all() and torch.equal(mask[5], mask[0])


def test_low_rank_modulation_against_its_formula_and_its_cost():
    module = scrambled(AdaLNLoRA(10, 4, rank=3))
    condition = torch.randn(5, 10, dtype=torch.float64)
    vectors = module(condition)
    shared = module.shared(condition)
    torch.testing.assert_close(vectors[0], shared)
    for i in range(3):
        matrix = module.up[i].weight @ module.down[i].weight
        assert torch.linalg.matrix_rank(matrix) == 3
        torch.testing.assert_close(vectors[i + 1], shared + condition @ matrix.T)
    numbers = sum(p.numel() for p in AdaLNLoRA(1152, 28).parameters())
    assert numbers == 1152 * 6 * 1152 + 6 * 1152 + 27 * 2 * (1152 + 6 * 1152)  # 8.4 M; 28 full ones: 223 M
    assert 28 * 1152 * 6 * 1152 / numbers > 26


def test_a_new_model_predicts_nothing_and_its_blocks_are_the_identity():
    model = Walt(SMALL).double()
    caption = torch.zeros(2, 3, dtype=torch.long)
    assert not model(latents(), torch.rand(2, dtype=torch.float64), caption).any()
    x = torch.randn(2, 3, 4, 6, 24, dtype=torch.float64)
    for block, told in zip(model.blocks, model.modulation(torch.randn(2, 24, dtype=torch.float64)), strict=True):
        assert torch.equal(block(x, told), x)


def test_every_weight_learns_after_a_few_steps():
    torch.manual_seed(0)
    model = Walt(SMALL)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(4):
        x0, eps = latents(4, step).float(), latents(4, 9 + step).float()
        asked, frames = torch.tensor([True, False, True, False]), torch.tensor([[True, False, False]]).expand(4, -1)
        loss = walt_loss(
            model, x0, torch.rand(4), eps, asked, frames, caption=torch.randint(1, 11, (4, 20)),
            is_image=torch.tensor([False, False, True, False]),
        )  # fmt: skip
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        if "words" not in name:
            assert not torch.equal(p, before[name]), name


def test_given_frames_are_clean_and_the_mask_tells_zeros_from_gaps():
    z, frames = latents(), torch.tensor([[True, False, False], [True, True, False]])
    known = given(z, frames)
    assert known.shape == (2, 4, 3, 4, 6)
    assert torch.equal(known[1, :3, :2], z[1, :, :2]) and not known[:, :, 2].any() and not known[0, :, 1:].any()
    assert known[0, 3, 0].eq(1).all() and not known[0, 3, 1:].any()


class Spy:
    """A model that remembers what it was asked, and answers with its weight times what it saw."""

    def __init__(self):
        self.asked, self.weight = [], torch.tensor(0.5, requires_grad=True, dtype=torch.float64)

    def __call__(self, xt, t, *, estimate, caption):
        self.asked.append((xt, t, estimate, caption, torch.is_grad_enabled()))
        return self.weight * (xt + 2 * estimate)


def test_the_second_look_sees_the_first_estimate_and_gradients_stop_there():
    spy, xt, t = Spy(), latents(), torch.tensor([0.3, 0.8], dtype=torch.float64)
    out = self_conditioned(spy, xt, t, torch.tensor([True, False]), caption="words")
    first, second = spy.asked
    assert not first[2].any() and not first[4] and second[4]
    assert all(torch.equal(look[0], xt) and torch.equal(look[1], t) and look[3] == "words" for look in spy.asked)
    estimate = xt - t.view(-1, 1, 1, 1, 1) * 0.5 * xt
    estimate[1] = 0
    torch.testing.assert_close(second[2], estimate)
    torch.testing.assert_close(out, 0.5 * (xt + 2 * estimate))
    (grad,) = torch.autograd.grad(out.sum(), spy.weight)
    torch.testing.assert_close(grad, (xt + 2 * estimate).sum())  # the estimate counts as a constant


def test_sizes_that_do_not_fit_are_refused():
    for change in ({"depth": 3}, {"box": (3, 3)}, {"box": (2, 4)}):
        with pytest.raises(ValueError, match="must tile 4 x 6 tokens"):
            Walt(WaltConfig(**{**vars(SMALL), **change}))

"""The loop: schedule, division of parameters, determinism, and that stopping and going on changes nothing."""

import pytest
import torch
from torch import nn

from course_lib.training.checkpoint import optimizer_tensors, restore_optimizer
from course_lib.training.ema import EMA
from course_lib.training.loop import matrices_and_rest, muon_and_adamw, train, warm_flat_decay


def test_the_schedule_rises_stays_and_falls():
    shares = [warm_flat_decay(step, 1000) for step in range(1000)]
    assert shares[0] == pytest.approx(1 / 50) and shares[49] == 1 and shares[499] == 1
    assert shares[749] == pytest.approx(0.51, abs=0.01) and shares[999] == pytest.approx(0.02, abs=0.003)
    assert warm_flat_decay(0, 1) > 0
    assert warm_flat_decay(2, 20) == 1  # a short run warms up for a tenth of its steps


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.hidden, self.last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.hidden(self.first(x).tanh()).tanh())


def setup():
    model = Net()
    return model, muon_and_adamw(model, [model.hidden], muon_lr=0.02, adamw_lr=0.01), EMA(model)


def loss_for(model):
    def loss(step):
        x = torch.randn(11, 3, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :2].flip(1)).square().mean()

    return loss


def test_muon_gets_the_chosen_matrices_and_adamw_all_the_rest():
    model = Net()
    matrices, rest = matrices_and_rest(model, [model.hidden])
    assert [p is model.hidden.weight for p in matrices] == [True]
    assert len(rest) == 5 and not any(p is model.hidden.weight for p in rest)
    assert len(muon_and_adamw(model, [])) == 1


def test_it_learns_and_reports_every_step():
    model, optimizers, ema = setup()
    steps = list(train(loss_for(model), model, optimizers, steps=150, ema=ema))
    assert [s.step for s in steps] == list(range(1, 151))
    assert sum(s.loss for s in steps[-10:]) < 0.2 * sum(s.loss for s in steps[:10])
    assert steps[0].lr < steps[60].lr == 1 > steps[-1].lr
    assert optimizers[0].param_groups[0]["lr"] == 0.02  # the peak is back afterwards
    assert all(s.grad_norm > 0 and s.seconds > 0 for s in steps)


def test_the_same_seed_gives_the_same_bits():
    runs = []
    for _ in range(2):
        model, optimizers, ema = setup()
        runs.append([s.loss for s in train(loss_for(model), model, optimizers, steps=9, ema=ema)])
    assert runs[0] == runs[1]


def test_stopping_and_going_on_gives_the_same_losses_and_weights():
    straight, optimizers, ema = setup()
    losses = [s.loss for s in train(loss_for(straight), straight, optimizers, steps=12, ema=ema)]

    model, optimizers, first_ema = setup()
    early = []
    for step in train(loss_for(model), model, optimizers, steps=12, ema=first_ema):
        early.append(step.loss)
        if step.step == 5:
            break
    names = {p: n for n, p in model.named_parameters()}
    states = [{k: v.clone() for k, v in optimizer_tensors(o, names).items()} for o in optimizers]

    other, optimizers, other_ema = setup()
    other.load_state_dict(model.state_dict())
    other_ema.restore(first_ema.weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        restore_optimizer(optimizer, {p: n for n, p in other.named_parameters()}, state)
    late = [s.loss for s in train(loss_for(other), other, optimizers, steps=12, start=5, ema=other_ema)]
    assert early + late == losses
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), straight.parameters(), strict=True))
    assert all(torch.equal(other_ema.weights[n], ema.weights[n]) for n in ema.weights)


def test_gradients_are_clipped_and_bad_losses_stop_the_run():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    report = next(iter(train(lambda step: 100 * model.weight.sum(), model, [optimizer], steps=10, clip=0.5)))
    assert report.grad_norm == 100
    assert model.weight.item() == pytest.approx(-0.5)
    with pytest.raises(RuntimeError, match="step 3 is nan"):
        list(train(lambda s: model.weight.sum() * (torch.nan if s == 3 else 1), model, [optimizer], steps=9))
    with pytest.raises(ValueError, match="start=7"):
        list(train(lambda s: model.weight.sum(), model, [optimizer], steps=5, start=7))

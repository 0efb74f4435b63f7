"""The VQ-VAE against loops, against closed forms, and against vector_quantize_pytorch with the same codebook."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from course_lib.models.autoencoder import AutoencoderConfig, KLAutoencoder
from course_lib.models.vqvae import (
    VQVAE,
    VectorQuantizer,
    ema_update,
    perplexity,
    quantize,
    restart_dead_codes,
    straight_through,
    vqvae_loss,
)

B, H, W, D, K = 2, 5, 3, 7, 11
CONFIG = AutoencoderConfig(channels=3, latent_channels=D, width=8, width_low=12, blocks=1, patch=2)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return module


def small(k: int = K, **options) -> VQVAE:
    return randomise(VQVAE(CONFIG, VectorQuantizer(k, D, **options)))


# ----------------------------------------------------------------------------------------------------------- functions


def test_nearest_code_equals_loops_and_cdist():
    z, codebook = torch.randn(B, H, W, D), torch.randn(K, D)
    codes, q = quantize(z, codebook)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                distances = [(z[b, i, j] - e).norm().item() for e in codebook]
                assert codes[b, i, j] == distances.index(min(distances))
                assert torch.equal(q[b, i, j], codebook[codes[b, i, j]])
    assert torch.equal(codes.flatten(), torch.cdist(z.reshape(-1, D).double(), codebook.double()).argmin(-1))


def test_a_code_is_its_own_nearest_one_and_quantizing_twice_changes_nothing():
    codebook = torch.randn(B * H * W, D)
    codes, q = quantize(codebook.view(B, H, W, D), codebook)
    assert torch.equal(codes.flatten(), torch.arange(B * H * W))
    assert torch.equal(quantize(q, codebook)[1], q)


def test_gradients_of_the_bottleneck_are_those_on_paper():
    """out passes to z unchanged; the codebook term gives 2 (q - z) / n to q, the commitment 2 beta (z - q) / n to z."""
    z, q = (torch.randn(B, H, W, D, requires_grad=True) for _ in range(2))
    out, loss = straight_through(z, q, beta=0.3)
    torch.testing.assert_close(out, q)
    upstream = torch.randn_like(out)
    (out * upstream).sum().backward(retain_graph=True)
    torch.testing.assert_close(z.grad, upstream)
    assert q.grad is None
    z.grad = None
    loss.backward()
    torch.testing.assert_close(z.grad, 0.3 * 2 * (z - q).detach() / z.numel())
    torch.testing.assert_close(q.grad, 2 * (q - z).detach() / z.numel())
    torch.testing.assert_close(loss, 1.3 * F.mse_loss(z, q))


def test_ema_update_equals_the_closed_form_over_many_steps():
    decay, eps, steps, m = 0.9, 0.01, 13, 17
    z, codes = torch.randn(steps, m, D).double(), torch.randint(K - 1, (steps, m))  # nobody ever chooses the last code
    start = torch.randn(K, D).double()
    count, total = torch.ones(K).double(), start.clone()
    for step in range(steps):
        codebook, count, total = ema_update(z[step], codes[step], count, total, decay, eps)
    weight = (1 - decay) * decay ** torch.arange(steps - 1, -1, -1).double()  # of each batch, at the end
    chosen = F.one_hot(codes, K).double()
    closed_count = decay**steps + torch.einsum("s,smk->k", weight, chosen)
    closed_total = decay**steps * start + torch.einsum("s,smk,smd->kd", weight, chosen, z)
    torch.testing.assert_close(count, closed_count)
    torch.testing.assert_close(total, closed_total)
    smoothed = (closed_count + eps) / (closed_count.sum() + K * eps) * closed_count.sum()
    torch.testing.assert_close(codebook, closed_total / smoothed[:, None])
    torch.testing.assert_close(smoothed.sum(), closed_count.sum())


def test_without_memory_the_update_is_one_step_of_k_means():
    z, codebook = torch.randn(1, 1, 97, D), torch.randn(K, D)
    codes, _ = quantize(z, codebook)
    new, _, _ = ema_update(z[0, 0], codes[0, 0], torch.ones(K), codebook, decay=0.0, eps=1e-9)
    for i in codes.unique():
        torch.testing.assert_close(new[i], z[codes == i].mean(0))
    assert new.isfinite().all()


def test_zero_debiasing_cancels():
    """Dividing both averages by 1 - decay^t, as Sonnet does, leaves the codebook as it is once eps is negligible."""
    z, codes = torch.randn(5, 19, D).double(), torch.arange(19) % K
    count, total = torch.zeros(K).double(), torch.zeros(K, D).double()
    for step in range(5):
        codebook, count, total = ema_update(z[step], codes, count, total, 0.99, 1e-12)
    correction = 1 - 0.99**5
    torch.testing.assert_close(codebook, (total / correction) / (count / correction)[:, None])


def test_perplexity_of_known_usage():
    assert perplexity(torch.full((B, H, W), 4)).item() == pytest.approx(1)
    assert perplexity(torch.arange(30).view(2, 5, 3)).item() == pytest.approx(30, rel=1e-5)
    codes = torch.tensor([0, 0, 0, 9]).view(1, 2, 2)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert perplexity(codes).item() == pytest.approx(expected, rel=1e-5)
    drawn = torch.randint(K, (B, H, W))
    entropy = torch.distributions.Categorical(probs=drawn.flatten().bincount().float()).entropy()
    torch.testing.assert_close(perplexity(drawn), entropy.exp())
    with pytest.raises(ValueError, match="at least one code"):
        perplexity(torch.zeros(0, 3, 3, dtype=torch.int64))


def test_restart_moves_the_dead_in_order_and_leaves_the_living():
    codebook, count = torch.randn(K, D), torch.full((K,), 5.0)
    total = count[:, None] * codebook
    count[[2, 3, 8]] = torch.tensor([0.1, 0.5, 0.4999])
    new, new_count, new_total = restart_dead_codes(codebook, count, total, candidates := torch.randn(4, D), 0.5)
    assert torch.equal(new[[2, 8]], candidates[:2])
    assert torch.equal(new_count[[2, 8]], torch.full((2,), 0.5))
    torch.testing.assert_close(new_total[[2, 8]], 0.5 * candidates[:2])
    living = [i for i in range(K) if i not in (2, 8)]
    for after, before in ((new, codebook), (new_count, count), (new_total, total)):
        assert torch.equal(after[living], before[living])
    few = restart_dead_codes(codebook, count, total, candidates[:1], 0.5)
    assert torch.equal(few[0][8], codebook[8]) and torch.equal(few[0][2], candidates[0])
    assert torch.equal(restart_dead_codes(codebook, count, total, candidates[:0], 0.5)[0], codebook)


# ------------------------------------------------------------------------- against an independent implementation


def theirs_with(codebook, **options):
    theirs = VectorQuantize(
        dim=D, codebook_size=K, rotation_trick=False, commitment_weight=0.25, decay=0.99,
        threshold_ema_dead_code=0, eps=1e-5, **options,
    )  # fmt: skip
    with torch.no_grad():
        theirs._codebook.embed.copy_(codebook)
        theirs._codebook.embed_avg.copy_(codebook)
    return theirs


@pytest.mark.parametrize("training", [True, False])
def test_equals_vector_quantize_pytorch(training):
    ours = VectorQuantizer(K, D, restart=0).train(training)
    theirs = theirs_with(ours.codebook).train(training)
    for _ in range(5 if training else 1):
        z, theirs_z = (x := torch.randn(B, H, W, D)).clone().requires_grad_(), x.clone().requires_grad_()
        result = ours(z)
        out, codes, loss = theirs(theirs_z.flatten(1, 2))  # theirs takes sequences
        out, codes = out.view_as(z), codes.view(B, H, W)
        assert torch.equal(result.codes, codes)
        torch.testing.assert_close(result.out, out)
        if training:  # at rest, theirs passes neither gradients nor a loss
            upstream = torch.randn_like(out)
            (result.out * upstream).sum().add(result.loss).backward()
            (out * upstream).sum().add(loss.sum()).backward()
            torch.testing.assert_close(z.grad, theirs_z.grad)
            torch.testing.assert_close(result.loss, loss.squeeze())
        torch.testing.assert_close(ours.codebook, theirs._codebook.embed[0])
    torch.testing.assert_close(ours.count, theirs._codebook.cluster_size[0])
    torch.testing.assert_close(ours.total, theirs._codebook.embed_avg[0])


def test_learnable_codebook_equals_vector_quantize_pytorch():
    ours = VectorQuantizer(K, D, ema=False, restart=0, beta=1.0)
    # Theirs weights both terms alike: with beta 1 and weight 1 the losses agree up to how the two are added.
    theirs = theirs_with(ours.codebook.detach(), ema_update=False, learnable_codebook=True).train()
    z, theirs_z = (x := torch.randn(B, H, W, D)).clone().requires_grad_(), x.clone().requires_grad_()
    result, (out, codes, _) = ours(z), theirs(theirs_z.flatten(1, 2))
    out, codes = out.view_as(z), codes.view(B, H, W)
    assert torch.equal(result.codes, codes)
    torch.testing.assert_close(result.out, out)
    result.loss.backward()
    codebook = theirs._codebook.embed[0]
    F.mse_loss(theirs_z.detach(), codebook[codes]).backward()
    torch.testing.assert_close(ours.codebook.grad, theirs._codebook.embed.grad[0])


# ------------------------------------------------------------------------------------------------------- the modules


def test_output_uses_the_codebook_from_before_the_update():
    quantizer, z = VectorQuantizer(K, D), torch.randn(B, H, W, D)
    before = quantizer.codebook.clone()
    result = quantizer(z)
    torch.testing.assert_close(result.out, before[result.codes])
    assert not torch.equal(quantizer.codebook, before)


def test_eval_mode_changes_nothing_and_the_ema_codebook_has_one_owner():
    model = small().eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model(torch.rand(B, 3, 20, 12) * 2 - 1)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert "quantizer.codebook" not in dict(model.named_parameters())
    assert "quantizer.codebook" in dict(small(ema=False, restart=0).named_parameters())
    with pytest.raises(ValueError, match=r"restart=1\.0 needs"):
        VectorQuantizer(K, D, ema=False)


def test_an_unused_code_stays_where_it_was_put():
    quantizer = VectorQuantizer(K, D, restart=0)
    quantizer.codebook[0] = quantizer.total[0] = 100.0
    for _ in range(50):
        quantizer(torch.randn(B, H, W, D))
    torch.testing.assert_close(quantizer.codebook[0], torch.full((D,), 100.0), rtol=1e-3, atol=0)


def test_restarts_follow_the_generator_and_bring_codes_to_the_data():
    def after(seed):
        torch.manual_seed(1)
        quantizer = VectorQuantizer(K, D)
        quantizer.codebook += 100.0
        quantizer.total += 100.0
        for step in range(3):
            z = torch.randn(B, H, W, D, generator=torch.Generator().manual_seed(step))
            result = quantizer(z, torch.Generator().manual_seed(seed))
        return quantizer.codebook, result.codes

    (first, codes), (again, _), (other, _) = after(0), after(0), after(1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert perplexity(codes) > K / 2


def test_encode_decode_and_forward_agree():
    model, frames = small().eval(), torch.rand(B, 3, 20, 12) * 2 - 1
    codes = model.encode(frames)
    assert codes.shape == (B, 5, 3)
    reconstruction, quantized = model(frames)
    assert torch.equal(quantized.codes, codes)
    torch.testing.assert_close(model.decode(codes), reconstruction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vqvae_loss(model, frames), F.mse_loss(reconstruction, frames) + quantized.loss)
    with pytest.raises(ValueError, match="20 x 13 pixels do not divide by 4"):
        model.encode(torch.zeros(1, 3, 20, 13))
    with pytest.raises(ValueError, match="codes of 5 numbers"):
        VQVAE(CONFIG, VectorQuantizer(K, 5))


def test_same_network_as_the_kl_autoencoder_but_for_the_bottleneck():
    vq = {n: p.shape for n, p in small().named_parameters() if not n.startswith("quantizer")}
    kl = {n: p.shape for n, p in KLAutoencoder(CONFIG).named_parameters()}
    assert vq.keys() == kl.keys()
    different = {n for n in vq if vq[n] != kl[n]}
    assert different == {n for n in vq if n.startswith("encoder.") and vq[n][0] == D}  # mean alone, or mean and logvar


def test_gradients_reach_every_parameter():
    for options in (dict(), dict(ema=False, restart=0)):
        model = small(**options)
        vqvae_loss(model, torch.rand(B, 3, 20, 12) * 2 - 1).backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_it_learns_a_handful_of_frames():
    model = VQVAE(
        AutoencoderConfig(latent_channels=4, width=16, width_low=16, blocks=1, patch=2), VectorQuantizer(16, 4)
    )
    g = torch.Generator().manual_seed(0)
    frames = F.avg_pool2d(torch.randn(4, 1, 24, 24, generator=g), 5, 1, 2).sign()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(80):
        loss = vqvae_loss(model, frames, g)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * max(losses)

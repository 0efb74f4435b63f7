"""The direction of every claim that lesson 08 makes, with the shipped weights, the recorded table and fixed seeds."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import seeded
from course_lib.diffusion.schedules import q_sample
from course_lib.models.latent_diffusion import LatentDiffusion, latent_loss, still_autoencoder
from course_lib.training.latent_or_pixels import WORLD, arms, table_path
from course_lib.training.train_latent import caption, draw, measure_pictures, read_digits, still_scenes


@pytest.fixture(scope="module")
def unseen():
    scenes = still_scenes(200, seeded(0, 1), movers=(1, 1))
    return scenes, draw(scenes, [load_digits("embedded", "heldout")], seeded(0, 2))[:, :, 0]


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion.from_checkpoint()


def test_the_autoencoder_loses_detail_and_no_digits(unseen):
    scenes, real = unseen
    stage = still_autoencoder()
    latents = stage.latents(real)
    back = stage.pictures(latents)
    assert real[0].numel() == 12 * latents[0].numel()
    assert (10 * torch.log10(4 / (back - real).square().mean((1, 2, 3)))).mean() > 35
    edge = scenes.edge[:, 0]
    assert (read_digits(back, edge) == read_digits(real, edge)).double().mean() > 0.97


def test_latents_are_local(unseen):
    stage, z = still_autoencoder(), still_autoencoder().latents(unseen[1][:50])
    nudged = z.clone()
    nudged[:, :, 6, 6] += torch.randn(50, 4, generator=seeded(0, 5))
    changed = (stage.pictures(nudged) - stage.pictures(z)).abs().sum((0, 1))
    assert 0.6 < changed[20:32, 20:32].sum() / changed.sum() < 0.95


def test_with_a_wrong_scale_pictures_do_not_drown(model, unseen):
    z = model.first_stage.latents(unseen[1])

    def found_again(scale, t):
        eps = torch.randn(z.shape, generator=seeded(0, 7))
        noisy = q_sample(scale * z, torch.full((len(z),), t), eps, model.alpha_bar)
        distance = torch.cdist(noisy.flatten(1), model.alpha_bar[t].sqrt().float() * scale * z.flatten(1))
        return (distance.argmin(1) == torch.arange(len(z))).double().mean().item()

    assert found_again(1.0, 999) < 0.1 and found_again(4.0, 999) > 0.15 and found_again(8.0, 999) > 0.5
    assert found_again(0.25, 300) < 0.5 < found_again(1.0, 400) and found_again(4.0, 900) > 0.4


def test_a_caption_lowers_the_loss_a_little_and_a_wrong_one_raises_it(model, unseen):
    scenes, real = unseen
    z, tokens = model.first_stage.latents(real), model.tokenizer.encode([caption(scene) for scene in scenes])
    t, eps = torch.arange(200) * 5, torch.randn(len(real), 4, 12, 12, generator=seeded(0, 8))
    never = torch.zeros(200, dtype=torch.bool)
    with torch.no_grad():
        told = latent_loss(model, z, tokens, t, eps, never)
        untold = latent_loss(model, z, tokens, t, eps, ~never)
        lied = latent_loss(model, z, tokens.roll(1, 0), t, eps, never)
    assert told < untold < lied and untold < 2 * told


def test_the_shipped_model_paints_what_it_is_asked_and_slips_show(model, unseen):
    scenes = unseen[0][torch.arange(100)]
    prompts = [caption(scene) for scene in scenes]
    pictures = model.generate(prompts, seeded(2, 0), guidance=3.0, steps=15)
    asked = measure_pictures(pictures, scenes)
    assert asked["digit"] > 0.6 and asked["colour"] > 0.9 and asked["place"] > 0.85
    others = measure_pictures(pictures.roll(1, 0), scenes)
    assert others["digit"] < 0.3 and others["colour"] < 0.35


def test_at_equal_time_latents_win_at_every_time_of_the_table():
    table = json.loads(table_path().read_text(encoding="utf-8"))
    by_time = {}
    for row in table["rows"]:
        by_time.setdefault(row["minutes"], {})[row["model"]] = row
    assert len(by_time) == 3
    for pair in by_time.values():
        assert pair["latents"]["frechet"] < pair["pixels"]["frechet"]
        assert pair["latents"]["all three"] >= pair["pixels"]["all three"]
        assert pair["latents"]["steps"] > 2 * pair["pixels"]["steps"]
        assert all(row["digit"] <= min(row["colour"], row["place"]) + 0.02 for row in pair.values())
    end, half = by_time[max(by_time)], by_time[sorted(by_time)[1]]
    assert half["latents"]["frechet"] < end["pixels"]["frechet"]
    assert half["latents"]["all three"] > end["pixels"]["all three"] + 0.1
    assert end["latents"]["all three"] > end["pixels"]["all three"] + 0.1
    assert table["real"]["frechet"] < end["latents"]["frechet"]


def test_a_step_on_latents_costs_a_fraction_and_reading_captions_costs_the_same():
    cost = {}
    for name, model in arms().items():
        tokens = model.tokenizer.encode(["a large red 3 at the top-left"])
        f = model.first_stage.downsampling
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, model.first_stage.latent_channels, 48 // f, 48 // f), torch.zeros(1).long(), tokens)
        cost[name] = counter.get_total_flops()
    assert 2.5 < cost["pixels"] / cost["latents"] < 16


def test_pixels_enter_the_race_as_white_as_latents():
    pictures = draw(still_scenes(500, seeded(0, 1), **WORLD), [load_digits("embedded", "train")], seeded(0, 2))[:, :, 0]
    stage = arms()["pixels"].first_stage
    white = stage.latents(pictures)
    assert white.mean().abs() < 0.05 and (white.std() - 1).abs() < 0.05
    assert torch.allclose(stage.pictures(white), pictures, atol=1e-5)

"""The direction of every claim that lesson 08 makes, with the shipped weights, the recorded table and fixed seeds."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import seeded
from course_lib.data.tokenizer import VOCABULARY
from course_lib.diffusion.guidance import guide
from course_lib.diffusion.samplers import sample
from course_lib.diffusion.schedules import Steps, q_sample
from course_lib.models.latent_diffusion import LatentDiffusion, latent_loss, still_autoencoder
from course_lib.nn.attention import attention_maps
from course_lib.training.latent_or_pixels import WORLD, arms, table_path
from course_lib.training.train_latent import caption, draw, measure_pictures, read_digits, still_scenes


@pytest.fixture(scope="module")
def unseen():
    scenes = still_scenes(200, seeded(0, 1), movers=(1, 1))
    return scenes, draw(scenes, [load_digits("embedded", "heldout")], seeded(0, 2))[:, :, 0]


@pytest.fixture(scope="module")
def latents(unseen):
    return still_autoencoder().latents(unseen[1])


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion.from_checkpoint()


@pytest.fixture(scope="module")
def painted(model, unseen):
    """Scenes that are asked for, their captions, the noise, and every step of painting them."""
    asked = unseen[0][torch.arange(60)]
    captions, noise = [caption(scene) for scene in asked], model.noise(60, seeded(2, 0))
    with torch.no_grad():
        return asked, captions, noise, list(model.sample_steps(captions, noise, guidance=3.0, steps=15))


@torch.no_grad()
def painted_with(model, captions, noise, others=None, places=()):
    """Pictures for the captions, whose vectors at ``places`` are those of the captions ``others``."""
    context, keep = model.read(model.tokenizer.encode([*captions, *[""] * len(captions)]))
    if others is not None:
        context[: len(captions), places] = model.read(model.tokenizer.encode(others))[0][:, places]

    def guided(zt, t):
        both = model.unet(torch.cat([zt, zt]), torch.cat([t, t]) / 1000, context=context, context_keep=keep)
        return guide(*both.chunk(2), 3.0)

    return model.first_stage.pictures(sample(guided, noise, Steps(model.alpha_bar), steps=15))


def test_the_autoencoder_loses_detail_and_no_digits(unseen, latents):
    scenes, real = unseen
    back = still_autoencoder().pictures(latents)
    assert real[0].numel() == 12 * latents[0].numel()
    assert (10 * torch.log10(4 / (back - real).square().mean((1, 2, 3)))).mean() > 35
    edge = scenes.edge[:, 0]
    assert (read_digits(back, edge) == read_digits(real, edge)).double().mean() > 0.97


def test_a_shrunken_picture_of_as_many_numbers_is_worse(unseen, latents):
    real, edge = unseen[1], unseen[0].edge[:, 0]
    small = F.interpolate(real, size=(14, 14), mode="bicubic", antialias=True)
    assert small[0].numel() >= latents[0].numel()
    enlarged = F.interpolate(small, size=(48, 48), mode="bicubic").clamp(-1, 1)
    back = still_autoencoder().pictures(latents)
    assert (enlarged - real).square().mean() > 5 * (back - real).square().mean()
    right = [(read_digits(p, edge) == read_digits(real, edge)).double().mean() for p in (enlarged, back)]
    assert right[0] < right[1] - 0.1


def test_a_draw_costs_about_a_decibel(unseen, latents):
    stage, real = still_autoencoder(), unseen[1][:60]
    drawn = stage.decode(stage.encode(real).sample(seeded(0, 3))).clamp(-1, 1)
    errors = [(pictures - real).square().mean() for pictures in (drawn, stage.pictures(latents[:60]))]
    assert 0.5 < 10 * torch.log10(errors[0] / errors[1]) < 2


def test_the_decoder_is_local_and_the_encoder_is_not(unseen, latents):
    stage, z = still_autoencoder(), latents[:50]
    nudged, painted = z.clone(), unseen[1][:50].clone()
    nudged[:, :, 6, 6] += torch.randn(50, 4, generator=seeded(0, 5))
    changed = (stage.pictures(nudged) - stage.pictures(z)).abs().sum((0, 1))
    assert 0.6 < changed[20:32, 20:32].sum() / changed.sum() < 0.95
    painted[:, :, 24:28, 24:28] = 1.0
    answered = (stage.latents(painted) - z).abs().sum((0, 1))
    assert 9 / 144 < answered[5:8, 5:8].sum() / answered.sum() < 0.4


def test_a_linear_reader_finds_the_colour_in_averages_and_the_digit_hardly_anywhere(unseen, latents):
    scenes, real = unseen
    more, stage = still_scenes(1000, seeded(0, 6), movers=(1, 1)), still_autoencoder()
    pictures = draw(more, [load_digits("embedded")], seeded(0, 7))[:, :, 0]

    def right(known, asked, what, ridge):
        mean, scale = known.mean(0), known.std()
        known, asked = ((x - mean).flatten(1) / scale for x in (known, asked))
        wanted = F.one_hot(getattr(more, what)[:, 0]).float()
        system = known @ known.T + ridge * len(known) * torch.eye(len(known))
        weights = known.T @ torch.linalg.solve(system, wanted - wanted.mean(0))
        said = (asked @ weights + wanted.mean(0)).argmax(1)
        return (said == getattr(scenes, what)[:, 0]).double().mean().item()

    for known, asked in ((stage.latents(pictures), latents), (pictures, real)):
        assert right(known.mean((2, 3)), asked.mean((2, 3)), "colour", 0.01) > 0.75
        assert max(right(known, asked, "digit", ridge) for ridge in (0.01, 1.0)) < 0.25


def test_with_a_wrong_scale_pictures_do_not_drown(model, latents):
    z = latents

    def found_again(scale, t):
        eps = torch.randn(z.shape, generator=seeded(0, 7))
        noisy = q_sample(scale * z, torch.full((len(z),), t), eps, model.alpha_bar)
        distance = torch.cdist(noisy.flatten(1), model.alpha_bar[t].sqrt().float() * scale * z.flatten(1))
        return (distance.argmin(1) == torch.arange(len(z))).double().mean().item()

    assert found_again(1.0, 999) < 0.1 and found_again(4.0, 999) > 0.15 and found_again(8.0, 999) > 0.5
    assert found_again(0.25, 300) < 0.5 < found_again(1.0, 400) and found_again(4.0, 900) > 0.4


def test_a_caption_lowers_the_loss_a_little_and_a_wrong_one_raises_it(model, unseen, latents):
    z, tokens = latents, model.tokenizer.encode([caption(scene) for scene in unseen[0]])
    t, eps = torch.arange(200) * 5, torch.randn(z.shape, generator=seeded(0, 8))
    never = torch.zeros(200, dtype=torch.bool)
    with torch.no_grad():
        told = latent_loss(model, z, tokens, t, eps, never)
        untold = latent_loss(model, z, tokens, t, eps, ~never)
        lied = latent_loss(model, z, tokens.roll(1, 0), t, eps, never)
    assert told < untold < lied and untold < 2 * told and lied > 2 * told


def test_a_caption_helps_most_where_noise_is_most(model, unseen, latents):
    z, tokens = latents[:80], model.tokenizer.encode([caption(scene) for scene in unseen[0][:80]])
    eps, never = torch.randn(z.shape, generator=seeded(0, 8)), torch.zeros(80, dtype=torch.bool)
    gain = []
    for low in (0, 800):
        t = low + torch.arange(0, 200, 200 / 80).long()
        with torch.no_grad():
            told, untold = (latent_loss(model, z, tokens, t, eps, dropped) for dropped in (never, ~never))
        gain.append(1 - (told / untold).item())
    assert gain[1] > 0.4 and gain[0] < 0.2


def test_the_shipped_model_paints_what_it_is_asked(model, painted):
    scenes, _, _, trace = painted
    pictures = model.first_stage.pictures(trace[-1].xt)
    asked = measure_pictures(pictures, scenes)
    assert asked["digit"] > 0.6 and asked["colour"] > 0.9 and asked["place"] > 0.85 and asked["all three"] > 0.55
    others = measure_pictures(pictures.roll(1, 0), scenes)
    assert others["digit"] < 0.3 and others["colour"] < 0.35


def test_colour_and_place_come_first_and_strokes_last(model, painted):
    scenes, _, _, trace = painted
    first, fifth, last = (measure_pictures(model.first_stage.pictures(trace[i].x0), scenes) for i in (0, 4, 14))
    assert first["colour"] > 0.85 and first["place"] > 0.85 and first["digit"] < 0.35
    assert fifth["digit"] < last["digit"] - 0.15


def test_each_fact_sits_in_the_vector_of_its_own_word_and_not_in_the_fillers(model, painted):
    scenes, captions, noise, trace = painted
    facts = torch.stack([scenes.digit[:, 0], scenes.colour[:, 0], scenes.start[:, 0]])
    own = (facts != facts.roll(-1, 1)).all(0).nonzero()[:24, 0]
    other = (own + 1) % len(scenes)
    assert len(own) == 24
    theirs = {name: getattr(scenes, name)[other] for name in ("digit", "colour", "start")}
    wanted = scenes[own], replace(scenes[own], **theirs)  # the size is not exchanged

    def shows(exchanged):
        by = [[captions[i] for i in index] for index in (own, other)]
        pictures = painted_with(model, by[0], noise[own], by[1], exchanged)
        return [measure_pictures(pictures, these) for these in wanted]

    before = measure_pictures(model.first_stage.pictures(trace[-1].xt[own]), wanted[1])
    assert before["digit"] < 0.25
    (kept, taken), (fillers_kept, fillers_taken) = shows([4]), shows([0, 1, 5, 6])
    assert taken["digit"] > 0.7 and kept["digit"] < 0.2 and kept["colour"] > 0.85 and kept["place"] > 0.85
    assert fillers_taken["digit"] < 0.25 and fillers_kept["digit"] > 0.6


def test_fillers_get_most_of_the_attention(model):
    prompt, shares = "a large red 3 at the top-left", []
    words = [VOCABULARY[word] for word in model.tokenizer.encode([prompt])[0].tolist()]
    with torch.no_grad(), attention_maps(model.unet) as weights:
        for _ in zip(range(8), model.sample_steps([prompt], model.noise(1, seeded(4, 1)), steps=20), strict=False):
            maps = [w[0].mean(0) for name, w in weights.items() if "cross" in name and w.shape[2] == 144]
            shares.append(torch.stack(maps).mean((0, 1)))
    share = dict(zip(words, shares[7].tolist(), strict=True))
    assert sum(share[word] for word in ("<bos>", "a", "at", "the")) > 0.6 and share["3"] < 0.15


def test_slips_do_the_harm_that_is_said(model, painted, unseen):
    scenes, captions, noise, trace = painted
    stage, z = model.first_stage, trace[-1].xt
    one = stage.encode(unseen[1][:1]).mode()
    mean, std = one.mean((2, 3))[0].view(-1, 1, 1), one.std((2, 3))[0].view(-1, 1, 1)
    right = measure_pictures(stage.pictures(z), scenes)
    glaring = measure_pictures(stage.decode(z / 0.18215).clamp(-1, 1), scenes)
    spoilt = measure_pictures(stage.decode(z * std + mean).clamp(-1, 1), scenes)
    assert glaring["digit"] < right["digit"] - 0.3 and spoilt["all three"] < right["all three"] - 0.3
    half = torch.arange(24)
    loud = measure_pictures(painted_with(model, captions[:24], 1.5 * noise[:24]), scenes[half])
    assert loud["all three"] < 0.2
    assert (model.tokenizer.encode(captions) != model.tokenizer.pad).all()  # padding: only the empty caption has any


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
    asked = still_scenes(table["tested"], seeded(table["seed"], 2), **WORLD)
    shown = draw(asked, [load_digits("embedded", "heldout")], seeded(table["seed"], 3))[:, :, 0]
    blind = [measure_pictures(shown.roll(shift, 0), asked) for shift in range(1, 11)]  # real, of other captions
    chance = {key: sum(one[key] for one in blind) / len(blind) for key in blind[0]}
    assert end["pixels"]["place"] > chance["place"] + 0.15 and abs(end["pixels"]["digit"] - chance["digit"]) < 0.06
    assert end["latents"]["digit"] > chance["digit"] + 0.3


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

"""Training of the two stages: what the data say of themselves, and that a stopped run ends where a whole one does."""

import json

import pytest
import torch

from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import seeded
from course_lib.data.parser import parse
from course_lib.models.latent_diffusion import LatentDiffusion, LatentDiffusionConfig, Pixels, still_autoencoder
from course_lib.training import train_latent
from course_lib.training.train_latent import (
    Folder,
    cache,
    caption,
    diffusion_batch,
    draw,
    main,
    measure_pictures,
    still_scenes,
    train_diffusion,
)

TINY = LatentDiffusionConfig(base=8, widths=(1, 2), d_text=8, text_layers=1, heads=2)


@pytest.fixture(scope="module")
def digits():
    return [load_digits("embedded")]


def test_captions_say_what_the_scene_holds_and_leave_out_what_they_please():
    scenes = still_scenes(200, seeded(0, 0))
    assert 70 < scenes.present[:, 1].sum() < 130
    short = 0
    for scene in scenes:
        for text in (caption(scene), caption(scene, seeded(0, 1))):
            for said, mover in zip(parse(text).movers, scene.movers, strict=True):
                assert said.digit == mover.digit
                assert said.size in (None, mover.size) and said.colour in (None, mover.colour)
                assert said.start in (None, mover.start)
        first = parse(caption(scene)).movers[0]
        assert None not in (first.size, first.colour, first.start)
        random = parse(caption(scene, seeded(1, len(text)))).movers[0]
        short += None in (random.size, random.colour, random.start)
    assert 40 < short < 160
    assert caption(still_scenes(1, seeded(5, 0))[0]).startswith(("a ", "an "))


def test_real_pictures_are_read_as_what_they_are_and_others_are_not(digits):
    scenes = still_scenes(150, seeded(0, 2), movers=(1, 1))
    pictures = draw(scenes, digits, seeded(0, 3))[:, :, 0]
    right = measure_pictures(pictures, scenes)
    assert right["digit"] > 0.97 and right["colour"] == 1 and right["place"] > 0.97
    wrong = measure_pictures(pictures.roll(1, dims=0), scenes)
    assert wrong["digit"] < 0.25 and wrong["colour"] < 0.3 and wrong["place"] < 0.3
    assert measure_pictures(torch.full_like(pictures, -1), scenes)["all three"] < 0.05


def test_cached_latents_are_what_the_encoder_would_sample(digits):
    stage, scenes = still_autoencoder(), still_scenes(300, seeded(0, 4))
    stills = cache(stage, digits, scenes, seed=7)
    pictures = draw(scenes[256:], digits, seeded(7, 256))[:, :, 0]
    assert torch.equal(stills.mean[256:], stage.latents(pictures))
    index = torch.tensor([5]).expand(800)
    drawn = stills.draw(index, seeded(0, 0))
    torch.testing.assert_close(drawn.std(0), stills.std[5], rtol=0.3, atol=1e-4)
    assert cache(Pixels(), digits, scenes[:3], seed=7).std.max() == 0


def test_a_step_follows_from_its_number(digits):
    model = LatentDiffusion(TINY, still_autoencoder())
    stills = cache(model.first_stage, digits, still_scenes(40, seeded(0, 5)), seed=7)
    one, two = (diffusion_batch(model, stills, 6, seeded(3, 11), drop=0.5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    z0, tokens, t, eps, dropped = one
    assert z0.shape == eps.shape == (6, 4, 12, 12) and len(tokens) == 6 and dropped.dtype == torch.bool
    assert t.dtype == torch.int64 and 0 <= t.min() and t.max() < 1000


def test_the_second_stage_learns_and_a_stopped_run_ends_alike(digits, tmp_path, monkeypatch):
    def run(folder, *stops):
        for steps in stops:
            torch.manual_seed(0)
            model = LatentDiffusion(TINY, still_autoencoder())
            stills = cache(model.first_stage, digits, still_scenes(64, seeded(0, 6)), seed=7)
            if steps < 12:  # killed half-way
                loss = train_latent.latent_loss
                calls = []

                def dies(*inputs, calls=calls, loss=loss, steps=steps):
                    if len(calls) == steps:
                        raise KeyboardInterrupt
                    calls.append(1)
                    return loss(*inputs)

                with pytest.raises(KeyboardInterrupt):
                    train_diffusion(Folder(folder, save_seconds=0), model, stills, steps=12, batch=8, loss=dies)
            else:
                train_diffusion(Folder(folder), model, stills, steps=12, batch=8)
        return model

    whole, stopped = run(tmp_path / "a", 12), run(tmp_path / "b", 5, 12)
    assert not whole.training and not any(p.requires_grad for p in whole.parameters())
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(weight, stopped.state_dict()[name], rtol=0, atol=1e-6)


def test_both_commands_leave_a_checkpoint(tmp_path, capsys, monkeypatch):
    common = ["--digits", "embedded", "--steps", "2", "--batch", "4", "--folder", str(tmp_path)]
    monkeypatch.setattr(train_latent, "measure_autoencoder", lambda *a: {"psnr": 0.0})
    monkeypatch.setattr(train_latent, "measure_diffusion", lambda *a: {})
    assert main(["autoencoder", *common, "--out", str(tmp_path / "first.safetensors")]) == 0
    assert still_autoencoder(tmp_path / "first.safetensors").latent_std.min() > 0
    more = ["--pictures", "20", "--out", str(tmp_path / "second.safetensors")]
    assert main(["diffusion", *common, *more]) == 0
    assert LatentDiffusion.from_checkpoint(tmp_path / "second.safetensors").config.steps == 1000
    assert main(["diffusion", "--digits", "nowhere"]) == 1 and "error" in capsys.readouterr().err
    assert json.dumps({})  # figures survive JSON

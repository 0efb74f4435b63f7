"""Presets are data: known by name, changed by text, kept by JSON."""

import json

import pytest

from course_lib.training.presets import PRESETS, Preset, choose, settings


def test_values_are_changed_by_their_type():
    preset = choose("mini", {"steps": "100", "shift": "1.5", "speeds": "slow,fast", "patch": "1,2,2"})
    assert (preset.steps, preset.shift, preset.speeds, preset.patch) == (100, 1.5, ("slow", "fast"), (1, 2, 2))
    assert preset.width == PRESETS["mini"].width


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"step": "3"}, "no field 'step'"), ({"steps": "3.5"}, "steps='3.5'"), ({"patch": "2,x"}, "patch")],
)
def test_wrong_changes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        choose("tiny", changes)
    with pytest.raises(ValueError, match="'huge'"):
        choose("huge")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built_and_stored(name):
    from course_lib.models.video_dit import VideoDiTConfig

    preset = PRESETS[name]
    assert json.loads(json.dumps(settings(preset))) == settings(preset)
    size = (preset.frames, preset.height // 8, preset.width // 8)
    config = VideoDiTConfig(100, latent_size=size, patch=preset.patch, dim=preset.dim, heads=preset.heads)
    assert config.dim % 6 == 0 and config.dim % config.heads == 0 and min(config.grid) > 1
    assert isinstance(preset, Preset)

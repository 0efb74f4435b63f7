"""From text to a tensor that shows itself: prompts, seeds, files, and what a checkpoint refuses."""

import json

import pytest
import torch
from safetensors import safe_open

from course_lib.data.parser import parse
from course_lib.data.tokenizer import VOCABULARY
from course_lib.models.autoencoder import AutoencoderConfig, KLAutoencoder
from course_lib.models.video_dit import VideoDiT, VideoDiTConfig
from course_lib.training.checkpoint import load_checkpoint, save_checkpoint
from course_lib.video_generator import Video, VideoGenerator, World, first_sentence

WORLD = World(frames=4, height=32, width=32, directions=("left", "up"), speeds=("slow", "medium"))


def small(seed: int = 0) -> VideoGenerator:
    torch.manual_seed(seed)
    autoencoder = KLAutoencoder(AutoencoderConfig(width=8, width_low=12, blocks=1))
    dit = VideoDiT(VideoDiTConfig(len(VOCABULARY), latent_size=(4, 4, 4), dim=12, depth=1, heads=2))
    with torch.no_grad():
        for p in dit.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return VideoGenerator(autoencoder, dit, WORLD, {"shift": 2.5}).eval()


@pytest.fixture(scope="module")
def generator() -> VideoGenerator:
    return small()


def test_one_prompt_gives_a_clip_and_a_list_gives_a_batch(generator):
    one = generator.generate("a 3 moving left", steps=2)
    assert one.shape == (1, 4, 32, 32) and one.min() >= -1 and one.max() <= 1
    two = generator.generate(["a 3 moving left", "7 going up"], steps=2)
    assert two.shape == (2, 1, 4, 32, 32)
    assert torch.allclose(two[0], one, atol=1e-4)  # a clip does not depend on its neighbours
    assert generator.generate("a 3 moving left", steps=2, frames=3).shape[1] == 3
    assert generator.generate("a 3 moving left, 2 frames", steps=2).shape[1] == 2


def test_seeds_prompts_guidance_and_steps_all_matter(generator):
    video = generator.generate("a 3 moving left", steps=2)
    assert torch.equal(video, generator.generate("a 3 moving left", steps=2))
    for other in (
        generator.generate("a 3 moving left", seed=1, steps=2),
        generator.generate("a 4 moving left", steps=2),
        generator.generate("a 3 moving left", steps=3),
        generator.generate("a 3 moving left", steps=2, guidance=5.0),
    ):
        assert not torch.allclose(video, other, atol=1e-4)


def test_guidance_one_is_the_conditional_model_alone(generator):
    caption = generator.caption("a 3 moving left")
    calls = []
    hook = generator.dit.register_forward_hook(lambda m, inputs, out: calls.append(len(inputs[0])))
    list(generator.generate_steps([caption], steps=2, guidance=1.0))
    list(generator.generate_steps([caption], steps=2, guidance=2.0))
    hook.remove()
    assert calls == [1, 1, 2, 2]
    near = [list(generator.generate_steps([caption], steps=2, guidance=w))[-1].latents for w in (1.0, 1.0 + 1e-6)]
    assert torch.allclose(near[0], near[1], atol=1e-4)


def test_an_expanded_prompt_states_everything_and_contradicts_nothing(generator):
    for seed in range(7):
        caption = generator.caption("a 3 moving left", seed)
        mover = parse(caption).movers[0]
        assert (mover.digit, mover.direction) == (3, "left")
        assert mover.start is not None and mover.speed in WORLD.speeds and mover.size == "medium"
    assert len({generator.caption("a 3 moving left", seed) for seed in range(20)}) > 5
    assert parse(generator.caption("something")).movers[0].direction in WORLD.directions
    assert generator.caption("a 3 moving left", expand=False) == "a 3 moving left"
    assert first_sentence("a 3 moves left. 16 frames, height 48, width 48.") == "a 3 moves left"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a 3 moving left and a 7 moving up", "only seen clips with one digit"),
        ("a 3 moving right", "it knows left, up"),
        ("a 3 moving left quickly", "it knows slow, medium"),
        ("a red 3", "it knows white"),
        ("a large 3", "it knows medium"),
        ("a 3 moving left, 64 pixels high", "32 x 32 pixels"),
        ("a 3 moving left, 99 frames", "at most 4"),
        ("an elephant moving left", "elephant"),
    ],
)
def test_what_the_checkpoint_cannot_do_is_said(generator, prompt, message):
    with pytest.raises(ValueError, match=message):
        generator.generate(prompt, steps=1)


def test_bad_numbers_are_refused(generator):
    with pytest.raises(ValueError, match="frames=5"):
        generator.generate("a 3", frames=5)
    with pytest.raises(ValueError, match="steps=0"):
        generator.generate("a 3", steps=0)


def test_saved_and_loaded_it_makes_the_same_video(generator, tmp_path):
    path = tmp_path / "run" / "generator.safetensors"
    generator.save(path, small=False)
    video = generator.generate("a 3 moving left", steps=2)
    for source in (path, path.parent):
        loaded = VideoGenerator.from_checkpoint(source)
        assert torch.equal(loaded.generate("a 3 moving left", steps=2), video)
    assert loaded.world == WORLD and loaded.info["shift"] == 2.5
    generator.save(path)
    assert path.stat().st_size < 0.4 * 4 * sum(v.numel() for v in generator.state_dict().values()) + 20_000
    rounded = VideoGenerator.from_checkpoint(path).generate("a 3 moving left", steps=2)
    assert (rounded - video).abs().mean() < 0.05


def test_a_file_with_an_older_vocabulary_keeps_its_words(generator, tmp_path):
    path = tmp_path / "old.safetensors"
    generator.save(path, small=False)
    found = load_checkpoint(path)
    kept = [i for i, word in enumerate(VOCABULARY) if word != "slowly"][::-1]  # fewer words, in another order
    name = "dit.caption.words.weight"
    tensors = found.tensors | {name: found.tensors[name][kept]}
    dit = found.info["dit"] | {"vocabulary": len(kept)}
    save_checkpoint(path, tensors, found.info | {"words": [VOCABULARY[i] for i in kept], "dit": dit})
    table = VideoGenerator.from_checkpoint(path).dit.caption.words.weight
    expected = generator.dit.caption.words.weight.clone()
    expected[VOCABULARY.index("slowly")] = 0
    assert torch.equal(table, expected)


def test_files_that_are_no_generator_are_refused(generator, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="no checkpoint"):
        VideoGenerator.from_checkpoint(path)
    save_checkpoint(path, {"x": torch.zeros(1)}, {"kind": "judge"})
    with pytest.raises(ValueError, match="'video generator' was expected"):
        VideoGenerator.from_checkpoint(path)
    generator.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        VideoGenerator.from_checkpoint(path)
    generator.save(path)
    found = load_checkpoint(path)
    save_checkpoint(path, found.tensors, found.info | {"dit": {"layers": 3}})
    with pytest.raises(ValueError, match="does not describe a generator"):
        VideoGenerator.from_checkpoint(path)
    save_checkpoint(path, found.tensors, found.info | {"dit": found.info["dit"] | {"depth": 2}})
    with pytest.raises(ValueError, match=r"transformer in .* do not fit"):
        VideoGenerator.from_checkpoint(path)


def test_a_video_is_a_tensor_that_shows_and_saves_itself(generator, tmp_path):
    video = generator.generate("a 3 moving left", seed=5, steps=1)
    assert isinstance(video, Video) and type(video + 1) is torch.Tensor and type(video[0]) is torch.Tensor
    assert video.prompts == ("a 3 moving left",) and video.seed == 5
    assert repr(video) == "<video 1 x 4 x 32 x 32, seed 5: a 3 moving left>"
    bundle = video._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "image/png" in data and "a 3 moving left" in str(data["text/plain"])
    for name, magic in (("a.gif", b"GIF8"), ("a.png", b"\x89PNG")):
        assert video.save(tmp_path / name).read_bytes().startswith(magic)


def test_the_shipped_checkpoint_describes_itself_and_follows_a_prompt():
    from course_lib.evaluation.judge import load_judge
    from course_lib.paths import checkpoints_dir

    path = checkpoints_dir() / "first_light.safetensors"
    assert path.stat().st_size < 6_000_000
    with safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["course_lib"])
    assert info["about"]["figures"]["descriptive"]["digit"] > 0.9
    shipped = VideoGenerator.from_checkpoint(path)
    prompts = [f"a {digit} moving left" for digit in range(10)]
    video = shipped.generate(prompts, seed=11, steps=8)
    assert (load_judge().read_clips(video.as_subclass(torch.Tensor)) == torch.arange(10)).sum() >= 8

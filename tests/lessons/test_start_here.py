"""What the first notebook promises in words must hold."""

import re

import pytest
import torch

from course_lib.data.captions import fill, parse
from course_lib.data.moving_mnist import seeded
from course_lib.data.scenes import DIRECTIONS, SIZES, SPEEDS, STARTS, cell_range, reflect
from course_lib.data.stated import agrees
from course_lib.evaluation.metrics import COLUMNS, table
from course_lib.paths import checkpoints_dir, repo_root

NOTEBOOK = repo_root() / "notebooks" / "00_start_here.ipynb"


@pytest.fixture(scope="module")
def page() -> dict[str, str]:
    nbformat = pytest.importorskip("nbformat")
    return {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}


@pytest.fixture(scope="module")
def generator():
    from course_lib.video_generator import VideoGenerator

    return VideoGenerator.from_checkpoint(checkpoints_dir() / "first_light.safetensors", device="cpu")


def test_every_prompt_that_the_page_suggests_is_understood(page, generator):
    suggested = re.findall(r"\*([^*]+)\*", page["prompt-box-words"].split("What")[0])
    typed = re.findall(r'prompt="([^"]+)"', page["prompt-box"]) + re.findall(r'"(an? \d [^"]+)"', page["goal"])
    assert len(suggested) == 2 and len(typed) == 6
    for prompt in suggested + typed:
        caption = generator.caption(prompt, seed=3)
        assert agrees(parse(prompt), fill(parse(caption), seeded(0, 0))), (prompt, caption)


def test_a_scene_beyond_the_model_is_refused_in_words(generator):
    with pytest.raises(ValueError, match=r"never seen|only seen"):
        generator.generate("a red 3 and a green 4")


def test_the_report_card_has_what_the_page_reads_from_it(page, generator):
    columns, rows = re.search(r"in \(([^)]+)\).*rows=\(([^)]+)\)", page["goal-figures"], re.S).groups()
    text = table({name: generator.info["figures"][name] for name in re.findall(r'"(\w+)"', columns)})
    assert "nan" not in text and "None" not in text and "-0" not in text
    assert set(re.findall(r'"(\w+)"', rows)) >= {"digit", "identity"}
    assert set(re.findall(r'"(\w+)"', rows)) < COLUMNS.keys()


def test_the_report_card_was_measured_as_the_page_says(page, generator):
    guidance = re.search(r"measured at (\d+)", page["break-words"])[1]
    assert f"guidance {guidance}," in generator.info["evaluation"]
    assert f"{float(guidance)}" in page["break"]


def test_no_clip_bounces_at_once(page, generator):
    prompt, seed = re.search(r'prompt="([^"]+)", seed=\((\d+),', page["prompt-box"]).groups()
    goal = enumerate(re.findall(r'"(an? \d [^"]+)"', page["goal"]), int(re.search(r"seed=(\d+)", page["goal"])[1]))
    assert free_flight(generator, prompt, int(seed)) >= generator.world.frames - 3
    assert min(free_flight(generator, prompt, seed) for seed, prompt in goal) >= generator.world.frames // 2


def free_flight(generator, prompt: str, seed: int) -> float:
    """Frames until the first wall, from the middle of the cell where the completed prompt starts."""
    mover = fill(parse(generator.caption(prompt, seed)), seeded(0, 0)).movers[0]
    world, edge, speed = generator.world, SIZES[mover.size], SPEEDS[mover.speed]
    flights = []
    cells = reversed(divmod(STARTS.index(mover.start), 3))  # column, row: in the order of (dx, dy)
    for cell, way, room in zip(
        cells, DIRECTIONS[mover.direction], (world.width - edge, world.height - edge), strict=True
    ):
        first, last = cell_range(torch.tensor(cell), torch.tensor(room))
        middle = (first + last).item() / 2
        flights += [(room - middle if way > 0 else middle) / speed] if way else []
    return min(flights)


def test_the_clip_of_both_functions_repeats_as_the_page_says(page):
    frames, edge = (int(re.search(pattern, page["both"])[1]) for pattern in (r"arange\((\d+)\)", r"64 - (\d+)"))
    limit = torch.tensor(64 - edge)
    start, velocity = torch.arange(limit + 1)[:, None], torch.arange(-40, 41)
    assert frames == 2 * limit and str(frames) in page["both-after"]
    assert torch.equal(reflect(start, velocity, torch.tensor(frames), limit), start.expand(-1, 81))
    many = reflect(start, velocity, torch.arange(frames)[:, None, None], limit)
    assert many.min() == 0 and many.max() == limit  # also at 40 px per frame: "it stays inside"

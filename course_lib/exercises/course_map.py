"""The twenty-one lessons, and where a learner stands in them."""

import html
from dataclasses import dataclass

from course_lib.exercises.catalogue import Exercise, lessons
from course_lib.exercises.checking import PASSED
from course_lib.exercises.questions import calibration
from course_lib.exercises.store import load
from course_lib.paths import repo_root


@dataclass(frozen=True)
class Lesson:
    """One notebook; ``name`` is its file name without the ending."""

    name: str
    title: str
    about: str

    @property
    def exists(self) -> bool:
        return (repo_root() / "notebooks" / f"{self.name}.ipynb").is_file()

    @property
    def exercises(self) -> tuple[Exercise, ...]:
        """What a learner meets in it; the exercises of a lesson to come may be written before its notebook."""
        return lessons().get(self.name, ()) if self.exists else ()


LESSONS = (
    Lesson("00_start_here", "Start here", "the goal, the world, how an exercise works"),
    Lesson("01_unet", "U-Net", "skips carry detail"),
    Lesson("02_transformer", "The Transformer", "attention, heads, positions"),
    Lesson("03_state_space", "Mamba and Samba", "recurrence that trains in parallel"),
    Lesson("04_vit", "ViT", "an image is a sequence of patches"),
    Lesson("05_clip", "CLIP", "text and pictures in one space"),
    Lesson("06_vqvae", "VQ-VAE", "pictures as discrete codes"),
    Lesson("07_diffusion", "Diffusion", "from noise to data, step by step"),
    Lesson("08_latent_diffusion", "Latent diffusion", "diffuse where it is cheap"),
    Lesson("09_navit", "NaViT", "any size, packed"),
    Lesson("10_dit", "DiT", "a Transformer as the denoiser"),
    Lesson("11_vivit", "ViViT", "tokens of space and time"),
    Lesson("12_video_diffusion", "Video diffusion and Imagen Video", "cascades in space and time"),
    Lesson("13_make_a_video", "Make-A-Video and Tune-A-Video", "motion without text-video pairs"),
    Lesson("14_video_ldm", "Align your Latents", "an image model learns time"),
    Lesson("15_walt", "W.A.L.T", "one tokenizer for images and video"),
    Lesson("16_llava", "LLaVA", "a language model that sees"),
    Lesson("17_recaptioning", "DALL·E 3 recaptioning", "better captions, better pictures"),
    Lesson("18_spacetime_dit", "Spacetime DiT", "the generator, assembled from your parts"),
    Lesson("19_sora", "Sora", "everything the report shows, at toy scale"),
    Lesson("20_scaling_up", "Scaling up", "from a laptop to many GPUs"),
)


class Dashboard:
    """The map of the lessons with what is passed, what is left, and how good the guesses were."""

    def __init__(self):
        self.data = load()

    def _state(self, name: str) -> str:
        return self.data["exercises"].get(name, {}).get("state", "not attempted")

    def rows(self) -> list[tuple[Lesson, int, int]]:
        """``(lesson, exercises passed, minutes left)`` for every lesson."""
        table = []
        for lesson in LESSONS:
            left = [e for e in lesson.exercises if self._state(e.name) != PASSED]
            table.append((lesson, len(lesson.exercises) - len(left), sum(e.minutes for e in left)))
        return table

    def _guesses(self) -> str:
        parts = [f"{c} % sure: {right} of {asked} right" for c, right, asked in calibration(self.data["questions"])]
        return "Your guesses, " + "; ".join(parts) + "." if parts else "No guesses revealed yet."

    def _summary(self) -> str:
        rows = self.rows()
        total, passed, left = (
            sum(len(lesson.exercises) for lesson, *_ in rows),
            sum(r[1] for r in rows),
            sum(r[2] for r in rows),
        )
        return (
            f"{passed} of {total} exercises passed, about {left} minutes of exercises left in the lessons that exist."
        )

    def __repr__(self) -> str:
        lines = [self._summary()]
        for lesson, passed, left in self.rows():
            stand = f"{passed}/{len(lesson.exercises)} passed, {left} min left" if lesson.exists else "coming"
            lines.append(f"  {lesson.name:<20} {lesson.title:<34} {stand}")
        return "\n".join([*lines, self._guesses()])

    def _repr_html_(self) -> str:
        cell = 'style="text-align:left;padding:2px 14px 2px 0"'
        body = []
        for lesson, passed, left in self.rows():
            title = html.escape(lesson.title)
            if lesson.exists:
                title = f'<a href="{lesson.name}.ipynb">{title}</a>'
                marks = "".join(_MARKS.get(self._state(e.name), "✗") for e in lesson.exercises)
                names = html.escape(", ".join(f"{e.name}: {self._state(e.name)}" for e in lesson.exercises))
                stand = f'<span title="{names}">{marks} {passed}/{len(lesson.exercises)}</span>'
                stand += f", {left} min left" if left else " ✓ done" if lesson.exercises else "no exercises"
            else:
                stand = '<span style="opacity:.6">coming</span>'
            about = html.escape(lesson.about)
            columns = (lesson.name[:2], title, about, stand)
            body.append("<tr>" + "".join(f"<td {cell}>{column}</td>" for column in columns) + "</tr>")
        head = "".join(f"<th {cell}>{t}</th>" for t in ("", "lesson", "the idea", "your exercises"))
        table = f'<table style="margin:0"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
        legend = "● passed   ✗ tried   – skipped   ○ not attempted"
        note = f'<div style="margin-top:4px">{html.escape(self._guesses())} {legend}</div>'
        return f'<div role="status"><b>{html.escape(self._summary())}</b>{table}{note}</div>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


_MARKS = {"passed": "●", "not attempted": "○", "skipped": "–"}


def progress() -> Dashboard:
    """The dashboard; as the last line of a cell it shows itself."""
    return Dashboard()

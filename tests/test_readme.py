"""The README promises nothing that the repository does not hold."""

import re
from pathlib import Path

from course_lib.exercises.catalogue import lessons
from course_lib.exercises.course_map import LESSONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_lesson_table_is_the_map():
    rows = re.findall(r"^\| (\d\d) \| (.+?) \| (.+?) \| (.+?) \|$", README, re.MULTILINE)
    expected = []
    for lesson in LESSONS:
        title = f"[{lesson.title}](notebooks/{lesson.name}.ipynb)" if lesson.exists else lesson.title
        count = f"{len(lesson.exercises)} exercises" if lesson.exists else "coming"
        expected.append((lesson.name[:2], title, lesson.about, count))
    assert rows == expected


def test_the_kill_score_is_the_catalogue():
    """``make test`` fails unless every mistake is caught and every variant accepted, so the score is their number."""
    exercises = [e for found in lessons().values() for e in found]
    mistakes, variants = sum(len(e.mistakes) for e in exercises), sum(len(e.variants) for e in exercises)
    assert f"mistakes caught {mistakes}/{mistakes} · variants accepted {variants}/{variants}" in README


def test_every_file_it_points_to_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_program_runs(tmp_path, monkeypatch):
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(program.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert (tmp_path / "sora.gif").stat().st_size > 1000

"""The command line: a file for a prompt, one clear line for a mistake."""

import pytest

from course_lib import generate


def test_a_prompt_becomes_a_file(tmp_path, capsys):
    out = tmp_path / "three.gif"
    assert generate.main(["a 3 moving left", "--out", str(out), "--steps", "2", "--frames", "5"]) == 0
    assert out.read_bytes().startswith(b"GIF8")
    assert "read as: a medium-sized white 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["an elephant"], "elephant"),
        (["a 3 and a 7"], "one digit"),
        (["a 3", "--checkpoint", "/nowhere"], "no checkpoint"),
        (["a 3", "--steps", "1", "--out", "/dev/null/x.gif"], "/dev/null"),
    ],
)
def test_mistakes_are_one_line_on_stderr(arguments, message, capsys):
    assert generate.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error

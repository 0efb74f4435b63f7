"""What a learner meets: the decorator, what the name means afterwards, hints, saved answers, the dashboard."""

import re
import sys

import pytest

from course_lib.exercises import answers, store
from course_lib.exercises.cards import Card
from course_lib.exercises.catalogue import define, get, stub_source, substituted, wrong_answer
from course_lib.exercises.course_map import LESSONS, progress
from course_lib.exercises.notebook import exercise, hint, reset, skip, solution


def answer(name, code):
    return define(name, code, get(name).target)


@pytest.fixture
def right(sample):
    return answer("mix", get("mix").variants[0].code)


def test_a_stub_leaves_the_name_on_the_library(sample, capsys):
    assert exercise(answer("mix", stub_source("mix"))) is sample.mix
    out = capsys.readouterr().out
    assert "not attempted" in out and "About 7 minutes" in out
    assert store.load()["exercises"]["mix"]["attempts"] == 0


def test_a_pass_binds_the_learners_own(right, state, capsys):
    assert exercise(right) is right
    assert "passed" in capsys.readouterr().out
    assert store.load()["exercises"]["mix"]["state"] == "passed"
    assert "torch.einsum" in (state / "my_code" / "mix.py").read_text()


def test_a_failure_binds_a_stand_in_that_says_so_once_a_cell(sample, capsys):
    import torch

    bound = exercise(wrong_answer(get("mix"), get("mix").mistakes[1]))
    assert "The scale is forgotten." in capsys.readouterr().out
    a, w = torch.ones(1, 2, 3), torch.zeros(1, 2)
    assert torch.equal(bound(a, w), sample.mix(a, w))
    assert "stands in" in capsys.readouterr().out
    bound(a, w)
    assert capsys.readouterr().out == ""


def test_a_stand_in_for_a_class_is_the_library_class(sample, capsys):
    bound = exercise(wrong_answer(get("Gate"), get("Gate").mistakes[0]))
    capsys.readouterr()
    gate = bound(5)
    assert isinstance(gate, sample.Gate)
    assert "stands in" in capsys.readouterr().out


def test_a_pass_is_never_lost(sample, right, capsys):
    exercise(right)
    exercise(wrong_answer(get("mix"), get("mix").mistakes[1]))
    record = store.load()["exercises"]["mix"]
    assert (record["state"], record["attempts"]) == ("passed", 2)
    capsys.readouterr()
    back = exercise(answer("mix", stub_source("mix")))
    assert "You passed this on" in capsys.readouterr().out
    assert back is not sample.mix and back.__module__ == "my_code_mix"


def test_an_edited_saved_answer_is_checked_again(sample, right, capsys):
    exercise(right)
    path = answers.my_code_file("mix")
    path.write_text(path.read_text().replace("w * scale", "w"))
    capsys.readouterr()
    parts = answers.my_code("mix")
    assert parts.mix is sample.mix
    assert re.search(r"mix: the course's, because yours did not load .*The scale is forgotten", capsys.readouterr().out)
    assert exercise(answer("mix", stub_source("mix"))) is sample.mix


def test_a_saved_answer_that_no_longer_parses_falls_back(sample, right, capsys):
    exercise(right)
    answers.my_code_file("mix").write_text("def mix(:")
    assert answers.my_code("mix", "Gate").mix is sample.mix
    assert "Gate: the course's\n" in capsys.readouterr().out


def test_my_code_says_whose_part_is_whose(sample, right, capsys):
    exercise(right)
    capsys.readouterr()
    parts = answers.my_code("mix", "Gate")
    out = capsys.readouterr().out
    assert "mix: yours" in out and "Gate: the course's" in out
    assert parts.mix is not sample.mix and parts.Gate is sample.Gate


def test_helpers_imports_and_constants_travel_with_the_answer(sample):
    code = """
import torch.nn.functional as fun
from torch import einsum as contract
POWER = 1.0
def helper(w, scale):
    return fun.softmax(scale * w * POWER, dim=-1)
def mix(a, w, scale=1.0):
    if scale < 0:
        raise ValueError("negative")
    return contract("bnd,bn->bd", a, helper(w, scale))
"""
    assert answers.save("mix", answer("mix", code)) == ""
    text = answers.my_code_file("mix").read_text()
    for piece in ("import torch.nn.functional as fun", "POWER = 1.0", "def helper", "einsum"):
        assert piece in text
    assert answers.load("mix") is not None


def test_a_partial_of_the_course_travels_with_the_answer(sample):
    code = """
from course_lib.models.dit import full_attention
def mix(a, w, scale=1.0, attention=full_attention):
    if scale < 0:
        raise ValueError("negative")
    return ((scale * w).softmax(1)[:, :, None] * a).sum(1)
"""
    assert answers.save("mix", answer("mix", code)) == ""
    assert "from course_lib.models.dit import full_attention" in answers.my_code_file("mix").read_text()
    assert answers.load("mix") is not None


def test_a_saved_answer_takes_nothing_that_only_shares_a_name(sample, state):
    code = """def mix(a, w, scale=1.0):
    if scale < 0:
        raise ValueError("negative")
    weights = (factor * scale * w).softmax(1)
    return (weights[:, :, None] * a).sum(1)"""
    mine = answer("mix", code)
    mine.__globals__.update(factor=1, a=13, weights=5)  # left over in the notebook
    assert answers.save("mix", mine) == ""
    text = answers.my_code_file("mix").read_text()
    assert "factor = 1" in text and "a = 13" not in text and "weights = 5" not in text


def test_an_answer_that_cannot_stand_alone_still_counts(sample, capsys):
    import torch

    code = 'def mix(a, w, scale=1.0):\n    return table["f"](a, w, scale)'
    made = answer("mix", code)
    made.__globals__["table"] = {"f": sample.mix, "t": torch}
    assert exercise(made) is made
    assert "It counts, but a copy" in capsys.readouterr().out


def test_hints_come_in_order_and_stay_on_the_last(sample, capsys):
    exercise(answer("mix", stub_source("mix")))
    capsys.readouterr()
    for expected in ("Hint 1/3", "Hint 2/3", "Hint 3/3", "Hint 3/3"):
        hint()
        assert expected in capsys.readouterr().out


def test_solution_is_the_library_source_and_is_remembered(sample, capsys):
    solution("mix")
    assert "weights = (scale * w).softmax(dim=1)" in capsys.readouterr().out
    assert store.load()["exercises"]["mix"]["solution_seen"] is True


def test_reset_shows_the_stub_and_skip_keeps_a_pass(sample, right, capsys):
    reset("mix")
    assert "raise NotImplementedError  # your code here" in capsys.readouterr().out
    skip("Gate")
    assert store.load()["exercises"]["Gate"]["state"] == "skipped"
    exercise(right)
    skip("mix")
    assert store.load()["exercises"]["mix"]["state"] == "passed"


def test_without_a_name_or_a_run_hint_says_what_to_do(sample, monkeypatch):
    from course_lib.exercises import notebook

    monkeypatch.setattr(notebook, "_latest", [])
    with pytest.raises(ValueError, match="run the cell of an exercise first"):
        hint()


def test_a_renamed_function_is_told_the_names(sample):
    with pytest.raises(ValueError, match=r"no exercise called 'mixed'.*mix"):
        exercise(answer("mixed", "def mixed(a): return a"))


def test_the_last_try_is_kept_as_attempt(sample, monkeypatch):
    wrong = wrong_answer(get("mix"), get("mix").mistakes[1])
    wrong.__module__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], "attempt", None, raising=False)
    exercise(wrong)
    assert sys.modules["__main__"].attempt is wrong


def test_a_class_from_a_notebook_has_a_source(sample):
    """``inspect.getsource`` does not find classes of ``__main__``; ours asks one of their methods."""
    from course_lib.exercises.catalogue import source_of

    made = answer("Gate", substituted(get("Gate")))
    made.__module__ = "__main__"
    assert source_of(made).startswith("class Gate")


def test_the_dashboard_counts_and_reads_as_text(sample, right, capsys):
    exercise(right)
    board = progress()
    assert len(LESSONS) == 21
    assert "coming" in repr(board) and "<table" in board._repr_html_()


def test_a_card_knows_code_and_emphasis():
    shown = Card("quiet", "a *perfect* one", "`a * b * c`, k * v * w, 2*i/d*p and *two words*")._repr_html_()
    assert "<em>perfect</em>" in shown and "<em>two words</em>" in shown and shown.count("<em>") == 2
    assert "a * b * c</code>, k * v * w, 2*i/d*p" in shown


def test_a_card_escapes_what_learners_write():
    card = Card("bad", "<b>", "x < y & `a<b`", folded=[("f", "<script>alert(1)</script>")])
    page = card._repr_html_()
    assert "<script>" not in page and "<b>" not in page and "x &lt; y" in page
    assert "<script>alert(1)" in repr(card)

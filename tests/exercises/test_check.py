"""The judgement itself: what passes, what fails, and what the learner reads."""

import subprocess
import sys

import pytest
import torch

from course_lib.exercises.catalogue import define, get, stub_source, substituted, wrong_answer
from course_lib.exercises.checking import check
from course_lib.exercises.killscore import trials


def judged(name, code):
    return check(name, define(name, code, get(name).target))


@pytest.mark.parametrize("name", ["mix", "pass_through", "Gate"])
def test_stub_library_variants_and_mistakes(sample, name):
    failures = [t for t in trials(get(name)) if not t.ok]
    assert not failures, failures


def test_an_unknown_name_lists_what_there_is(sample):
    with pytest.raises(ValueError, match=r"mixx.*mix"):
        check("mixx", lambda: None)


MIX = "def mix(a, w, scale=1.0):\n    if scale < 0:\n        raise ValueError('negative')\n    %s\n"


@pytest.mark.parametrize(
    ("body", "state", "said"),
    [
        ("pass", "failed", "returns None"),
        ("return 'five'", "failed", "must be a tensor, got a str"),
        ("return a, w", "failed", "other parts"),
        ("return (w.softmax(1)[:, :, None] * a).sum(2)", "failed", "expected (b=2, d=3). Look at axis 1 (d)"),
        ("return mix_right.T", "crashed", "NameError"),
        ("return ((scale * w).softmax(1)[:, :, None] * a).sum(1).T", "failed", "two axes are swapped"),
        ("return -((scale * w).softmax(1)[:, :, None] * a).sum(1)", "failed", "opposite sign"),
        ("return 3 * ((scale * w).softmax(1)[:, :, None] * a).sum(1)", "failed", "expected result times 3"),
        ("return ((scale * w).softmax(1)[:, :, None] * a).sum(1) + 2", "failed", "plus 2 everywhere"),
        ("return ((scale * w).softmax(1)[:, :, None] * a).sum(1).flip(0)", "failed", "reversed along axis 0"),
        ("return ((scale * w).softmax(1)[:, :, None] * a).sum(1).roll(1, 1)", "failed", "shifted by one along axis 1"),
        ("return ((scale * w).softmax(1)[:, :, None] * a).sum(1).long()", "failed", "dtype torch.int64"),
        ("return (w.softmax(1)[:, :, None] * a).sum(1).double()", "failed", "dtype torch.float64"),
        (
            "return ((scale * w.float()).softmax(1)[:, :, None] * a.float()).sum(1).to(a.dtype)",
            "failed",
            "six or seven digits only",
        ),
        ("return ((scale * w).softmax(1)[:, :, None] * a).sum(1) / 0", "failed", "inf"),
        ("return (a.mul_((scale * w).softmax(1)[:, :, None])).sum(1)", "failed", "overwrites its input `a`"),
        ("return ((scale * w).softmax(1)[:, :, None] * a).sum(1).detach()", "failed", "no gradient reaches `a`"),
        ("return ((scale * w.detach()).softmax(1)[:, :, None] * a).sum(1)", "failed", "no gradient reaches `w`"),
        ("return ((scale * w).view(-1).view(w.shape).softmax(1)[:, :, None] * a).sum(1)", "crashed", "view"),
        ("return ((scale * w).softmax(1)[:, :, None] * a.mean(0)).sum(1)", "failed", "wrong values"),
        ("return mix(a, w, scale)", "crashed", "RecursionError"),
        ("raise ValueError('odd')", "crashed", "refuses an input that is allowed (odd)"),
        ("return torch.stack([a, w])", "crashed", "Your code stopped with RuntimeError"),
        ("raise NotImplementedError", "not attempted", "still a `raise NotImplementedError`"),
        ("return (w > 0) | torch.ones(w.shape)", "crashed", "Your code stopped with NotImplementedError"),
    ],
)
def test_what_a_wrong_answer_is_told(sample, body, state, said):
    verdict = judged("mix", MIX % body)
    assert verdict.state == state, verdict
    assert said in verdict.sentence, verdict


def test_an_input_that_must_be_refused(sample):
    verdict = judged("mix", "def mix(a, w, scale=1.0):\n    return ((scale * w).softmax(1)[:, :, None] * a).sum(1)")
    assert verdict.state == "failed"
    assert "must be refused with a ValueError" in verdict.sentence


def test_two_mistakes_at_once_are_both_named(sample):
    exercise = get("mix")
    verdict = judged("mix", substituted(exercise, exercise.mistakes[0], exercise.mistakes[1]))
    assert set(verdict.mistakes) == set(exercise.mistakes[:2])
    assert all(m.sentence in verdict.sentence for m in exercise.mistakes[:2])


def test_a_mistake_is_known_by_what_it_does_not_by_how_it_is_written(sample):
    code = MIX % "import torch\n    e = w.exp()\n    return torch.einsum('bnd,bn->bd', a, e / e.sum(1, keepdim=True))"
    assert judged("mix", code).sentence == "The scale is forgotten."


def test_a_recursive_wrong_answer_does_not_reach_the_library(sample):
    """The learner's name may be bound to the library's version in their notebook."""
    namespace = {"mix": sample.mix}
    exec("def mix(a, w, scale=1.0):\n    return mix(a, w, scale)", namespace)
    right = namespace["mix"]
    namespace["mix"] = sample.mix
    assert check("mix", right).state == "crashed"
    assert namespace["mix"] is sample.mix


@pytest.mark.parametrize("wrong", ["def mix(a, weights): return a", "def mix(a, w, scale, more): return a"])
def test_changed_parameters_are_named(sample, wrong):
    assert "must take (a, w, scale)" in judged("mix", wrong).sentence


def test_a_class_where_a_function_belongs_and_the_reverse(sample):
    assert "must be a function" in judged("mix", "class mix: pass").sentence
    assert "must be a class" in judged("Gate", "def Gate(d): return None").sentence


def test_modules_in_a_plain_list_are_explained(sample):
    code = """class Gate(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.parts = [nn.Linear(d, d)]
        self.gate = nn.Parameter(torch.zeros(d))
    def forward(self, x):
        return x + self.gate * torch.tanh(self.parts[0](x))"""
    assert "nn.ModuleList" in judged("Gate", code).sentence


def test_the_first_part_that_goes_wrong_is_named(sample):
    code = substituted(get("Gate")).replace("self.linear(x)", "self.linear(x.flip(1))")
    assert "`linear` is the first part that receives something wrong" in judged("Gate", code).sentence


def test_an_instance_that_remembers_is_told_apart_from_one_that_fails_on_other_inputs(sample):
    code = substituted(get("Gate"))
    remembers = code.replace("return x +", "self.x = x = getattr(self, 'x', x)\n        return x +")
    assert "it remembers something" in judged("Gate", remembers).sentence
    crashes = code.replace(
        "return x +", "self.n = getattr(self, 'n', 0) + 1\n        assert self.n < 2\n        return x +"
    )
    assert "The second call stops with AssertionError" in judged("Gate", crashes).sentence
    forgetful = judged("Gate", code.replace("return x +", "return x.roll(x.shape[1] // 5, 1) +"))
    assert "remembers" not in forgetful.sentence and "more tokens" in forgetful.sentence


def test_a_gradient_that_is_zero_in_theory_may_be_noise():
    """softmax ignores a shift of all scores, so this bias has no gradient; other roundings must not fail."""
    from course_lib.exercises.compare import alike
    from course_lib.exercises.observe import Observation
    from course_lib.exercises.sandbox import Outcome

    names = ("the gradient of w", "the gradient of b")
    one, other = (
        Observation(Outcome(), dict(zip(names, (torch.tensor([3.0]), torch.tensor([noise])), strict=True)))
        for noise in (1e-7, -2e-7)
    )
    assert alike(get("attention"), one, other)
    other.leaves[names[1]] = torch.tensor([1e-2])
    assert not alike(get("attention"), one, other)


def test_a_property_is_told_in_its_own_words(sample):
    verdict = check("Gate", wrong_answer(get("Gate"), get("Gate").mistakes[1]))
    assert not verdict
    code = substituted(get("Gate")).replace("torch.zeros(d)", "torch.full((d,), 0.5)")
    assert judged("Gate", code).sentence == "A fresh gate must leave x alone."


def test_a_stub_with_other_comments_and_docstring_is_still_a_stub(sample):
    code = stub_source("mix").replace("Mean of", "My notes on") + "\n    # later\n"
    assert judged("mix", code).state == "not attempted"


def test_stubs_keep_signature_docstring_and_given_methods(sample):
    stub = stub_source("Gate")
    assert "self.gate = nn.Parameter(torch.zeros(d))" in stub
    assert "Apply the gated branch" in stub
    assert "torch.tanh" not in stub
    assert stub.count("raise NotImplementedError  # your code here") == 1


def test_a_substitution_must_match_exactly_once(sample):
    from course_lib.exercises.catalogue import Mistake

    with pytest.raises(ValueError, match="occurs 0 times"):
        substituted(get("mix"), Mistake("x", old="not in there", new=""))


def test_ordinary_checks_are_quick(sample):
    assert judged("mix", get("mix").variants[0].code).seconds < 2
    assert judged("mix", MIX % "return a.sum(1)").seconds < 4  # wrong and unknown: the whole catalogue was tried


KEYS_OF_X = """
import torch.nn as nn, torch.nn.functional as F
from einops import rearrange
from course_lib.exercises.checking import check
from course_lib.nn.attention import attention, fused_attention

class CrossAttention(nn.Module):
    def __init__(self, d, d_context, heads):
        super().__init__()
        if d % heads:
            raise ValueError("heads")
        self.heads = heads
        self.to_q, self.to_k = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.to_v, self.to_out = nn.Linear(d_context, d, bias=False), nn.Linear(d, d)

    def forward(self, x, context, keep=None):
        split = lambda y: rearrange(y, "b n (h d) -> b h n d", h=self.heads)
        q, k, v = split(self.to_q(x)), split(self.to_k(x)), split(self.to_v(context))
        keep = None if keep is None else keep[:, None, None, :]
        out = ATTEND
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))

print(check("CrossAttention", CrossAttention).state)
"""
TOO_MANY_VALUES = """
import torch, torch.nn.functional as F
from course_lib.exercises.checking import check

def attention(q, k, v, keep=None):
    return F.scaled_dot_product_attention(q, k, torch.cat([v, v], dim=2)), None

print(check("attention", attention).state)
"""


@pytest.mark.parametrize(
    "program",
    [
        KEYS_OF_X.replace("ATTEND", "F.scaled_dot_product_attention(q, k, v, keep)"),
        KEYS_OF_X.replace("ATTEND", "fused_attention(q, k, v, keep)[0]"),
        KEYS_OF_X.replace("ATTEND", "attention(q, k, v, keep)[0]"),
        TOO_MANY_VALUES,
    ],
)
def test_keys_and_values_of_unequal_number_do_not_kill_the_process(program):
    # PyTorch's fused kernel reads and writes past the end there: whoever checks an answer must live to say so.
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip() in ("crashed", "failed")

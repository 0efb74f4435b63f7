"""A small lesson made for the engine's own tests; not part of the course."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn


def mix(a: Float[Tensor, "b n d"], w: Float[Tensor, "b n"], scale: float = 1.0) -> Float[Tensor, "b d"]:
    """Mean of ``a`` over n with weights softmax(scale * w) over n.

    Raises: ValueError for a negative scale.
    """
    if scale < 0:
        raise ValueError(f"scale={scale} is negative; it must be zero or more")
    weights = (scale * w).softmax(dim=1)
    return (weights[:, :, None] * a).sum(dim=1)


def pass_through(z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Round ``z`` to whole numbers; the gradient passes as if nothing had been done."""
    return z + (z.round() - z).detach()


class Gate(nn.Module):
    """A residual branch with a learned gate that starts at zero: x + gate * f(x)."""

    def __init__(self, d: int):
        super().__init__()
        self.linear = nn.Linear(d, d)
        self.gate = nn.Parameter(torch.zeros(d))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Apply the gated branch; f is ``linear`` followed by tanh."""
        return x + self.gate * torch.tanh(self.linear(x))


ONES = torch.ones(1, 2, 3)

EXERCISES = (
    Exercise(
        target=mix,
        minutes=7,
        cases=[
            Case("plain", lambda g: dict(a=randn(g, 2, 5, 3), w=randn(g, 2, 5))),
            Case("a sharp scale", lambda g: dict(a=randn(g, 2, 3, 7), w=randn(g, 2, 3), scale=4.0)),
            Case("n equals d", lambda g: dict(a=randn(g, 2, 3, 3), w=randn(g, 2, 3))),
            Case("in float64", lambda g: dict(a=randn(g, 2, 5, 3).double(), w=randn(g, 2, 5).double())),
            Case("a negative scale", lambda g: dict(a=randn(g, 2, 3, 7), w=randn(g, 2, 3), scale=-1.0)),
        ],
        mistakes=[
            Mistake("The weights are normalised over the batch.", old="dim=1)\n    return", new="dim=0)\n    return"),
            Mistake("The scale is forgotten.", old="(scale * w)", new="w"),
            Mistake(
                "The weights go along d.",
                code="def mix(a, w, scale=1.0):\n    return (w.softmax(1)[:, None, :] * a).sum(1)",
            ),
            Mistake("No softmax.", code="def mix(a, w, scale=1.0):\n    return (w[:, :, None] * a).sum(1)"),
        ],
        variants=[
            Variant(
                "einsum",
                """def mix(a, w, scale=1.0):
    if scale < 0:
        raise ValueError("negative")
    return torch.einsum("bnd,bn->bd", a, torch.softmax(w * scale, -1))""",
            ),
            Variant(
                "loop",
                """def mix(a, w, scale=1.0):
    if scale < 0:
        raise ValueError("negative")
    out = torch.zeros(a.shape[0], a.shape[2], dtype=a.dtype)
    for i in range(len(a)):
        e = torch.exp(scale * w[i])
        for j in range(len(e)):
            out[i] = out[i] + a[i, j] * e[j] / e.sum()
    return out""",
            ),
        ],
        hints=[Hint("nothing works", "first"), Hint("sums are off", "second"), Hint("still off", "third")],
        seconds=4.0,
    ),
    Exercise(
        target=pass_through,
        minutes=5,
        cases=[Case("plain", lambda g: dict(z=randn(g, 3, 5) * 3))],
        mistakes=[
            Mistake("No gradient gets through rounding.", old="z + (z.round() - z).detach()", new="z.round()"),
            Mistake("You floor instead of rounding.", old="round", new="floor"),
        ],
        variants=[Variant("by data", "def pass_through(z):\n    return z - z.detach() + torch.round(z).detach()")] * 2,
        hints=[Hint("a", "b")] * 3,
    ),
    Exercise(
        target=Gate,
        minutes=11,
        given=("__init__",),
        cases=[
            Case("plain", lambda g: dict(x=randn(g, 2, 3, 5)), init=dict(d=5)),
            Case("more tokens", lambda g: dict(x=randn(g, 2, 7, 5)), init=dict(d=5)),
        ],
        properties=[
            Property("A fresh gate must leave x alone.", lambda cls: bool((cls(3)(ONES) == ONES).all())),
        ],
        mistakes=[
            Mistake(
                "The gate is on the sum.",
                old="x + self.gate * torch.tanh(self.linear(x))",
                new="self.gate * (x + torch.tanh(self.linear(x)))",
            ),
            Mistake("The gate starts at one.", old="torch.zeros(d)", new="torch.ones(d)"),
        ],
        variants=[
            Variant(
                "other names",
                """class Gate(nn.Module):
    def __init__(self, d):
        super(Gate, self).__init__()
        self.f = nn.Sequential(nn.Linear(d, d), nn.Tanh())
        self.g = nn.Parameter(torch.zeros(d))
    def forward(self, x):
        return torch.addcmul(x, self.g.expand_as(x), self.f(x))""",
            ),
        ]
        * 2,
        hints=[Hint("a", "b")] * 3,
    ),
)

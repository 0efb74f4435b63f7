"""Classifier-free guidance: train one network with and without the label, and at sampling exaggerate the difference."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.diffusion.flow import guide

__all__ = ["LabelEmbedding", "guide", "guided_prediction"]


class LabelEmbedding(nn.Module):
    """One vector per class, and one more for "no label", which training uses now and then.

    Args:
        classes: labels are 0 ... classes - 1; ``self.null`` (= classes) is the label that says nothing.
        dim: width of the vectors.
        drop: in training, each label is replaced by the null label with this probability.
    Source: Ho and Salimans 2022, algorithm 1.
    """

    def __init__(self, classes: int, dim: int, drop: float = 0.1):
        super().__init__()
        self.null, self.drop = classes, drop
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """The row of ``self.table`` for each label, some of them dropped.

        In training mode (``self.training``) every label is dropped with probability ``self.drop``, independently of the
        others in the batch: it becomes ``self.null``. With drop = 0 none is dropped, with drop = 1 all are. In
        evaluation mode none is ever dropped. ``labels`` itself is left as it was; it may hold ``self.null`` already.

        Args:
            labels: (b,) int64.
        Returns: (b, dim).
        """
        if self.training:
            dropped = torch.rand(labels.shape, device=labels.device) < self.drop
            labels = labels.masked_fill(dropped, self.null)
        return self.table(labels)


def guided_prediction(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    xt: Float[Tensor, "b *s"],
    t: Float[Tensor, " b"] | Int[Tensor, " b"],
    labels: Int[Tensor, " b"],
    null: int,
    w: float,
) -> Float[Tensor, "b *s"]:
    r"""Classifier-free guidance with a single call of the model: uncond + w (cond - uncond).

    cond is what the model predicts for ``xt``, ``t`` and ``labels``; uncond is what it predicts for the same ``xt``
    and ``t`` when every label is ``null``. The model is called exactly once, also for w = 1, on a batch of 2b that
    holds both halves (in which order is up to you).

    Args:
        model: called as ``model(xt, t, labels)``; treats each sample of its batch by itself and returns something
            like xt.
        xt: (b, ...) noisy data.
        t: (b,) their times, perhaps different ones; the model gets them in the dtype in which they came.
        labels: (b,) int64.
        null: the label that says nothing.
        w: 1 gives cond, 0 gives uncond, more than 1 exaggerates the label.
    Returns: like xt, of its dtype. Gradients reach xt.
    Source: Ho and Salimans 2022, eq. 6, whose w is ours - 1.
    """
    nothing = torch.full_like(labels, null)
    both = model(torch.cat([xt, xt]), torch.cat([t, t]), torch.cat([labels, nothing]))
    cond, uncond = both.chunk(2)
    return guide(cond, uncond, w)

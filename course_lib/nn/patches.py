"""Spacetime patches: a video as a sequence of tokens, and back."""

from einops import rearrange
from jaxtyping import Shaped
from torch import Tensor

Size3 = tuple[int, int, int]


def patch_grid(size: Size3, patch: Size3) -> Size3:
    """How many patches fit along frames, height and width; ``ValueError`` when they do not fit exactly."""
    if min(patch) < 1:
        raise ValueError(f"a patch needs at least one frame, row and column, but patch={patch}")
    if any(length % step for length, step in zip(size, patch, strict=True)):
        raise ValueError(f"frames x height x width = {size} is no multiple of the patch {patch}; pad or crop the video")
    f, h, w = (length // step for length, step in zip(size, patch, strict=True))
    return f, h, w


def patchify(video: Shaped[Tensor, "b c frames height width"], patch: Size3) -> Shaped[Tensor, "b n d"]:
    """Cut a video into non-overlapping spacetime patches, one token each.

    Args:
        video: (b, c, frames, height, width), any values.
        patch: frames, height and width of one patch. ``(1, p, p)`` is the patch of an image transformer.
    Returns: (b, n, d) with n = f h w patches, time slowest and width fastest, and d = pf ph pw c numbers per token.
    Raises: ValueError if the video is no whole number of patches.
    Source: OpenAI 2024, "Video generation models as world simulators", "Spacetime latent patches"; Arnab et al. 2021
    (ViViT), section 3.2, tubelet embedding.
    """
    f, h, w = patch_grid((video.shape[2], video.shape[3], video.shape[4]), patch)
    return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", f=f, h=h, w=w)


def unpatchify(tokens: Shaped[Tensor, "b n d"], grid: Size3, patch: Size3) -> Shaped[Tensor, "b c frames height width"]:
    """Put spacetime patches back into a video: the exact inverse of ``patchify``.

    Args:
        tokens: (b, n, d), n = product of ``grid``, d = product of ``patch`` times the channels.
        grid: number of patches along frames, height and width.
        patch: frames, height and width of one patch.
    Returns: (b, c, frames, height, width).
    Raises: ValueError if n or d does not match.
    """
    (f, h, w), (pf, ph, pw) = grid, patch
    if tokens.shape[1] != f * h * w:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {f} x {h} x {w} = {f * h * w} patches")
    if tokens.shape[2] % (pf * ph * pw):
        raise ValueError(f"{tokens.shape[2]} numbers per token are no multiple of the {pf * ph * pw} cells of {patch}")
    return rearrange(tokens, "b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)", f=f, h=h, w=w, pf=pf, ph=ph, pw=pw)

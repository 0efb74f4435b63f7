"""Convolutions over space and time that never look ahead, so that a picture is a legal video of one frame."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.modulation import rms_norm

Size3 = tuple[int, int, int]


def repeat_first_frame(video: Float[Tensor, "b c f h w"], times: int) -> Float[Tensor, "b c f+{times} h w"]:
    """Put ``times`` copies of the first frame in front: before it began, the world stood still."""
    return torch.cat([video[:, :, :1].expand(-1, -1, times, -1, -1), video], dim=2)


class CausalConv3d(nn.Module):
    """A convolution over frames, rows and columns that sees the present and the past, never the future.

    In time all padding goes in front: kernel - 1 copies of the first frame. So 1 + T frames become 1 + T / stride, and
    frame i of the result sees frames i * stride - (kernel - 1) ... i * stride of the video, where "before frame 0" is
    frame 0 again. A picture, which is a video of one frame, stays one. In space the padding is of zeros: with kernel k
    and stride s, (k - s) // 2 of them on the left and on top, and what is missing to k - s on the right and below.
    Otherwise it is what ``torch.nn.Conv3d`` computes: ``weight`` is (c_out, c_in, *kernel), ``bias`` is (c_out,).

    Args:
        c_in, c_out: channels.
        kernel: frames, rows and columns under the kernel.
        stride: steps along the same axes; in space no larger than the kernel.
    Source: Yu et al. 2024 (MAGVIT-v2). Padding with copies leaves a still clip still.
    """

    def __init__(self, c_in: int, c_out: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *kernel))
        self.bias = nn.Parameter(torch.zeros(c_out))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, video: Float[Tensor, "b c_in f h w"]) -> Float[Tensor, "b c_out frames height width"]:
        """Convolve; see the class for what is padded, and with what.

        Args:
            video: (b, c_in, 1 + T, h, w) with T a multiple of the temporal stride, T = 0 included.
        Returns: (b, c_out, 1 + T / stride, h // stride, w // stride), each axis with its own stride.
        Raises: ValueError if T is no multiple of the temporal stride.
        """
        (kf, kh, kw), (sf, sh, sw) = self.kernel, self.stride
        b, _, frames, _, _ = video.shape
        if (frames - 1) % sf:
            raise ValueError(f"{frames} frames are not 1 + a multiple of the temporal stride {sf}; cut or add frames")
        video = repeat_first_frame(video, kf - 1)
        # A 3-D convolution is a 2-D one whose input channels are the frames under the kernel. On CPUs PyTorch's 2-D
        # kernels are several times faster, fastest with channels last, and the sum is the same.
        under = [video[:, :, k : k + frames : sf] for k in range(kf)]  # each (b, c, 1 + T / s, h, w)
        planes = rearrange(torch.cat(under, dim=1), "b kc f h w -> (b f) kc h w")
        planes = planes.contiguous(memory_format=torch.channels_last)
        left, top = (kw - sw) // 2, (kh - sh) // 2
        planes = F.pad(planes, (left, kw - sw - left, top, kh - sh - top))
        weight = rearrange(self.weight, "o c k h w -> o (k c) h w")
        planes = F.conv2d(planes, weight, self.bias, stride=(sh, sw))
        return rearrange(planes, "(b f) c h w -> b c f h w", b=b)


def fold_time(video: Float[Tensor, "b c f h w"], patch: Size3) -> Float[Tensor, "b d frames height width"]:
    """Move pf x ph x pw pixels of each channel into channels; 1 + T frames become 1 + T / pf.

    The first frame stands for a whole group, as if it had been there before: so the first group needs no second frame.

    Raises: ValueError if T is no multiple of pf, or height or width none of ph or pw.
    """
    pf, ph, pw = patch
    frames, height, width = video.shape[2:]
    if (frames - 1) % pf or height % ph or width % pw:
        raise ValueError(
            f"a video of {frames} x {height} x {width} frames x rows x columns is not 1 + a multiple of {pf} frames of "
            f"a multiple of {ph} x {pw} pixels; cut it, or repeat its last frame"
        )
    video = repeat_first_frame(video, pf - 1)
    return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (c pf ph pw) f h w", pf=pf, ph=ph, pw=pw)


def causal_up(groups: Float[Tensor, "b d f h w"], r: int) -> Float[Tensor, "b c frames h w"]:
    """Unfold channels into frames, so that 1 + t frames become 1 + r t: the first gives one frame, the others r each.

    Each frame arrives as r frames folded into its channels: channel r k + j of it is channel k of the j-th of them,
    j = 0 ... r - 1, earliest first. Of the very first group only the last one, j = r - 1, is a frame; the others would
    lie before the beginning, and are dropped. So frame 0 of the result needs nothing but frame 0 of ``groups``.

    Args:
        groups: (b, d, 1 + t, h, w) with d = r c channels; t may be 0, a picture.
        r: frames in a group, at least 1; r = 1 changes nothing.
    Returns: (b, c, 1 + r t, h, w), of the same dtype.
    Raises: ValueError if r < 1, or d is no multiple of r.
    Source: Yu et al. 2024 (MAGVIT-v2), depth-to-space upsampling in a causal decoder.
    """
    if r < 1 or groups.shape[1] % r:
        raise ValueError(
            f"{groups.shape[1]} channels are no whole number of groups of r={r} frames; r must divide them"
        )
    return rearrange(groups, "b (c r) f h w -> b c (f r) h w", r=r)[:, :, r - 1 :]


def unfold_time(video: Float[Tensor, "b d f h w"], patch: Size3) -> Float[Tensor, "b c frames height width"]:
    """The inverse of ``fold_time``: 1 + t groups become 1 + t pf frames; the first group gives its last one only."""
    pf, ph, pw = patch
    return causal_up(rearrange(video, "b (c pf ph pw) f h w -> b (c pf) f (h ph) (w pw)", pf=pf, ph=ph, pw=pw), pf)


class ChannelNorm(nn.Module):
    """Divide each pixel of each frame by the root mean square of its channels, and scale.

    A group norm averages over frames, so the past would feel the future through it; this one cannot.
    """

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "b d f h w"]) -> Float[Tensor, "b d f h w"]:
        return rms_norm(x.movedim(1, -1), self.scale).movedim(-1, 1)


class CausalResBlock(nn.Module):
    """x + conv in time(silu(conv in space(silu(norm(x))))); the identity at initialisation."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = ChannelNorm(width)
        self.space = CausalConv3d(width, width, (1, 3, 3))
        self.time = CausalConv3d(width, width, (3, 1, 1))
        nn.init.zeros_(self.time.weight)

    def forward(self, x: Float[Tensor, "b d f h w"]) -> Float[Tensor, "b d f h w"]:
        return x + self.time(F.silu(self.space(F.silu(self.norm(x)))))

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

    In space it is padded with zeros as usual, (k - s) / 2 on either side, the odd one on the right. In time all padding
    goes in front: kernel - 1 copies of the first frame. So 1 + T frames become 1 + T / stride, frame i of the result
    depends on frames 0 ... i * stride of the video, and a picture, which is a video of one frame, stays one.

    Args:
        c_in, c_out: channels.
        kernel: frames, rows and columns under the kernel.
        stride: steps along the same axes.
    Source: Yu et al. 2024 (MAGVIT-v2). Padding with copies leaves a still clip still.
    """

    def __init__(self, c_in: int, c_out: int, kernel: Size3, stride: Size3 = (1, 1, 1)):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *kernel))
        self.bias = nn.Parameter(torch.zeros(c_out))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, video: Float[Tensor, "b c_in f h w"]) -> Float[Tensor, "b c_out frames height width"]:
        """Convolve; see the class for what is padded, and with what.

        Args:
            video: (b, c_in, 1 + T, h, w) with T a multiple of the temporal stride.
        Returns: (b, c_out, 1 + T / stride, height, width).
        Raises: ValueError if T is no multiple of the temporal stride.
        """
        (kf, kh, kw), (sf, sh, sw) = self.kernel, self.stride
        b, _, frames, _, _ = video.shape
        if (frames - 1) % sf:
            raise ValueError(f"{frames} frames are not 1 + a multiple of the temporal stride {sf}; cut or add frames")
        video = repeat_first_frame(video, kf - 1)
        # A 3-D convolution is a 2-D one whose input channels are the frames under the kernel. On CPUs PyTorch's 2-D
        # kernels are several times faster, and the sum is the same.
        under = [video[:, :, k : k + frames : sf] for k in range(kf)]  # each (b, c, 1 + T / s, h, w)
        planes = rearrange(torch.stack(under, dim=2), "b c k f h w -> (b f) (c k) h w")
        left, top = (kw - sw) // 2, (kh - sh) // 2
        planes = F.pad(planes, (left, kw - sw - left, top, kh - sh - top))
        planes = F.conv2d(planes, self.weight.flatten(1, 2), self.bias, stride=(sh, sw))
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


def unfold_time(video: Float[Tensor, "b d f h w"], patch: Size3) -> Float[Tensor, "b c frames height width"]:
    """The inverse of ``fold_time``: 1 + t groups become 1 + t pf frames; the first group gives its last one only."""
    pf, ph, pw = patch
    video = rearrange(video, "b (c pf ph pw) f h w -> b c (f pf) (h ph) (w pw)", pf=pf, ph=ph, pw=pw)
    return video[:, :, pf - 1 :]


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

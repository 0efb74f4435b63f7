"""Causal convolutions against PyTorch's 3-D convolution, and what looks into the future: nothing."""

import pytest
import torch
import torch.nn.functional as F

from course_lib.nn.causal import (
    CausalConv3d,
    CausalResBlock,
    ChannelNorm,
    causal_up,
    fold_time,
    repeat_first_frame,
    unfold_time,
)


def clip(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scrambled(module):
    """Every weight moved, so that no zero hides a path."""
    torch.manual_seed(1)
    for p in module.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return module


def reach(module, video):
    """(frames out, frames in): does a frame of the result depend on a frame of the video?"""
    video = video.clone().requires_grad_()
    out = module(video)
    rows = []
    for i in range(out.shape[2]):
        (grad,) = torch.autograd.grad(out[:, :, i].square().sum(), video, retain_graph=True)
        rows.append(grad.abs().sum(dim=(0, 1, 3, 4)) > 0)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1, 1)),
        ((3, 3, 3), (2, 2, 2), (0, 1, 0, 1)),
        ((2, 3, 5), (1, 1, 1), (2, 2, 1, 1)),
        ((4, 4, 4), (4, 4, 4), (0, 0, 0, 0)),
        ((1, 4, 4), (1, 2, 2), (1, 1, 1, 1)),
    ],
)
def test_a_causal_convolution_is_a_convolution_of_the_clip_with_a_past(kernel, stride, pads):
    module = CausalConv3d(3, 5, kernel, stride)
    video = clip(2, 3, 9, 12, 16)
    padded = F.pad(repeat_first_frame(video, kernel[0] - 1), pads)
    expected = F.conv3d(padded, module.weight, module.bias, stride=stride)
    assert expected.shape[2] == 1 + 8 // stride[0]
    torch.testing.assert_close(module(video), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_frame_i_sees_frames_up_to_i_times_stride_and_no_further(stride):
    video = clip(1, 2, 7, 4, 4)
    seen = reach(CausalConv3d(2, 3, (3, 3, 3), (stride, 1, 1)), video)
    for i, row in enumerate(seen):
        assert row.nonzero().max() == i * stride


def test_a_picture_is_a_video_of_one_frame():
    module, video = CausalConv3d(2, 3, (3, 3, 3)), clip(2, 2, 5, 6, 7)
    assert torch.equal(module(video[:, :, :1]), module(video)[:, :, :1])


def test_a_still_clip_stays_still():
    out = CausalConv3d(2, 3, (3, 3, 3), (2, 1, 1))(clip(2, 2, 1, 6, 7).expand(-1, -1, 5, -1, -1))
    torch.testing.assert_close(out, out[:, :, :1].expand_as(out))


def test_frames_that_do_not_fit_the_stride_are_refused():
    with pytest.raises(ValueError, match=r"6 frames are not 1 \+ a multiple of the temporal stride 2"):
        CausalConv3d(1, 1, (3, 3, 3), (2, 1, 1))(clip(1, 1, 6, 4, 4))


def test_unfolding_gives_every_frame_back():
    video = clip(2, 3, 9, 8, 12)
    folded = fold_time(video, (4, 2, 3))
    assert folded.shape == (2, 3 * 24, 3, 4, 4)
    assert torch.equal(unfold_time(folded, (4, 2, 3)), video)


def test_a_group_of_frames_holds_itself_and_nothing_later():
    expected = torch.tensor([[True] + [False] * 8, [False] + [True] * 4 + [False] * 4, [False] * 5 + [True] * 4])
    assert torch.equal(reach(lambda v: fold_time(v, (4, 2, 3)), clip(1, 3, 9, 8, 12)), expected)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 12), (1, 1, 9, 7, 12), (1, 1, 9, 8, 11)])
def test_a_video_that_does_not_fold_is_refused(shape):
    with pytest.raises(ValueError, match=r"not 1 \+ a multiple of 4 frames"):
        fold_time(clip(*shape), (4, 2, 3))


def test_a_block_is_the_identity_at_first_and_causal_ever_after():
    video = clip(1, 6, 5, 4, 4)
    assert torch.equal(CausalResBlock(6)(video), video)
    assert torch.equal(reach(scrambled(CausalResBlock(6)), video).triu(1), torch.zeros(5, 5, dtype=torch.bool))


def test_the_norm_sees_one_pixel_of_one_frame():
    norm, video = scrambled(ChannelNorm(5)), clip(2, 5, 3, 4, 4)
    one = norm(video[:1, :, 1:2, 2:3, 3:4])
    torch.testing.assert_close(norm(video)[:1, :, 1:2, 2:3, 3:4], one)
    expected = video / (video.square().mean(1, keepdim=True) + 1e-6).sqrt() * norm.scale.view(-1, 1, 1, 1)
    torch.testing.assert_close(norm(video), expected)


def test_unfolding_channels_against_a_loop():
    x = clip(2, 6, 4, 3, 5)
    frames = [x[:, [2, 5], 0]]  # of the first group the last frame
    for i in range(1, 4):
        frames += [x[:, [j, 3 + j], i] for j in range(3)]
    assert torch.equal(causal_up(x, 3), torch.stack(frames, dim=2))
    assert torch.equal(causal_up(x[:, :, :1], 3), causal_up(x, 3)[:, :, :1])
    assert torch.equal(causal_up(x, 1), x)
    for r in (4, 0, -1):
        with pytest.raises(ValueError, match="r must divide them"):
            causal_up(x, r)

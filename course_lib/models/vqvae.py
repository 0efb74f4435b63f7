"""The VQ-VAE of "Neural Discrete Representation Learning" (van den Oord et al. 2017): pictures as grids of codes.

    frame -> encoder -> z (b, h, w, d) -> nearest of k codes -> q (b, h, w, d) -> decoder -> frame

Encoder and decoder are those of the KL autoencoder (``models/autoencoder.py``); only the bottleneck differs. The course
keeps channels last inside the bottleneck, because a code is a vector: ``z[b, i, j]`` is one.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.models.autoencoder import (
    AutoencoderConfig,
    build_decoder,
    build_encoder,
    check_divides,
    initialise_convolutions,
)


def quantize(
    z: Float[Tensor, "b h w d"], codebook: Float[Tensor, "k d"]
) -> tuple[Int[Tensor, "b h w"], Float[Tensor, "b h w d"]]:
    r"""Replace every vector by the nearest one of the codebook.

    Nearest means the smallest Euclidean distance \|z - e\|, for every vector z[b, i, j] by itself. Of equally near
    codes the one with the smallest number is taken. Distances are computed in the dtype of z; what differs by no more
    than its rounding may be decided either way.

    Args:
        z: (b, h, w, d), the encoder's output, channels last; float32 or float64, like the codebook. Its layout in
            memory may be any.
        codebook: (k, d), one code per row.
    Returns: the numbers of the chosen codes, (b, h, w), int64 in 0 ... k - 1, and the chosen rows themselves,
        (b, h, w, d), in their dtype: ``codebook[codes]``. Gradients reach the codebook through the chosen rows. None
        reaches z: choosing has no derivative.
    Source: van den Oord et al. 2017, section 3.1, equations 1 and 2.
    """
    # ||z - e||^2 = ||z||^2 - 2 z e + ||e||^2, and the first term is the same for all codes.
    distance = codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)  # (b, h, w, k)
    codes = distance.argmin(dim=-1)
    return codes, codebook[codes]


def straight_through(
    z: Float[Tensor, "b h w d"], q: Float[Tensor, "b h w d"], beta: float = 0.25
) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, ""]]:
    r"""What the decoder receives, and the two losses of the bottleneck.

    The first result has the values of q, but in the backward pass it is z: its gradient goes to z unchanged, as if
    nothing had been quantized, and none of it goes to q.

    The loss is mean((sg(z) - q)^2) + beta * mean((z - sg(q))^2). sg is stop-gradient: its argument counts as a constant
    in the backward pass. The first term moves the codes only, the second, called commitment, moves the encoder only.
    Both means run over all numbers, b * h * w * d of them.

    Args:
        z: (b, h, w, d), the encoder's output, float32 or float64.
        q: (b, h, w, d), the code that was chosen for each vector of z, in the same dtype.
        beta: weight of the commitment. The paper uses 0.25.
    Returns: the decoder's input, (b, h, w, d), and the loss, a scalar for the whole batch; both in the dtype of z.
    Source: van den Oord et al. 2017, section 3.2, equation 3 without its first term.
    """
    codebook_loss = (z.detach() - q).square().mean()
    commitment_loss = (z - q.detach()).square().mean()
    return z + (q - z).detach(), codebook_loss + beta * commitment_loss


def ema_update(
    z: Float[Tensor, "m d"],
    codes: Int[Tensor, " m"],
    count: Float[Tensor, " k"],
    total: Float[Tensor, "k d"],
    decay: float = 0.99,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"], Float[Tensor, "k d"]]:
    r"""Move every code to the running mean of the vectors that chose it: k-means, one batch at a time.

    For code i, let n_i be the number of vectors in the batch that chose it, and s_i their sum (0 where nobody did):

        count_i <- decay * count_i + (1 - decay) * n_i
        total_i <- decay * total_i + (1 - decay) * s_i
        code_i  <- total_i / N_i,   N_i = (count_i + eps) / (sum_j count_j + k * eps) * sum_j count_j

    with the new counts and totals in the third line, also for codes that nobody chose. N_i is count_i smoothed
    (Laplace), so that no code divides by zero; the N_i add up to the same sum as the counts. There is no correction of
    the start (zero debiasing): it would multiply both averages by one factor, which cancels.

    Args:
        z: (m, d), all vectors of a batch; float32 or float64. count and total have the same dtype, so has the result.
        codes: (m,), int64 in 0 ... k - 1, the code that each of them chose.
        count: (k,), running number of vectors per code. It is not changed in place.
        total: (k, d), running sum of those vectors. It is not changed in place.
        decay: share of the old averages that is kept, gamma in the paper, 0 <= decay < 1. With 0 only the batch counts.
        eps: how much smoothing, 0 or more. With 0 there is none.
    Returns: the codebook (k, d), the new count (k,) and the new total (k, d). None of them carries gradients, even
        where the arguments do: nobody may learn through the update.
    Source: van den Oord et al. 2017, appendix A.1; the smoothing is that of the authors' implementation (Sonnet).
    """
    with torch.no_grad():
        n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
        s = torch.zeros_like(total).index_add_(0, codes, z)
        count = decay * count + (1 - decay) * n
        total = decay * total + (1 - decay) * s
        smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
        return total / smoothed[:, None], count, total


def perplexity(codes: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    r"""How many codes are in use, effectively: exp of the entropy of their frequencies.

    With p_i the share of all b * h * w entries that are code i, it is exp(-sum_i p_i ln p_i). A code that never occurs
    adds nothing, since p ln p goes to 0 with p. One single code gives 1; k codes, all equally often, give k.

    Args:
        codes: (b, h, w), of any integer dtype, 0 or larger. Numbers may be missing in between.
    Returns: a scalar, float32, at least 1 up to rounding.
    Raises: ValueError if there are no codes at all, whichever axis is empty.
    Source: reported by the authors' implementation (Sonnet); the paper's section 4.1 gives results in bits.
    """
    if codes.numel() == 0:
        raise ValueError(f"codes of shape {tuple(codes.shape)} hold nothing to count; give at least one code")
    p = torch.bincount(codes.flatten()) / codes.numel()
    return torch.special.entr(p).sum().exp()


def restart_dead_codes(
    codebook: Float[Tensor, "k d"],
    count: Float[Tensor, " k"],
    total: Float[Tensor, "k d"],
    candidates: Float[Tensor, "m d"],
    threshold: float = 1.0,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"], Float[Tensor, "k d"]]:
    """Give codes that hardly anybody chooses a new life at places where vectors are.

    A code is dead if its count is below ``threshold``, strictly. The first dead code, in the order of their numbers,
    moves to ``candidates[0]``, the second to ``candidates[1]`` and so on. If there are more dead codes than candidates,
    the last ones stay as they are. A code that was moved gets count = threshold and total = threshold * its new
    vector, so that it is alive, and total / count is where it stands. Living codes keep every number.

    Args:
        codebook: (k, d), float32 or float64. All other tensors, results included, have the same dtype.
        count: (k,), running number of vectors per code, as in ``ema_update``; 0 where nobody ever chose the code.
        total: (k, d), running sum of those vectors. After smoothing, total / count is only nearly the code.
        candidates: (m, d), vectors of the batch in random order: whoever calls has shuffled them. m may be 0.
        threshold: what is too little, larger than 0.
    Returns: codebook (k, d), count (k,) and total (k, d). They are new tensors, also where nobody is dead or m is 0,
        and share no memory with any argument; the arguments are not changed in place. None of them carries gradients,
        even where the arguments do.
    Source: Dhariwal et al. 2020 (Jukebox), "random restarts".
    """
    with torch.no_grad():
        dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
        fresh = candidates[: len(dead)]
        codebook = codebook.index_copy(0, dead, fresh)
        count = count.index_fill(0, dead, threshold)
        total = total.index_copy(0, dead, threshold * fresh)
        return codebook, count, total


class Quantized(NamedTuple):
    """What a ``VectorQuantizer`` returns."""

    out: Float[Tensor, "b h w d"]  # for the decoder
    codes: Int[Tensor, "b h w"]
    loss: Float[Tensor, ""]  # of the bottleneck alone


class VectorQuantizer(nn.Module):
    """The bottleneck: a codebook, and the rules by which it learns.

    With ``ema`` the codebook is a buffer that follows running means, one step per call in train mode, after this call's
    codes were chosen; the loss is the commitment alone. Without, it is a parameter, and the codebook loss moves it.

    Args:
        k: number of codes.
        d: numbers per code.
        beta: weight of the commitment loss.
        decay, eps: of ``ema_update``.
        ema: how the codebook learns.
        restart: threshold of ``restart_dead_codes``, which runs after each update; 0 never restarts. Needs ``ema``.
        quantize, straight_through, ema_update, restart_dead_codes: the parts, which a lesson may exchange.
    Raises: ValueError for a restart without ema.
    Source: van den Oord et al. 2017, section 3 and appendix A.1.
    """

    def __init__(
        self,
        k: int,
        d: int,
        beta: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
        ema: bool = True,
        restart: float = 1.0,
        quantize: Callable = quantize,
        straight_through: Callable = straight_through,
        ema_update: Callable = ema_update,
        restart_dead_codes: Callable = restart_dead_codes,
    ):
        super().__init__()
        if restart and not ema:
            raise ValueError(f"restart={restart} needs the running counts of ema=True; give restart=0 without them")
        self.k, self.d, self.beta, self.decay, self.eps, self.ema, self.restart = k, d, beta, decay, eps, ema, restart
        self.choose, self.straight_through = quantize, straight_through
        self.update_averages, self.restart_dead = ema_update, restart_dead_codes
        codebook = torch.randn(k, d)
        if ema:
            self.register_buffer("codebook", codebook)
            # As if each code had been chosen once, so that a code which nobody chooses stays where it is.
            self.register_buffer("count", torch.ones(k))
            self.register_buffer("total", codebook.clone())
        else:
            self.codebook = nn.Parameter(codebook)

    def forward(self, z: Float[Tensor, "b h w d"], generator: torch.Generator | None = None) -> Quantized:
        """Quantize z; in train mode with ``ema`` also learn from it. ``generator`` shuffles vectors for restarts."""
        codes, q = self.choose(z, self.codebook)
        out, loss = self.straight_through(z, q, self.beta)
        if self.ema:
            loss = self.beta * F.mse_loss(z, q)  # the codebook has an owner already
            if self.training:
                self.learn(z.detach().flatten(0, 2), codes.flatten(), generator)
        return Quantized(out, codes, loss)

    @torch.no_grad()
    def learn(
        self, z: Float[Tensor, "m d"], codes: Int[Tensor, " m"], generator: torch.Generator | None = None
    ) -> None:
        """One update of the codebook from all vectors of a batch and the codes that they chose."""
        state = self.update_averages(z, codes, self.count, self.total, self.decay, self.eps)
        if self.restart and bool((state[1] < self.restart).any()):
            order = torch.randperm(len(z), generator=generator)[: self.k].to(z.device)
            state = self.restart_dead(*state, z[order], self.restart)
        for buffer, value in zip((self.codebook, self.count, self.total), state, strict=True):
            buffer.copy_(value)


class VQVAE(nn.Module):
    """Frames to code numbers and back.

    Args:
        config: of encoder and decoder; its ``latent_channels`` is the width of a code.
        quantizer: the bottleneck.
    Raises: ValueError if the two widths differ.
    Source: van den Oord et al. 2017, figure 1.
    """

    def __init__(self, config: AutoencoderConfig, quantizer: VectorQuantizer) -> None:
        super().__init__()
        if quantizer.d != config.latent_channels:
            raise ValueError(f"codes of {quantizer.d} numbers do not fit latent_channels={config.latent_channels}")
        self.config = config
        self.encoder = build_encoder(config, config.latent_channels)
        self.quantizer = quantizer
        self.decoder = build_decoder(config, config.latent_channels)
        initialise_convolutions(self)

    def latents(self, frames: Float[Tensor, "b c height width"]) -> Float[Tensor, "b h w d"]:
        """Frames in [-1, 1] to vectors that are not quantized yet; h = height / ``config.downsampling``."""
        check_divides(frames, self.config)
        return rearrange(self.encoder(frames), "b d h w -> b h w d")

    def encode(self, frames: Float[Tensor, "b c height width"]) -> Int[Tensor, "b h w"]:
        """Frames in [-1, 1] to code numbers."""
        return self.quantizer.choose(self.latents(frames), self.quantizer.codebook)[0]

    def decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b c height width"]:
        """Code numbers to frames, in [-1, 1] up to the network's error."""
        return self.decode_latents(self.quantizer.codebook[codes])

    def decode_latents(self, q: Float[Tensor, "b h w d"]) -> Float[Tensor, "b c height width"]:
        """Vectors to frames."""
        return self.decoder(rearrange(q, "b h w d -> b d h w"))

    def forward(
        self, frames: Float[Tensor, "b c height width"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b c height width"], Quantized]:
        """The reconstruction, and what the bottleneck did."""
        quantized = self.quantizer(self.latents(frames), generator)
        return self.decode_latents(quantized.out), quantized


def vqvae_loss(
    model: VQVAE, frames: Float[Tensor, "b c height width"], generator: torch.Generator | None = None
) -> Float[Tensor, ""]:
    """Mean squared error of the reconstruction, plus the loss of the bottleneck (equation 3).

    Minus the log-likelihood of the paper's first term is the squared error times a constant, if pixels are Gaussian.
    """
    reconstruction, quantized = model(frames, generator)
    return F.mse_loss(reconstruction, frames) + quantized.loss

"""DynamicConv (Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions", section 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import LayerCard, packed_lengths
from .glu_conv import GLUConv, GLUConvState


class DynamicConv(GLUConv):
    """A convolution whose taps are computed from its input, anew for every sample:

        y = out_proj(conv(u)),  u = glu(in_proj(x)),    w_t = softmax(weight_linear(u_t)) of shape (H, K)
        conv(u)_{c,t} = sum_{s=0}^{K-1} w_{t,h(c),s} u_{c, t+a-s},    a = 0, or K // 2 if bidirectional

    Near the ends of a sequence taps that fall outside find zeros, and the others are not normalised again, unless
    `renorm_padding` leaves them out of the softmax.

    Options as in `GLUConv`, and:

    Args:
        bias: whether `weight_linear` has a bias. Its outputs are head by head, lag -a first.
        renorm_padding: see above.

    Raises:
        ValueError: `renorm_padding` without `weight_softmax`, or as `GLUConv` raises.
    """

    card = LayerCard(
        title="DynamicConv",
        paper="Wu et al. 2019, Pay Less Attention with Lightweight and Dynamic Convolutions",
        url="https://arxiv.org/abs/1901.10430",
        equation="y_t = W_o (softmax(W_k u_t) * u)_t, u = GLU(W_i x)",
        cost="O(K L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        kernel_size: int = 31,
        num_heads: int = 8,
        conv_channels: int | None = None,
        glu: bool = True,
        weight_softmax: bool = True,
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        bias: bool = False,
        conv_bias: bool = False,
        renorm_padding: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            channels,
            max_length,
            kernel_size=kernel_size,
            num_heads=num_heads,
            conv_channels=conv_channels,
            glu=glu,
            weight_softmax=weight_softmax,
            weight_dropout=weight_dropout,
            input_dropout=input_dropout,
            conv_bias=conv_bias,
            bidirectional=bidirectional,
        )
        if renorm_padding and not weight_softmax:
            raise ValueError("renorm_padding=True needs weight_softmax=True: without it nothing is normalised")
        self.renorm_padding = renorm_padding
        self.weight_linear = nn.Linear(self.conv_channels, num_heads * kernel_size, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: the projections as `GLUConv`, `weight_linear` as `torch.nn.Linear` does."""
        super().reset_parameters()
        self.weight_linear.reset_parameters()

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> GLUConvState:
        """Return the state before the first sample; see `Mixer.init_state`."""
        state = super().init_state(batch_size, dtype=dtype, device=device)
        if self.renorm_padding:
            state.real = state.inputs.new_zeros(batch_size, self.kernel_size - 1, dtype=torch.bool)
        return state

    def _convolve(
        self,
        u: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        state: GLUConvState | None,
        return_state: bool,
    ) -> tuple[Tensor, GLUConvState | None]:
        B, L, _ = u.shape
        K = self.kernel_size
        behind = K - 1 - self.ahead
        valid = None  # (B, L, K): where a tap, the oldest first, finds a sample of the same sequence
        real = None
        if cu_seqlens is not None:
            lengths = torch.tensor(packed_lengths(cu_seqlens, L), device=u.device)
            sequence = torch.arange(len(lengths), device=u.device).repeat_interleave(lengths, output_size=L)
            valid = F.pad(sequence, (behind, self.ahead), value=-1).unfold(0, K, 1)[None] == sequence[:, None]
        elif self.renorm_padding:
            real = torch.ones(B, L, dtype=torch.bool, device=u.device) if mask is None else mask
            before = real.new_zeros(B, behind) if state is None or state.real is None else state.real
            real = F.pad(torch.cat([before, real], 1), (0, self.ahead))
            valid = real.unfold(1, K, 1)
        window = F.pad(u.mT, (behind, self.ahead)) if state is None else torch.cat([state.inputs.to(u.dtype), u.mT], 2)
        y = dynamic_conv(window, self._taps(u, valid).to(u.dtype))
        if self.conv_bias is not None:
            y = y + self.conv_bias.to(y.dtype)
        if not return_state:
            return y, None
        position = L + (0 if state is None else state.position)
        # Copies: a view would keep the whole chunk in memory for as long as the state lives.
        return y, GLUConvState(position, window[..., L:].clone(), None if real is None else real[:, L:].clone())

    def _taps(self, u: Tensor, valid: Tensor | None) -> Tensor:
        """The taps at every sample of u (..., C), the oldest input's first: (..., H, K), float32 at least."""
        taps = self.weight_linear(u).unflatten(-1, (self.num_heads, self.kernel_size)).flip(-1)
        taps = taps.to(torch.promote_types(taps.dtype, torch.float32))
        if valid is not None and self.renorm_padding:
            # The sample itself is always there but at padded positions, where something finite must come out too.
            nothing = ~valid.any(-1, keepdim=True)
            taps = taps.masked_fill(~(valid | nothing)[..., None, :], -torch.inf)
        if self.weight_softmax:
            taps = taps.softmax(-1)
        if valid is not None:
            taps = taps * valid[..., None, :]
        return self.weight_dropout(taps)

    def step(self, x_t: Tensor, state: GLUConvState) -> tuple[Tensor, GLUConvState]:
        """Mix one sample; see `Mixer.step`. O(K)."""
        self.check_step(x_t, state)
        u, after = self._convolve(self._project(x_t)[:, None], None, None, state, True)
        assert after is not None
        return self.out_proj(u[:, 0]), after


def dynamic_conv(window: Tensor, taps: Tensor) -> Tensor:
    """Convolve with other taps at every sample: `y_{b,t,c} = sum_j taps_{b,t,h(c),j} window_{b,c,t+j}`.

    In blocks of samples, as products with band matrices: O(K L) in time and in memory. Of a block of n samples only
    n / (n + K - 1) of the products are not with a zero, so blocks are about as long as the taps.

    Args:
        window: (B, C, L + K - 1), the inputs with what lies outside, oldest first.
        taps: (B, L, H, K), the oldest input's first; head h has channels h C/H ... (h+1) C/H - 1.

    Returns:
        (B, L, C), of the inputs' dtype.
    """
    B, L, H, K = taps.shape
    if torch.compiler.is_compiling():  # tap by tap, which compilers fuse, and which is one graph for every length
        shifted = [taps[..., j].mT[:, :, None] * window.unflatten(1, (H, -1))[..., j : j + L] for j in range(K)]
        return sum(shifted[1:], shifted[0]).flatten(1, 2).mT
    n = min(L, max(K, 16))
    blocks = -(-L // n)
    taps = F.pad(taps, (0, 0, 0, 0, 0, blocks * n - L)).view(B, blocks, n, H, K).movedim(3, 1)
    # Row i of a block's matrix has its taps at columns i ... i + K - 1 of n + K - 1. Rows one element too long, written
    # one after the other and read in rows of the right length, are shifted like that.
    band = F.pad(taps, (0, n)).flatten(-2)[..., :-n].unflatten(-1, (n, n + K - 1))
    inputs = F.pad(window, (0, blocks * n - L)).unfold(2, n + K - 1, n)  # (B, C, blocks, n + K - 1)
    inputs = inputs.unflatten(1, (H, -1)).permute(0, 1, 3, 4, 2)
    y = band @ inputs  # (B, H, blocks, n, C / H)
    return y.permute(0, 2, 3, 1, 4).reshape(B, blocks * n, -1)[:, :L]

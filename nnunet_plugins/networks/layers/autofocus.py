"""Autofocus convolution: one kernel at several dilation rates, and at every voxel an attention over the rates.

Paper: Qin et al. 2018, "Autofocus Layer for Semantic Segmentation" (MICCAI, arXiv:1805.08403), section 2.2 and Fig. 1;
the authors' code is github.com/yaq007/Autofocus-Layer.

    x ──┬── conv 3, ReLU, conv 1, softmax over the rates ── a_1 ... a_K     (one map per rate, they sum to 1)
        ├── conv W, rate r_1 ── * a_1 ──┐
        ├── ...                         + ── out
        └── conv W, rate r_K ── * a_K ──┘                                   (W is shared)

Where the paper and the authors' code differ, both are options: the code normalises every branch on its own and has a
bias in the first only (`branch_norm`), and keeps the gradient of the attention from flowing into the layer's input
(`detach_attention`). Equation 3 has neither. Padding is "same", as nnU-Net's patches need; the code's is "valid".

The rates need not cost a convolution each, nor their maps stay in memory until the backward pass; `FORMS` says how.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.networks.layers.blocks import (
    BATCH_NORM,
    CHANNELS_LAST,
    NEGATIVE_SLOPE,
    Rate,
    convolution,
    per_axis,
    pointwise,
    same_padding,
)
from nnunet_plugins.networks.layers.device import device_type
from nnunet_plugins.networks.layers.recompute import recompute
from nnunet_plugins.networks.layers.shared_convolution import shared_convolution

_CONVOLVE: dict[int, Any] = {2: functional.conv2d, 3: functional.conv3d}

FORMS = ("plain", "shared", "fused")
"""How the layer can be computed. All have the same weights and the same results, but for rounding.

plain: a convolution per rate, everything kept for the backward pass. The reference.
shared: nothing per rate is kept but computed again in the backward pass. On the CPU all rates share the products of one
    convolution (`layers.shared_convolution`); on other devices there is a convolution per rate.
fused: all in one kernel on a GPU (`layers.fused_autofocus`); needs Triton, and no norm per rate. On request only, until
    it has been measured on a GPU.
"""


def short_rate(rate: Sequence[int]) -> str:
    """Write a dilation rate, as 4 or 1x4x4."""
    return str(rate[0]) if len({*rate}) == 1 else "x".join(map(str, rate))


class AutofocusConv(nn.Module):
    """Convolution whose dilation rate every voxel chooses; `(N, in, *size)` to `(N, out, *size)`, in 2D or 3D.

    `out(v) = sum_k a_k(v) (W *_{r_k} x)(v) + b`, with `a = softmax(conv1(ReLU(conv3(x))))` (equations 2 and 3). It has
    the weight and bias of an ordinary convolution, under their ordinary names, and the attention network beside them.

    Args:
        in_channels: channels of the input; the attention network has half of them.
        out_channels: channels of the output.
        kernel_size: kernel per axis, 3 or (on anisotropic axes) 1; its length sets the dimension.
        rates: dilation rates, each one number or one per axis. A kernel of 1 makes its axis indifferent to them.
        branch_norm: batch norm of its own for each rate, as in the authors' code. Otherwise norm, if any, comes after.
        detach_attention: let the attention's gradient stop at the layer's input, as in the authors' code.
        bias: whether the convolution has a bias.
        form: one of `FORMS`; by default "shared", and "plain" for a single rate.

    Raises:
        ValueError: if `rates` is empty or holds a rate below 1, or the form is unknown or cannot have a norm per rate.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int] = (3, 3, 3),
        *,
        rates: Sequence[Rate] = (2, 6, 10, 14),
        branch_norm: bool = False,
        detach_attention: bool = False,
        bias: bool = True,
        form: str | None = None,
    ) -> None:
        super().__init__()
        if form not in (None, *FORMS):
            raise ValueError(f"form must be None or one of {FORMS}, got {form!r}")
        if form == "fused" and branch_norm:
            raise ValueError("the fused form has no norm per rate; give branch_norm=False or another form")
        self.form = form
        dim = len(kernel_size)
        self.kernel_size = tuple(kernel_size)
        self.rates = tuple(per_axis(rate, dim) for rate in rates)
        if not self.rates or min(min(rate) for rate in self.rates) < 1:
            raise ValueError(f"AutofocusConv needs one dilation rate >= 1 per branch, got rates={tuple(rates)}")
        self.detach_attention = detach_attention
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        hidden = max(1, in_channels // 2)
        self.attention = nn.Sequential(
            convolution(in_channels, hidden, kernel_size),
            nn.ReLU(inplace=True),
            pointwise(hidden, len(self.rates), dim),
            nn.Softmax(dim=1),
        )
        self.norms = nn.ModuleList(BATCH_NORM[dim](out_channels) for _ in self.rates if branch_norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel as nnU-Net does (He), the attention from N(0, 0.01): all rates start with equal shares."""
        nn.init.kaiming_normal_(self.weight, a=NEGATIVE_SLOPE)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        for module in self.attention:
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def map_source(self) -> nn.Module:
        """What computes the maps: outside `attention` in a training step, and once more in the backward pass."""
        return self.attention[-1]

    @property
    def map_names(self) -> list[str]:
        """The dilation rates, as 4 or 1x4x4."""
        return [short_rate(rate) for rate in self.rates]

    @torch.no_grad()
    def favour_first_rate(self, advantage: float) -> None:
        """Let a new layer's attention start at the first rate, at every voxel; the others share about K e^-advantage.

        With rate 1 first and the weight and bias of an ordinary convolution, the layer starts as that convolution. The
        attention learns the slower the larger the advantage: its gradient shrinks with the others' share.
        """
        last: Any = self.attention[2]
        last.bias.zero_()
        last.bias[0] = advantage

    def forward(self, x: torch.Tensor, norm: nn.Module | None = None) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`.

        Args:
            x: the input.
            norm: batch norm to apply to the result. What is between the two then need not be kept for the backward
                pass, as it must be for a norm that comes later.
        """
        *layers, softmax = self.attention
        scores = x.detach() if self.detach_attention else x
        for layer in layers:
            scores = layer(scores)
        form = self.form or ("shared" if len(self.rates) > 1 else "plain")

        # With the softmax: autocast makes it float32, and what is kept of it would have twice the bytes of the scores.
        def focus(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            # On the CPU as on a GPU.
            maps = softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)))
            y = self._focus(x, maps, form)
            return y if norm is None else norm(y)

        # The fused form by itself keeps nothing that could be computed again.
        if form == "plain" or (form == "fused" and norm is None):
            return focus(x, scores)
        return recompute(focus, x, scores, norms=[*self.norms, *([] if norm is None else [norm])])

    def _focus(self, x: torch.Tensor, maps: torch.Tensor, form: str) -> torch.Tensor:
        """Sum the convolutions of all rates, weighted by the attention `(N, K, *size)`."""
        if form == "fused":
            from nnunet_plugins.networks.layers.fused_autofocus import fused_autofocus

            out = fused_autofocus(x, self.weight, maps, self.rates)
        else:
            ys = self._convolve(x, form)
            if self.norms:
                if self.bias is not None:
                    ys = [ys[0] + self._bias_like(ys[0]), *ys[1:]]
                ys = [norm(y) for norm, y in zip(self.norms, ys, strict=True)]
            # Softmax leaves autocast in full precision; the features need not follow it there.
            shares = maps.to(ys[0].dtype).split(1, dim=1)
            out = ys[0] * shares[0]
            for y, share in zip(ys[1:], shares[1:], strict=True):
                out = torch.addcmul(out, y, share)
        # Because the attention sums to one, a bias in every branch is one bias after the sum.
        if self.bias is not None and not self.norms:
            out = out + self._bias_like(out)
        # The other layers go on in the layout of the input, and not in the one that the sum was made in.
        layout = CHANNELS_LAST[x.dim() - 2]
        return out if x.is_contiguous(memory_format=layout) else out.contiguous()

    def _convolve(self, x: torch.Tensor, form: str) -> list[torch.Tensor]:
        """Return `(N, out, *size)` for every rate, without bias."""
        if form == "shared" and device_type(x) == "cpu":
            return shared_convolution(x, self.weight, self.rates)
        convolve = _CONVOLVE[len(self.kernel_size)]
        return [
            convolve(x, self.weight, padding=same_padding(self.kernel_size, rate), dilation=rate) for rate in self.rates
        ]

    def _bias_like(self, y: torch.Tensor) -> torch.Tensor:
        assert self.bias is not None
        return self.bias.to(y.dtype).view(1, -1, *(1 for _ in self.kernel_size))

    def extra_repr(self) -> str:
        """Show what the printed module needs beyond its children."""
        out_channels, in_channels = self.weight.shape[:2]
        return f"{in_channels}, {out_channels}, kernel_size={self.kernel_size}, rates={self.rates}"

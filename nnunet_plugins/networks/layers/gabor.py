"""Real Gabor layers of coordinate networks: a wave in a window.

Source: Saragadam et al. 2023, "WIRE: Wavelet Implicit Neural Representations" (arXiv:2301.05187), Eq. 2, with real
weights and two linear maps.
"""

import torch
from torch import nn
from torch.nn import functional


class GaborLayer(nn.Module):
    """`cos(w (A x + a)) exp(-(s (B x + b))^2)`.

    Args:
        in_features: of each point.
        out_features: of each point.
        frequency: w, of the wave.
        scale: s; the larger, the narrower the window.
    """

    def __init__(self, in_features: int, out_features: int, frequency: float, scale: float) -> None:
        super().__init__()
        self.wave = nn.Linear(in_features, out_features)
        self.window = nn.Linear(in_features, out_features)
        self.frequency, self.scale = frequency, scale

    def forward(self, x: torch.Tensor, code: torch.Tensor | None = None) -> torch.Tensor:
        """Map points `(B, n, in)`, or `(B, n, in - k)` with a code that its points share, `(B, 1, k)`."""
        wave, window = (_linear(layer, x, code) for layer in (self.wave, self.window))
        return torch.cos(self.frequency * wave) * torch.exp(-((self.scale * window) ** 2))


def _linear(layer: nn.Linear, x: torch.Tensor, code: torch.Tensor | None) -> torch.Tensor:
    if code is None:
        return layer(x)
    # What is the same for all points is multiplied once.
    own = x.shape[-1]
    rest = functional.linear(code, layer.weight[:, own:], layer.bias)
    return functional.linear(x, layer.weight[:, :own]) + rest

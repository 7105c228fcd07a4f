"""A picture of one patch: image, truth and prediction. Knows nothing of nnU-Net."""

import numpy as np
import torch
from numpy.typing import NDArray

# Okabe and Ito's, which the colour-blind tell apart; after the last label they begin again.
_COLOURS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)], float
)
_GAP = 4  # pixels between the parts of a picture
_WIDTH = 256  # of a part; a smaller patch is drawn larger, in whole steps


def to_labels(channels: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """Make labels `size` of logits, or of a target's regions, `(channels, *size)`; of regions the last one is seen."""
    if not regions:
        return channels.argmax(0)
    numbers = torch.arange(1, len(channels) + 1, device=channels.device).view(-1, *[1] * (channels.dim() - 1))
    return ((channels > 0) * numbers).amax(0)


def draw_patch(image: NDArray, truth: NDArray, prediction: NDArray) -> NDArray[np.uint8]:
    """Draw the slice of a patch with most of the truth: every channel, then truth and prediction over the first.

    Args:
        image: `(channels, *size)`, in 2D or 3D.
        truth: labels `size`, 0 for the background.
        prediction: likewise.

    Returns:
        `(height, width, 3)`.
    """
    if truth.ndim == 3:
        place = int((truth > 0).sum((1, 2)).argmax()) if (truth > 0).any() else len(truth) // 2
        image, truth, prediction = image[:, place], truth[place], prediction[place]
    greys = [_grey(channel) for channel in image]
    step = max(1, round(_WIDTH / max(truth.shape)))
    parts = [*greys, _over(greys[0], truth), _over(greys[0], prediction)]
    parts = [part.repeat(step, axis=0).repeat(step, axis=1) for part in parts]
    gap = np.full((parts[0].shape[0], _GAP, 3), 255.0)
    row = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(row, axis=1).round().astype(np.uint8)


def _grey(channel: NDArray) -> NDArray:
    values = np.nan_to_num(channel.astype(float), posinf=0, neginf=0)
    low, high = np.percentile(values, (1, 99))
    scaled = ((values - low) / (high - low or 1)).clip(0, 1) * 255
    return scaled[..., None].repeat(3, axis=-1)


def _over(grey: NDArray, labels: NDArray) -> NDArray:
    colours = _COLOURS[(labels.astype(int) - 1) % len(_COLOURS)]
    return np.where((labels > 0)[..., None], 0.4 * grey + 0.6 * colours, grey)

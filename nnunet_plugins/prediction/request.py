"""What is asked of a prediction."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """How to predict.

    Attributes:
        whole_volume: one of `arguments.WHOLE_VOLUME`; None for tiles.
        most_bytes: that a pass may take, for "auto".
        mirroring: average over mirrored images, along the axes that the training allows.
        step: of the tiles, as a fraction of the patch.
        probabilities: save them, as nnU-Net does.
        previous: folder with the predictions of a cascade's first stage.
        keep_finished: leave out cases whose prediction is there.
        verified: number of cases to predict once more with nnU-Net's own command.
        engine: one of `arguments.ENGINES`; None for PyTorch.
        onnx: files for it, one per fold; nothing for those beside the checkpoints.
    """

    whole_volume: str | None = None
    most_bytes: int | None = None
    mirroring: bool = True
    step: float = 0.5
    probabilities: bool = False
    previous: Path | None = None
    keep_finished: bool = False
    verified: int = 0
    engine: str | None = None
    onnx: tuple[Path, ...] = ()

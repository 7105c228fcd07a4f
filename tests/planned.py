"""A dataset in nnUNet_preprocessed, made up file by file: what planning, preprocessing and splitting leave there."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_plugins.planning.setting import patch_setting
from nnunet_plugins.planning.stages import plan_stages


@dataclass
class Planned:
    """A dataset as nnU-Net's planner leaves it; the steps before and after are made as they are called."""

    folder: Path
    transpose_forward: Sequence[int]

    def describe(self, **more: object) -> None:
        """Write dataset.json."""
        description = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "outer": 1, "inner": 2},
            "file_ending": ".nii.gz",
        }
        (self.folder / "dataset.json").write_text(json.dumps({**description, **more}))

    def plan(self, patch: Sequence[int], spacing: Sequence[float], batch: int = 9, **more: object) -> dict:
        """Write nnUNetPlans with a narrow U-Net, 2d or 3d_fullres; return them as they are read."""
        setting = patch_setting((16,) * len(patch), batch, 1, 2)
        configuration = {
            **setting.configuration.configuration,
            **{"spacing": list(spacing), "data_identifier": "data", "batch_dice": True, **more},
        }
        stages = plan_stages(spacing, patch)
        assert stages.patch == tuple(patch)
        number = len(stages.strides)
        configuration["architecture"]["arch_kwargs"].update(
            n_stages=number,
            strides=stages.strides,
            kernel_sizes=stages.kernels,
            features_per_stage=[4 * 2**stage for stage in range(number)],
            n_conv_per_stage=[1] * number,
            n_conv_per_stage_decoder=[1] * (number - 1),
        )
        configuration["patch_size"] = list(patch)
        plans = {
            "dataset_name": self.folder.name,
            "plans_name": "nnUNetPlans",
            "transpose_forward": list(self.transpose_forward),
            "transpose_backward": np.argsort(self.transpose_forward).tolist(),
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "configurations": {"3d_fullres" if len(patch) == 3 else "2d": configuration},
        }
        (self.folder / "nnUNetPlans.json").write_text(json.dumps(plans))
        return self.read("nnUNetPlans")

    def fingerprint(self, *images: tuple[tuple[int, ...], tuple[float, ...]]) -> None:
        """Write the sizes of cropped images, voxels and mm, along their own axes."""
        shapes, spacings = zip(*images, strict=True)
        content = {"shapes_after_crop": shapes, "spacings": spacings}
        (self.folder / "dataset_fingerprint.json").write_text(json.dumps(content))

    def preprocess(self, case: str, segmentation: np.ndarray) -> None:
        """Write the preprocessed data of a case, and an empty file for its truth."""
        for folder in ("data", "gt_segmentations"):
            (self.folder / folder).mkdir(exist_ok=True)
        (self.folder / "gt_segmentations" / f"{case}.nii.gz").touch()
        for file in (self.folder / "data").glob(f"{case}*"):
            file.unlink()  # its format is not written over a file
        arrays = np.zeros((1, *segmentation.shape), np.float32), segmentation[None].astype(np.int8)
        sizes = {"chunks": (1, *segmentation.shape), "blocks": (1, *segmentation.shape)}
        nnUNetDatasetBlosc2.save_case(*arrays, {}, str(self.folder / "data" / case), **sizes)

    def split(self, *folds: tuple[list[str], list[str]]) -> None:
        """Write splits: of each fold the training and the validation cases."""
        splits = [{"train": train, "val": validation} for train, validation in folds]
        (self.folder / "splits_final.json").write_text(json.dumps(splits))

    def read(self, name: str) -> dict:
        """Return the plans of a name."""
        return json.loads((self.folder / f"{name}.json").read_text())


def make_planned(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, transpose_forward: Sequence[int] = (0, 1, 2), **description: object
) -> Planned:
    """Make a dataset in folders of its own, which nnU-Net's variables then name."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(root / name))
    planned = Planned(root / "nnUNet_preprocessed" / "Dataset001_Small", transpose_forward)
    planned.folder.mkdir(parents=True)
    planned.describe(**description)
    return planned

"""nnU-Net's trainer, which splits its cases safely: what nnU-Net takes for granted is checked first."""

import tempfile
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_plugins.datasets.sources import find_description
from nnunet_plugins.datasets.split_commands import NNUNET_FOLDS, fitting_folds, split_command
from nnunet_plugins.files import read_json


def require_splits(file: Path, data: Path, fold: int) -> None:
    """Check that a fold can be had: from the file of splits, or from nnU-Net, which makes it.

    Args:
        file: where nnU-Net reads the splits, in the dataset's preprocessed folder.
        data: folder with the preprocessed cases of the training's configuration.
        fold: to train.

    Raises:
        RuntimeError: if there are too few cases, or none of those that the splits name, with the remedy.
        InputError: if the file holds something else than splits.
    """
    cases = {properties.stem for properties in data.glob("*.pkl")}
    dataset = file.parent.name
    if not cases:
        raise RuntimeError(f"nnunet_plugins: no preprocessed case in {data}; run nnUNetv2_preprocess")
    if not file.exists():
        if len(cases) < NNUNET_FOLDS:
            number = f"{len(cases)} case{'s' * (len(cases) > 1)}"
            few = f"{number} in {data}, which nnU-Net cannot split into {NNUNET_FOLDS} folds"
            folds = fitting_folds({case: case for case in cases}, find_description(dataset, file.parents[1])[0])
            remedy = f"make splits that fit: {split_command(dataset, folds)}"
            if len(cases) == 1:
                remedy = "add cases, or train on all of them, fold 'all'"
            raise RuntimeError(f"nnunet_plugins: {few}; {remedy}")
        return
    splits = read_json(file, [{"train": [str], "val": [str]}])
    named = {case for part in splits[fold].values() for case in part} if fold < len(splits) else set()
    if missing := sorted(named - cases):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RuntimeError(
            f"nnunet_plugins: fold {fold} in {file} names {missing[0]}{more}, and {data} has no data of that; "
            f"nnunet-plugins doctor -d {dataset} says what to do"
        )


class SplittingTrainer(nnUNetTrainer):
    """nnU-Net's trainer, of which many may start at the same moment; nothing else about it differs."""

    preprocessed_dataset_folder: str
    preprocessed_dataset_folder_base: str

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the cases to train on and to validate on, as nnU-Net does; its file of splits appears complete.

        Several processes of a training, or several folds, may start at the same moment, when there is none yet.
        """
        file = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
        if self.fold != "all":
            require_splits(file, Path(self.preprocessed_dataset_folder), self.fold)
        if self.fold == "all" or file.exists():
            return super().do_split()
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f"{file.stem}.") as folder:
            self.preprocessed_dataset_folder_base = folder
            try:
                cases = super().do_split()
            finally:
                self.preprocessed_dataset_folder_base = str(file.parent)
            Path(folder, file.name).replace(file)
        return cases

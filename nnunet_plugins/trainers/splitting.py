"""What has to be so for nnU-Net to split the cases of a training, which it takes for granted."""

from pathlib import Path

from nnunet_plugins.files import read_json

_FOLDS = 5  # that nnU-Net makes when it finds no splits


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
        if len(cases) < _FOLDS:
            few = f"{len(cases)} case{'s' * (len(cases) > 1)} in {data}, which nnU-Net cannot split into {_FOLDS} folds"
            remedy = f"make splits that fit: nnunet-plugins split -d {dataset} --folds {len(cases)}"
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

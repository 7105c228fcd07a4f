"""The one table of what a trainer's name may add, as in `nnUNetTrainerFIRENet_100epochs`. Rows of strings, too.

A new modifier is a new row; what it says stands in `rows.Modifier`.
"""

from types import MappingProxyType

from nnunet_plugins.rows import Modifier

_TRAINERS = "nnunet_plugins.trainers"
_VARIANTS = "nnunetv2.training.nnUNetTrainer.variants"

PRETRAINED = "Pretrained"
"""Modifier of trainings that start from the weights of another one."""

# The order is the order in which the pieces override each other, whatever the order in the name: NoMirroring has to
# come before DA5, which chooses mirror axes of its own.
MODIFIERS: tuple[Modifier, ...] = (
    Modifier("<N>epochs", "epochs", "train for N epochs", scales=MappingProxyType({"num_epochs": 1})),
    Modifier(
        "<N>iterations",
        "iterations",
        "N training iterations per epoch; validation iterations scale along, N/5 as in nnU-Net",
        scales=MappingProxyType({"num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 0.2}),
    ),
    Modifier(
        "<N>seed",
        "seed",
        "random numbers from the seed N on, so that repeats lie side by side, each with a seed of its own",
        f"{_TRAINERS}.seeded.SeededTrainer",
        scales=MappingProxyType({"seed": 1}),
    ),
    Modifier(
        "NoMirroring",
        "mirroring",
        "no mirroring, neither in training nor at inference",
        f"{_TRAINERS}.mirroring.NoMirroringTrainer",
    ),
    Modifier(
        "DA5",
        "augmentation",
        "nnU-Net's stronger augmentation",
        f"{_VARIANTS}.data_augmentation.nnUNetTrainerDA5.nnUNetTrainerDA5",
        unsupported=("networks that are fitted to every image",),  # it moves what they learn the place of
    ),
    Modifier(
        "CELoss",
        "loss",
        "cross-entropy alone",
        f"{_TRAINERS}.losses.CELossTrainer",
        unsupported=("regions",),
    ),
    Modifier(
        "DiceLoss",
        "loss",
        "soft Dice alone",
        f"{_VARIANTS}.loss.nnUNetTrainerDiceLoss.nnUNetTrainerDiceLoss",
        unsupported=("an ignore label",),
    ),
    Modifier("FocalLoss", "loss", "focal loss (gamma 2) alone", f"{_TRAINERS}.losses.FocalLossTrainer"),
    Modifier(
        "WeightedCELoss",
        "loss",
        "cross-entropy alone, each class weighted inversely to its frequency in the training cases",
        f"{_TRAINERS}.class_weights.WeightedCELossTrainer",
        unsupported=("regions",),
    ),
    Modifier(
        "<N>percentCELoss",
        "loss",
        "N % cross-entropy and the rest soft Dice; N is from 1 to 99, and 50 is nnU-Net's own loss",
        f"{_TRAINERS}.losses.PercentCELossTrainer",
        scales=MappingProxyType({"cross_entropy_percent": 1}),
        most=99,
    ),
    *(
        Modifier(name, "loss", summary, f"{_TRAINERS}.losses.{name}Trainer", unsupported=("regions",))
        for name, summary in (
            ("TopKLoss", "cross-entropy of the 10 % of the voxels where it is largest, alone"),
            ("DiceTopKLoss", "soft Dice, and cross-entropy of the 10 % of the voxels where it is largest"),
        )
    ),
    Modifier(
        "Adam",
        "optimizer",
        "nnU-Net's AdamW in place of SGD",
        f"{_VARIANTS}.optimizer.nnUNetTrainerAdam.nnUNetTrainerAdam",
    ),
    *(
        Modifier(
            name,
            "labels",
            f"of a merged dataset, each case on the labels of its own dataset alone; {drawn}",
            f"{_TRAINERS}.partial.{name}Trainer",
            unsupported=("networks that are fitted to every image",),
        )
        for name, drawn in (
            ("PartialLabels", "datasets are drawn in turn"),
            ("PartialLabelsByCases", "cases are drawn equally often"),
        )
    ),
    Modifier(
        PRETRAINED,
        "start",
        "from other weights (`-pretrained_weights`), in a results folder of its own; refuses to start without",
        f"{_TRAINERS}.pretrained.PretrainedTrainer",
    ),
)

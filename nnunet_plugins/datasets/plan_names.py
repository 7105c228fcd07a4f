"""Names of plans. Loads nothing heavy."""

from collections.abc import Iterable

from nnunet_plugins.rows import STOCK_TRAINER


def fitted_plans_name(like: str, trainer: str, gpu_memory: float) -> str:
    """Return the name of plans that were made to fit: nnUNetPlans_AFN6_24GB.

    Args:
        like: the plans they were made from.
        trainer: the trainer's name; modifiers do not change the network.
        gpu_memory: in GiB.
    """
    network = trainer.split("_")[0].removeprefix(STOCK_TRAINER) or "UNet"
    return f"{like}_{network}_{gpu_memory:g}GB"


def fitting_commands(
    dataset: str, configuration: str, trainer: str, plans: str, memory: float, *, fold: str = "0", on_cpu: bool = False
) -> list[str]:
    """Return the commands that make plans for a device with less memory than these need, and train with them.

    Args:
        dataset: number or name.
        configuration: nnU-Net's, such as 3d_fullres.
        trainer: its name.
        plans: those that do not fit.
        memory: of the device, in GiB.
        fold: to train.
        on_cpu: whether the device is the CPU.
    """
    size = f"{memory:.3g}"
    fitted = fitted_plans_name(plans, trainer, float(size))
    plan = f"nnunet-plugins plan -d {dataset} -c {configuration} -tr {trainer} --gpu-memory {size} --like {plans}"
    train = f"nnUNetv2_train {dataset} {configuration} {fold} -tr {trainer} -p {fitted}"
    return [plan + " --cpu" * on_cpu, train + " -device cpu" * on_cpu]


def preprocessing_command(dataset: str, plans: str, configurations: Iterable[str]) -> str:
    """Return the command that preprocesses configurations of plans.

    Args:
        dataset: full name.
        plans: their name.
        configurations: names.
    """
    number = int(dataset.removeprefix("Dataset")[:3])  # the command takes no name
    return f"nnUNetv2_preprocess -d {number} -plans_name {plans} -c {' '.join(configurations)}"


NORMALISATIONS = (
    "CTNormalization",
    "NoNormalization",
    "ZScoreNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
"""nnU-Net's normalisations, by the names that plans have."""

_NORMALISATION = "Normalization"


def find_normalisation(name: str) -> str | None:
    """Return the full name of a normalisation given in any case, with or without its ending; None if there is none."""
    full = {one.casefold(): one for one in NORMALISATIONS}
    return full.get(name.casefold()) or full.get(f"{name}{_NORMALISATION}".casefold())


def normalised_plans_name(like: str, scheme: str, channels: Iterable[int] = ()) -> str:
    """Return the name of plans that normalise otherwise: nnUNetPlans_RescaleTo01, nnUNetPlans_CT_channel2.

    Args:
        like: the plans they were made from.
        scheme: one of `NORMALISATIONS`.
        channels: those that it is for; none for all.
    """
    return "_".join([like, short_normalisation(scheme), *(f"channel{channel}" for channel in channels)])


def short_normalisation(scheme: str) -> str:
    """Return the name of a normalisation without its ending."""
    return scheme.removesuffix(_NORMALISATION)


COVERING = "cover"
"""What the names of covering plans and configurations end with."""


WHOLE_REMEDY = (
    "The patch has to hold every image and cannot be smaller; let a step draw fewer voxels, for MetaSeg and NISF by "
    "the option `voxels` of a variant of the trainer, or take a smaller network"
)
"""What to do where a step of a network that takes a patch for the whole needs more memory than there is."""


def covering_configuration(base: str) -> str:
    """Return the name of a configuration whose patch holds every image: 3d_cover, for 3d_fullres."""
    return f"{base.removesuffix('_fullres')}_{COVERING}"


def covering_command(dataset: str, plans: str) -> str:
    """Return the command that makes plans whose patch holds every image.

    Args:
        dataset: number or name.
        plans: those whose patch does not; covering plans, where larger images have come since, are made anew.
    """
    like = plans.removesuffix(f"_{COVERING}")
    return f"nnunet-plugins plan -d {dataset} --cover --like {like}" + " --overwrite" * (like != plans)


def moving_commands(source: str, target: str, plans: str, configuration: str) -> tuple[str, list[str]]:
    """Return the name of a dataset's plans in another one, and the commands that bring and use them there.

    Args:
        source: full name of the dataset that was planned.
        target: full name of the other one.
        plans: name.
        configuration: to preprocess.
    """
    moved = f"{plans}_from{int(source.removeprefix('Dataset')[:3])}"
    move = f"nnUNetv2_move_plans_between_datasets -s {source} -t {target} -sp {plans} -tp {moved}"
    return moved, [move, preprocessing_command(target, moved, [configuration])]

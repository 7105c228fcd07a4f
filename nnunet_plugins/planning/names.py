"""Names of plans. Loads nothing heavy."""

from nnunet_plugins.registry import STOCK_TRAINER


def fitted_plans_name(like: str, trainer: str, gpu_memory: float) -> str:
    """Return the name of plans that were made to fit: nnUNetPlans_AFN6_24GB.

    Args:
        like: the plans they were made from.
        trainer: the trainer's name; modifiers do not change the network.
        gpu_memory: in GiB.
    """
    network = trainer.split("_")[0].removeprefix(STOCK_TRAINER) or "UNet"
    return f"{like}_{network}_{gpu_memory:g}GB"

"""The one table of backbones and of trainer-name modifiers. Rows of strings: importing it loads nothing heavy.

The trainers, `nnunet-plugins list`, the docs' tables and the conformance tests all read it. A new network is a new row,
and a file in `networks`; what it has to keep to stands in `rows.Backbone`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from nnunet_plugins.rows import STOCK_TRAINER, Backbone, Modifier

FIRENET_PAPER = (
    "Liu et al. 2020, Fabric Image Representation Encoding Networks for Large-scale 3D Medical Image Analysis "
    "(arXiv:2006.15578)"
)
AUTOFOCUS_PAPER = "Qin et al. 2018, Autofocus Layer for Semantic Segmentation (arXiv:1805.08403)"

_NETWORKS = "nnunet_plugins.networks"
_FIRENET = f"{_NETWORKS}.firenet.FIRENet"
_AFNET = f"{_NETWORKS}.afnet.AFNet"
_TRAINERS = "nnunet_plugins.trainers"
_VARIANTS = "nnunetv2.training.nnUNetTrainer.variants"


def _autofocus_family() -> list[Backbone]:
    """One row per network of the autofocus paper under nnU-Net's recipe, then one each under the paper's."""
    networks: list[tuple[str, str, Mapping[str, object]]] = [
        ("AFNBasic", "BASIC: eight layers at full resolution, dilated by 2, no pooling", {}),
        *(
            (f"AFN{n}", f"AFN-{n}: autofocus in the last {n} of BASIC's eight layers", {"autofocus_layers": n})
            for n in range(1, 7)
        ),
        ("ASPPS", "ASPP-S: BASIC with parallel dilated convolutions, summed", {"aspp": "sum"}),
        ("ASPPC", "ASPP-C: BASIC with parallel dilated convolutions, concatenated", {"aspp": "concat"}),
        ("DeepMedic", "DeepMedic: two pathways, full and a third of the resolution", {"pathways": 2}),
    ]
    recipes = [("", "backbone.BackboneTrainer", ""), ("Paper", "afnet.AFNetPaperTrainer", "; the paper's recipe")]
    return [
        Backbone(
            trainer=f"{STOCK_TRAINER}{name}{suffix}",
            network=_AFNET,
            recipe=f"{_TRAINERS}.{recipe}",
            summary=summary + note,
            paper=AUTOFOCUS_PAPER,
            dimensions=(2, 3),
            twin=STOCK_TRAINER if name == "AFNBasic" else f"{STOCK_TRAINER}AFNBasic{suffix}",
            options=MappingProxyType(dict(options)),
        )
        for suffix, recipe, note in recipes
        for name, summary, options in networks
    ]


BACKBONES: tuple[Backbone, ...] = (
    Backbone(
        trainer="nnUNetTrainerFIRENet",
        network=_FIRENET,
        recipe=f"{_TRAINERS}.firenet.FIRENetTrainer",
        summary="FIRENet under nnU-Net's own recipe, without dropout; only its gates follow the paper's schedule",
        paper=FIRENET_PAPER,
        dimensions=(2, 3),
        twin="nnUNetTrainerFIRENetNoFabric",
        options=MappingProxyType({"dropout": 0.0}),
    ),
    Backbone(
        trainer="nnUNetTrainerFIRENetPaper",
        network=_FIRENET,
        recipe=f"{_TRAINERS}.firenet.FIRENetPaperTrainer",
        summary="FIRENet under the paper's recipe: Adam, cross-entropy, dropout 0.5, spatial augmentation only",
        paper=FIRENET_PAPER,
        dimensions=(2, 3),
        twin="nnUNetTrainerFIRENetNoFabricPaper",
        options=MappingProxyType({"dropout": 0.5}),
    ),
    Backbone(
        trainer="nnUNetTrainerFIRENetNoFabric",
        network=_FIRENET,
        recipe=f"{_TRAINERS}.firenet.FIRENetTrainer",
        summary="FIRENet with the fabric replaced by as many parameters of plain residual units (ablation)",
        paper=FIRENET_PAPER,
        dimensions=(2, 3),
        twin=STOCK_TRAINER,
        options=MappingProxyType({"dropout": 0.0, "bottleneck": "residual"}),
    ),
    Backbone(
        trainer="nnUNetTrainerFIRENetNoFabricPaper",
        network=_FIRENET,
        recipe=f"{_TRAINERS}.firenet.FIRENetPaperTrainer",
        summary="FIRENet without its fabric, as above; the paper's recipe (ablation)",
        paper=FIRENET_PAPER,
        dimensions=(2, 3),
        twin=STOCK_TRAINER,
        options=MappingProxyType({"dropout": 0.5, "bottleneck": "residual"}),
    ),
    Backbone(
        trainer="nnUNetTrainerAutofocusUNet",
        network=f"{_NETWORKS}.autofocus_unet.AutofocusUNet",
        recipe=f"{_TRAINERS}.unet.UNetTrainer",
        summary="the plan's own U-Net with autofocus convolutions in its encoder from the third stage on",
        paper=AUTOFOCUS_PAPER,
        dimensions=(2, 3),
        twin=STOCK_TRAINER,
    ),
    Backbone(
        trainer="nnUNetTrainerASPP3DUNet",
        network=f"{_NETWORKS}.aspp3d_unet.ASPP3DUNet",
        recipe=f"{_TRAINERS}.unet.UNetTrainer",
        summary="the plan's own U-Net with ASPP3D and its image-level branch after the bottleneck",
        paper=FIRENET_PAPER,
        dimensions=(2, 3),
        twin="nnUNetTrainerASPP3DUNetPlain",
    ),
    Backbone(
        trainer="nnUNetTrainerASPP3DUNetPlain",
        network=f"{_NETWORKS}.aspp3d_unet.ASPP3DUNet",
        recipe=f"{_TRAINERS}.unet.UNetTrainer",
        summary="ASPP3DUNet without dilation and pooling: as many parameters in plain convolutions (ablation)",
        paper=FIRENET_PAPER,
        dimensions=(2, 3),
        twin=STOCK_TRAINER,
        options=MappingProxyType({"dilations": (1, 1, 1), "image_level": "pointwise"}),
    ),
    *_autofocus_family(),
)

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
    ),
    Modifier(
        "CELoss",
        "loss",
        "cross-entropy alone",
        f"{_VARIANTS}.loss.nnUNetTrainerCELoss.nnUNetTrainerCELoss",
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
        "Adam",
        "optimizer",
        "nnU-Net's AdamW in place of SGD",
        f"{_VARIANTS}.optimizer.nnUNetTrainerAdam.nnUNetTrainerAdam",
    ),
)

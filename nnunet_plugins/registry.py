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

UNET_PAPER = (
    "Ronneberger et al. 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation (arXiv:1505.04597)"
)
UNET3D_PAPER = (
    "Çiçek et al. 2016, 3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation (arXiv:1606.06650)"
)
ATTENTION_UNET_PAPER = "Oktay et al. 2018, Attention U-Net: Learning Where to Look for the Pancreas (arXiv:1804.03999)"
VNET_PAPER = (
    "Milletari et al. 2016, V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation "
    "(arXiv:1606.04797)"
)
SEGRESNET_PAPER = "Myronenko 2018, 3D MRI brain tumor segmentation using autoencoder regularization (arXiv:1810.11654)"
MEDNEXT_PAPER = (
    "Roy et al. 2023, MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation (arXiv:2303.09975)"
)
UNETPLUSPLUS_PAPER = (
    "Zhou et al. 2018, UNet++: A Nested U-Net Architecture for Medical Image Segmentation (arXiv:1807.10165)"
)
FCN_PAPER = "Long et al. 2015, Fully Convolutional Networks for Semantic Segmentation (arXiv:1411.4038)"

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


_Row = tuple[str, str, str, str, str, str, dict[str, object], dict[str, object]]
"""Name, network, what it is, paper, recipe under nnU-Net's name and under the paper's, options, narrow options."""


def _mednext() -> list[_Row]:
    wide, deep = (2, 3, 4, 4, 4, 4, 4, 3, 2), (3, 4, 4, 4, 4, 4, 4, 4, 3)
    largest, deepest = (3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3)
    sizes = {"S": ((2,) * 9, (2,) * 9), "B": ((2,) * 9, wide), "M": (deep, wide), "L": (deepest, largest)}
    narrow: dict[str, object] = {"width": 4, "blocks": (1,) * 7, "ratios": (2,) * 7}
    return [
        (
            f"MedNeXt{size}{'' if kernel == 3 else f'Kernel{kernel}'}",
            "mednext.MedNeXt",
            f"MedNeXt-{size} with kernel {kernel}",
            MEDNEXT_PAPER,
            "scales.ScalesTrainer",
            "rivals.MedNeXtPaperTrainer",
            {"kernel": kernel, "blocks": blocks, "ratios": ratios},
            narrow,
        )
        for size, (blocks, ratios) in sizes.items()
        for kernel in (3, 5)
    ]


def _classics() -> list[Backbone]:
    """One row per network that others are compared with, and a second where its paper's recipe is another.

    The narrow networks have one step more than the plans of the tests. Those of all MedNeXts of one kernel are the
    same, so that the tests build few of them.
    """
    unet, plain = "unet_classic.ClassicUNet", "backbone.BackboneTrainer"
    unet3d = {"features": (64, 128, 256, 512), "early_doubling": True, "norm": "batch", "up_bias": False}
    attention = {"upsampling": "linear", "norm": "batch", "gated": True, "side_outputs": True}
    small: dict[str, object] = {"features": (4, 4, 8, 8)}
    table: list[_Row] = [
        ("UNet2015", unet, "U-Net of 2015, without norm", UNET_PAPER, plain, "", {}, small),
        ("UNet3D", unet, "3D U-Net of 2016", UNET3D_PAPER, plain, "", unet3d, small),
        (
            "AttentionUNet",
            unet,
            "Attention U-Net: gates weigh its shortcuts",
            ATTENTION_UNET_PAPER,
            plain,
            "rivals.AttentionUNetPaperTrainer",
            {"features": (16, 32, 64, 128, 256), **attention},
            small,
        ),
        (
            "VNet",
            "vnet.VNet",
            "V-Net: residual stages of 5x5x5 convolutions",
            VNET_PAPER,
            plain,
            "rivals.VNetPaperTrainer",
            {},
            {"features": (2, 4, 4, 8), "convolutions": (1, 2, 1, 1, 1, 2, 1)},
        ),
        (
            "SegResNet",
            "segresnet.SegResNet",
            "SegResNet: a large residual encoder, group norm, a small decoder",
            SEGRESNET_PAPER,
            plain,
            "rivals.SegResNetPaperTrainer",
            {},
            {"width": 8, "blocks": (1, 1, 1, 1)},
        ),
        *_mednext(),
        (
            "UNetPlusPlus",
            "unetplusplus.UNetPlusPlus",
            "U-Net++: nodes between its paths, four outputs at full size",
            UNETPLUSPLUS_PAPER,
            "scales.EqualScalesTrainer",
            "rivals.UNetPlusPlusPaperTrainer",
            {},
            small,
        ),
        (
            "FCN8s",
            "fcn8s.FCN8s",
            "FCN-8s: VGG16 as a fully convolutional network, 2D only",
            FCN_PAPER,
            plain,
            "rivals.FCN8sPaperTrainer",
            {},
            {"features": (4, 4, 8, 8, 8), "hidden": 32},
        ),
    ]
    return [
        Backbone(
            trainer=f"{STOCK_TRAINER}{name}{suffix}",
            network=f"{_NETWORKS}.{network}",
            recipe=f"{_TRAINERS}.{recipe}",
            summary=summary + note,
            paper=paper,
            dimensions=(2,) if name == "FCN8s" else (2, 3),
            twin=f"{STOCK_TRAINER}{name.removesuffix('Kernel5')}{suffix}"
            if name.endswith("Kernel5")
            else STOCK_TRAINER,
            options=MappingProxyType(options),
            narrow=MappingProxyType(narrow),
        )
        for name, network, summary, paper, ours, theirs, options, narrow in table
        for suffix, recipe, note in (("", ours, ""), ("Paper", theirs, "; the paper's recipe"))
        if recipe
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
    *_classics(),
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

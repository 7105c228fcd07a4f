"""The one table of backbones. Rows of strings: importing it loads nothing heavy.

The trainers, `nnunet-plugins list`, the docs' tables and the conformance tests all read it. A new network is a new row,
and a file in `networks`; what it has to keep to stands in `rows.Backbone`. What a trainer's name may add to each of
them stands in `modifiers`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from nnunet_plugins.rows import STOCK_TRAINER, Backbone

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
METASEG_PAPER = (
    "Vyas et al. 2025, Fit Pixels, Get Labels: Meta-Learned Implicit Networks for Image Segmentation (arXiv:2510.04021)"
)
NISF_PAPER = "Stolt-Ansó et al. 2023, NISF: Neural Implicit Segmentation Functions (arXiv:2309.08643)"
FCN_PAPER = "Long et al. 2015, Fully Convolutional Networks for Semantic Segmentation (arXiv:1411.4038)"

_NETWORKS = "nnunet_plugins.networks"
_FIRENET = f"{_NETWORKS}.firenet.FIRENet"
_AFNET = f"{_NETWORKS}.afnet.AFNet"
_TRAINERS = "nnunet_plugins.trainers"


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


class _Classic(NamedTuple):
    """A network that others are compared with: a row under nnU-Net's recipe, and one under its paper's, if it differs.

    The narrow ones have one step more than the plans of the tests.
    """

    name: str
    network: str
    summary: str
    paper: str
    options: Mapping[str, object]
    narrow: Mapping[str, object]
    paper_recipe: str | None = None
    recipe: str = "backbone.BackboneTrainer"
    dimensions: tuple[int, ...] = (2, 3)
    twin: str | None = None

    def rows(self) -> list[Backbone]:
        recipes = [("", self.recipe, "")]
        if self.paper_recipe:
            recipes.append(("Paper", self.paper_recipe, "; the paper's recipe"))
        return [
            Backbone(
                trainer=f"{STOCK_TRAINER}{self.name}{suffix}",
                network=f"{_NETWORKS}.{self.network}",
                recipe=f"{_TRAINERS}.{recipe}",
                summary=self.summary + note,
                paper=self.paper,
                dimensions=self.dimensions,
                twin=f"{STOCK_TRAINER}{self.twin}{suffix}" if self.twin else STOCK_TRAINER,
                options=MappingProxyType(dict(self.options)),
                narrow=MappingProxyType(dict(self.narrow)),
            )
            for suffix, recipe, note in recipes
        ]


def _mednext() -> list[_Classic]:
    """S, B, M and L with both kernels. Narrow, all of one kernel are the same, so that the tests build few of them."""
    plain, wide, deep = (2,) * 9, (2, 3, 4, 4, 4, 4, 4, 3, 2), (3, 4, 4, 4, 4, 4, 4, 4, 3)
    large = (3, 4, 8, 8, 8, 8, 8, 4, 3)
    sizes = {"S": (plain, plain), "B": (plain, wide), "M": (deep, wide), "L": (large, large)}
    return [
        _Classic(
            f"MedNeXt{size}{suffix}",
            "mednext.MedNeXt",
            f"MedNeXt-{size} with kernel {kernel}",
            MEDNEXT_PAPER,
            {"kernel": kernel, "blocks": blocks, "ratios": ratios},
            {"width": 4, "blocks": (1,) * 7, "ratios": (2,) * 7},
            "rivals.MedNeXtPaperTrainer",
            "scales.ScalesTrainer",
            twin=f"MedNeXt{size}" if suffix else None,
        )
        for size, (blocks, ratios) in sizes.items()
        for kernel, suffix in ((3, ""), (5, "Kernel5"))
    ]


def _classics() -> list[Backbone]:
    unet, small = "unet_classic.ClassicUNet", {"features": (4, 4, 8, 8)}
    unet3d = {"features": (64, 128, 256, 512), "early_doubling": True, "norm": "batch", "up_bias": False}
    attention = {"upsampling": "linear", "norm": "batch", "gated": True, "side_outputs": True}
    networks = [
        _Classic("UNet2015", unet, "U-Net of 2015, without norm", UNET_PAPER, {}, small),
        _Classic("UNet3D", unet, "3D U-Net of 2016", UNET3D_PAPER, unet3d, small),
        _Classic(
            "AttentionUNet",
            unet,
            "Attention U-Net: gates weigh its shortcuts",
            ATTENTION_UNET_PAPER,
            {"features": (16, 32, 64, 128, 256), **attention},
            small,
            "rivals.AttentionUNetPaperTrainer",
        ),
        _Classic(
            "VNet",
            "vnet.VNet",
            "V-Net: residual stages of 5x5x5 convolutions",
            VNET_PAPER,
            {},
            {"features": (2, 4, 4, 8), "convolutions": (1, 2, 1, 1, 1, 2, 1)},
            "rivals.VNetPaperTrainer",
        ),
        _Classic(
            "SegResNet",
            "segresnet.SegResNet",
            "SegResNet: a large residual encoder, group norm, a small decoder",
            SEGRESNET_PAPER,
            {},
            {"width": 8, "blocks": (1, 1, 1, 1)},
            "rivals.SegResNetPaperTrainer",
        ),
        *_mednext(),
        _Classic(
            "UNetPlusPlus",
            "unetplusplus.UNetPlusPlus",
            "U-Net++: nodes between its paths, four outputs at full size",
            UNETPLUSPLUS_PAPER,
            {},
            small,
            "rivals.UNetPlusPlusPaperTrainer",
            "scales.EqualScalesTrainer",
        ),
        _Classic(
            "FCN8s",
            "fcn8s.FCN8s",
            "FCN-8s: VGG16 as a fully convolutional network",
            FCN_PAPER,
            {},
            {"features": (4, 4, 8, 8, 8), "hidden": 32},
            "rivals.FCN8sPaperTrainer",
            dimensions=(2,),
        ),
    ]
    return [row for network in networks for row in network.rows()]


def _implicit() -> list[Backbone]:
    """MetaSeg, what its paper compares it with, and NISF. Narrow, they draw few voxels and take few steps."""
    # The steps of training see what those at inference see, and as many of them.
    ours: dict[str, object] = {"width": 128, "hidden_layers": 2, "omega": 10.0}
    ours |= {"fit_learning_rate": 1e-3, "fit_epsilon": 1e-5}
    ours |= {"inner_loss": "image", "inner_steps": 4, "fit_steps": 4, "voxels": 1024, "fit_voxels": 4096}
    # Every second voxel along each axis, all of them.
    paper: dict[str, object] = {"fit_steps": 300, "background_weight": 0.1, "voxels": None, "every": 2}
    pixels: dict[str, object] = {"inner_loss": "image", "outer_loss": "image"}
    small: dict[str, object] = {"width": 8, "hidden_layers": 1, "voxels": 64, "fit_voxels": 64}
    small |= {"fit_steps": 2, "inner_steps": 2}
    fit = "MetaSeg: fitted to each image from"
    idea, only = f"{fit} learned weights", "which learn from images alone (ablation)"
    recipe, far = "; the paper's recipe", {**ours, "fit_steps": 100}
    rows: list[tuple[str, str, str, str, Mapping[str, object]]] = [
        ("MetaSeg", "metaseg.MetaSegTrainer", "MetaSegImageOnly", idea, ours),
        ("MetaSegPaper", "metaseg.MetaSegPaperTrainer", "MetaSegImageOnlyPaper", idea + recipe, paper),
        ("MetaSegImageOnly", "metaseg.MetaSegTrainer", "", f"{idea} {only}", {**ours, **pixels}),
        ("MetaSegImageOnlyPaper", "metaseg.MetaSegPaperTrainer", "", f"{idea} {only}{recipe}", {**paper, **pixels}),
        ("MetaSegRandomStart", "metaseg.MetaSegRandomStartTrainer", "", f"{fit} random weights (ablation)", far),
    ]
    metaseg = [
        Backbone(
            trainer=f"{STOCK_TRAINER}{name}",
            network=f"{_NETWORKS}.metaseg.MetaSeg",
            recipe=f"{_TRAINERS}.{trainer}",
            summary=summary,
            paper=METASEG_PAPER,
            dimensions=(2, 3),
            twin=f"{STOCK_TRAINER}{twin}",
            options=MappingProxyType(dict(options)),
            narrow=MappingProxyType(small),
            fitted=True,
        )
        for name, trainer, twin, summary, options in rows
    ]
    nisf = Backbone(
        trainer="nnUNetTrainerNISF",
        network=f"{_NETWORKS}.nisf.NISF",
        recipe=f"{_TRAINERS}.nisf.NISFTrainer",
        summary="NISF: one network for all images, a code fitted to each",
        paper=NISF_PAPER,
        dimensions=(2, 3),
        twin="nnUNetTrainerMetaSeg",
        options=MappingProxyType({"layers": 4, "frequency": 4.0, "scale": 4.0, "voxels": 1024}),
        narrow=MappingProxyType({"width": 8, "layers": 2, "voxels": 64, "fit_steps": 2}),
        fitted=True,
    )
    return [*metaseg, nisf]


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
    *_implicit(),
)

RIVALS: tuple[str, ...] = tuple(
    row.trainer
    for name in ("UNet3D", "VNet", "SegResNet", "MedNeXtB")
    for row in BACKBONES
    if row.trainer in (f"{STOCK_TRAINER}{name}", f"{STOCK_TRAINER}{name}Paper")
)
"""What a new network is usually asked to be compared with besides the standard U-Net; of MedNeXt the middle size.

Each stands there under nnU-Net's recipe and, where there is a row of it, its paper's: none should lose by its recipe.
"""

"""The papers' building blocks, one file each."""

from nnunet_plugins.networks.layers.aspp import ASPP3D
from nnunet_plugins.networks.layers.autofocus import AutofocusConv, record_attention
from nnunet_plugins.networks.layers.blocks import ConvBlock, ResidualUnit
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.layers.wrs import WRS

__all__ = ["ASPP3D", "ISE", "WRS", "AutofocusConv", "ConvBlock", "ResidualUnit", "record_attention"]

"""New backbones for nnU-Net v2, without a fork.

Importing this package is cheap and pulls in neither torch nor nnU-Net; see `nnunet_plugins.networks` for the
architectures and `nnunet_plugins.trainers` for their nnU-Net trainers.

PYTEST_DONT_REWRITE: this module is there before pytest, which would warn of that in every test run of the environment.
"""

__version__ = "0.2.0"

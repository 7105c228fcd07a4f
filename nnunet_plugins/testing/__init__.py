"""What every backbone must do, ours and anybody's, as ordinary pytest tests.

    pytest --pyargs nnunet_plugins.testing --backbone NAME
    nnunet-plugins check-backbone NAME

The extra `nnunet-plugins[testing]` brings pytest. A package's own tests take the very same ones with two lines:

    from mylab import BACKBONES as ROWS
    from nnunet_plugins.testing.test_backbone import *
"""

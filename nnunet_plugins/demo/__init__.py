"""The demo behind `nnunet-plugins demo`: nnU-Net's own commands, end to end, on a small phantom dataset."""

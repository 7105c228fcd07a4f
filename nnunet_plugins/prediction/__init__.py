"""`nnunet-plugins predict`: what nnU-Net's own prediction cannot do: labels at another spacing.

`grid.py` knows where voxels lie, `model.py` decodes labels there, `folder.py` takes all cases of a folder.
"""

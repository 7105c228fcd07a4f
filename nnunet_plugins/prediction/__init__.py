"""`nnunet-plugins predict`: nnU-Net's prediction, and what it cannot do: whole cases in one pass, other spacings.

`cases.py` takes all cases of a folder. `whole_volume.py` changes one method of nnU-Net's predictor, and `volumes.py`
predicts with either, as a `request.py` says. `resampling.py` resamples as nnU-Net does, `export.py` makes labels of
logits with it, `verification.py` compares them with nnU-Net's own. Labels at another spacing: `grid.py` knows
where voxels lie, `model.py` decodes labels there, `folder.py` writes them.
"""

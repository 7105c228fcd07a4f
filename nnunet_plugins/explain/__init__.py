"""`nnunet-plugins explain`: what a trained network does with an image, as maps in the image's own geometry.

    image -> preprocess -> windows (one, or tiles) -> maps beside the logits -> resample, undo crop and transposition

`model.py` loads a network and knows which maps it has, `windows.py` lets an image through it. A map is made by
`attention.py`, `gradcam.py`, `activations.py`, `receptive_field.py` or `gates.py`. `case.py` writes those of a case,
with pictures by `panels.py`; `folder.py` goes over all cases, and `page.py` puts them on a page.
"""

MAPS = ("attention", "gradcam", "activations", "erf", "gates")

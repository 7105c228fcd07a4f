"""Trained models and the images that they are given, for all that predicts with them.

sources.py       the trained networks in nnU-Net's results, and whether they belong together and can be used
settings.py      which models predict, from which files, and how
cases.py         the cases in a folder, as a platform lays them out
images.py        the image of a case as nnU-Net reads it, and its segmentation with the image's geometry
command_line.py  the options that name a model, and the model that they name
"""

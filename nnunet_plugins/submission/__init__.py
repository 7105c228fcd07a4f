"""From trained models to a folder that predicts by itself: in a challenge's container, or on any machine.

`export.py` writes the folder, `inference.py` runs in it, `check.py` proves it.
"""

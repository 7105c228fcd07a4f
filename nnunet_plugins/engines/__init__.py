"""Trained networks as ONNX files, for other engines than PyTorch: `nnunet-plugins export-onnx`, `predict --engine`.

    checkpoint -> export.py -> FILE.onnx, compared with PyTorch -> network.py, for nnU-Net's predictor

`origin.py` writes into a file of which model it is, and finds those of a model.
"""

"""Architectures as plain `torch.nn.Module`s. They know torch, not nnU-Net, and can be used without it."""

"""Starts of a training: weights of one network for another, for nnU-Net's `-pretrained_weights`.

warm_start.py    from a network of nnU-Net's plans to one that has more
vgg16.py         from torchvision's VGG16 to FCN-8s
command_line.py  options
"""

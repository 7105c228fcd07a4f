"""`nnunet-plugins doctor`: what is wrong, and what to do about it, before a job is queued. Nothing is changed.

findings.py       what a check says, and how it is printed
installation.py   without a dataset: packages, devices, discovery, commands, folders
dataset.py        dataset.json and the files of the raw dataset
images.py         reads every image and segmentation once, and keeps what the checks ask
cases.py          checks of each case
comparison.py     checks of all cases side by side
splits.py         splits_final.json
training.py       plans, preprocessed data, network, labels, memory of one training
start.py          weights to start from, against the network of one training
whole.py          images larger than the patch, for networks that take a patch for the whole
space.py          disk space
preflight.py      all checks of a dataset in their order
command_line.py   options
"""

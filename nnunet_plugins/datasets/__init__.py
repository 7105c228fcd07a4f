"""What lies in nnU-Net's folders of a dataset, what it is called, and what stands in it; for all rooms above.

folders.py       the dataset's folder, its plans and its dataset.json
plan_names.py    names of plans, of their configurations, and of the commands that make them
architecture.py  what plans say of a network
preprocessed.py  what preprocessing has left, and of which cases
sources.py       which dataset each case of a merged dataset, or of a twin, comes from
"""

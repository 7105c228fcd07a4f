"""Find, read, compare and check image files: the only place that does, so that all commands judge a case alike.

It returns facts. What each kind of fact means to each command stands in one table, `facts.KINDS`.

facts.py      what can be true of a file, and what that means to each command
finding.py    which files of a folder are used, and why the others are not
contents.py   what is in a file against what its header says, for every format
tiff.py       the same for TIFF
reading.py    files as nnU-Net's reader reads them, with the facts that it overlooks
pictures.py   files for people to look at
spacing.py    where the spacing of a file stands that does not hold it itself
grid.py       where the voxels of a file lie, and how two files differ in that
values.py     the values of a segmentation against those that dataset.json declares
writing.py    images in another format, or made anew
relabelling.py  segmentations with other values
resizing.py   images and segmentations of another size
"""

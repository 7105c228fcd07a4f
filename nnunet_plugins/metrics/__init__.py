"""How well a segmentation agrees with the truth: of two masks, of whole folders of files, and as a table of means."""

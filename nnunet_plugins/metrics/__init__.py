"""How well a segmentation agrees with the truth: `masks` compares two masks, `folders` whole folders of files, `table` sums
up the latter's table."""

"""Images with other intensities than they had, for training and for prediction alike."""

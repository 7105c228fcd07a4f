"""Images of one size out of images of many, and segmentations back to where these were."""

"""A whole benchmark on a small made-up dataset, in a folder of its own."""

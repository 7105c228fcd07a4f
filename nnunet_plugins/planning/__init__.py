"""How much memory a training step needs, and plans that fit a given GPU."""

"""Plans that fit a given GPU, hold every image, or normalise otherwise; splits; and what a network costs on a plan."""

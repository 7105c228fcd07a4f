"""The fair benchmark: one pipeline of stock nnU-Net commands for all networks, run as a graph of tasks.

`protocol` says what is compared, `tasks` which commands that takes, `engine` runs them, `equality` proves that the
trainings were equal, and `collect` writes the record that the report reads.
"""

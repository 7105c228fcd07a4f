"""A whole benchmark on a small made-up dataset: `phantom` makes the data, `command_line` runs it in a folder of its own."""

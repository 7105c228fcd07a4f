"""Raw datasets out of raw datasets: those that are there, and how a new one is made."""

"""A potential as C and weights: its file, compiled where it is used, with no torch in it."""

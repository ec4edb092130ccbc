"""A potential as C and weights: recorded, written, compiled where it is used, with no torch in it."""

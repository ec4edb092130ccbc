"""Models of other packages, read as data: nothing of their files is run."""

"""What the study of weak supervision compares with."""

"""An evaluation recorded as a list of operations, and written as one C function."""

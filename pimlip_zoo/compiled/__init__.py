"""What makes the package fast: C and GPU kernels, and whole models run as one program of them.

Nothing here knows an architecture. The package works without it, more slowly.
"""

"""Edges times the environment of their centre: its form with C and autograd, and triton."""

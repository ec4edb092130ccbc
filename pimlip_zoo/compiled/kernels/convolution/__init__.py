"""Neighbours times harmonics times radial weights, summed: its form, C, triton, plain torch, and autograd."""

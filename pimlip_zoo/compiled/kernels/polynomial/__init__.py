"""Polynomials of the features of an atom: their form with C and autograd, and triton."""

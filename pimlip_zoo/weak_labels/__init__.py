"""Weak labels: energies and forces from cheap physics, and the ways of learning from them."""

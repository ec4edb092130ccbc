"""pimlip-zoo: equivariant interatomic potentials that learn from physics where labels are sparse."""

__version__ = "0.1.0.dev0"

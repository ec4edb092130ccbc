"""GPU kernels of the same forms, generated as triton functions."""

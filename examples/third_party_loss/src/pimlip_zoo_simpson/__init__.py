"""One of each that a package can add: a residual, a displacement, a supervised loss, a recipe, a calculator."""

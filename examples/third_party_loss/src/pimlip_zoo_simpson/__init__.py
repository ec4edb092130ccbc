"""One of each that a package can add: losses, a displacement, recipes, a calculator, a property, a logger, and more."""

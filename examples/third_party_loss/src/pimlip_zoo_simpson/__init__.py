"""One of each that a package can add: losses, a displacement, recipes, a calculator, an acquisition, a property."""

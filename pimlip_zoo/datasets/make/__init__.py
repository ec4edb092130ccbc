"""How the built-in data sets are made; one module per set."""

"""The physics losses: how far energies and forces of a potential are from agreeing with each other."""

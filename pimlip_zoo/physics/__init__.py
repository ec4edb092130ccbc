"""What a potential says of matter: properties that are measured, one file each, from nothing but an ASE calculator."""

"""The architectures, and what makes a potential out of one."""

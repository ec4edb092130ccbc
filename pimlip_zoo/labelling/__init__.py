"""From structures to labels, and to the structures that are worth the next ones.

``label`` computes reference labels, ``select`` chooses the structures, ``uncertainty`` says how far a trained potential
can be trusted.
"""

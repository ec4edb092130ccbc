"""Physics-informed weak supervision for every potential."""

__all__ = ["PhysicsWeakMixin"]


class PhysicsWeakMixin:
    """Residuals of consistency losses on displaced copies; only calls ``self.forward``."""

"""Jaxprs: what a function computes, read from its trace."""

from jaxnn.jaxprs.compilation import compiled
from jaxnn.jaxprs.nesting import bodies, equations, has_forward_mode
from jaxnn.jaxprs.snapshots import Snapshot, fresh, snapshot

__all__ = ["Snapshot", "bodies", "compiled", "equations", "fresh", "has_forward_mode", "snapshot"]

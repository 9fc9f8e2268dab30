"""Jaxprs: what a function computes, read from its trace."""

from jaxnn.jaxprs.compilation import compiled
from jaxnn.jaxprs.snapshots import Snapshot, fresh, snapshot

__all__ = ["Snapshot", "compiled", "fresh", "snapshot"]

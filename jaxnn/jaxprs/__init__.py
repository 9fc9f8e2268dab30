"""Jaxprs: what a function computes, read from its trace."""

from jaxnn.jaxprs.snapshots import Snapshot, fresh, snapshot

__all__ = ["Snapshot", "fresh", "snapshot"]

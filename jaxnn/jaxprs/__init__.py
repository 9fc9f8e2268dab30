"""Jaxprs: what a function computes, read from its trace."""

from jaxnn.jaxprs.snapshots import Snapshot, snapshot

__all__ = ["Snapshot", "snapshot"]

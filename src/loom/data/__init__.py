"""Data objects: what tasks take and make, and how they become bytes."""

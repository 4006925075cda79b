"""Loom: define and run large pipelines of interconnected tasks on one machine or many."""

__version__ = "0.1.0"

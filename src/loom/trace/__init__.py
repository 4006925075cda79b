"""The trace: what server and workers write down while they run, and how it is read again."""

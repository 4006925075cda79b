"""The journal: one file from which a server that died starts again. Written, read, kept small."""

"""The commands: `loom`, and `loom-server` and `loom-worker` under the names HyperLoom's users know."""

"""Task types, one file a family: how a task is built, what its configuration means, how it runs."""

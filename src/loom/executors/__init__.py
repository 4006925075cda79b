"""Where tasks run outside the worker's loop: Python functions and large built-ins in processes, external programs."""

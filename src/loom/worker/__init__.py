"""The worker's shell: performs what `core.worker` decided, with a store of objects, executors, programs and peers."""

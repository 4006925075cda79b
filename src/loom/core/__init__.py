"""The deterministic brains: `step(events, now) -> effects`, without I/O, clock or chance."""

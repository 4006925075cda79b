"""Links between processes on an asyncio loop (plain or uvloop), and objects that travel over them."""

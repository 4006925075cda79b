"""What goes over a socket: framing, codec, handshake, key. Nothing here does I/O except reading the key file."""

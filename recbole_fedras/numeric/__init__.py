"""What has no subject of its own: random streams, threads, memory, flat networks."""

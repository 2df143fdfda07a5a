"""What travels: bit packing, payloads, and the channel that counts them."""

"""Secure aggregation: a server learns the sum of integers that clients have masked."""

#: Clients that must take part: a sum of two tells each of them the other's part.
FEWEST = 3

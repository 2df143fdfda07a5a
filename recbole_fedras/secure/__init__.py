"""Secure aggregation: a server learns the sum of integers that clients have masked."""

"""Attackers who infer, from what a client sends, what it has interacted with."""

"""The server's half of a round: it selects, aggregates and steps."""

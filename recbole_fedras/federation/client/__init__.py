"""The clients' half of a round: samples, local training, feedback."""

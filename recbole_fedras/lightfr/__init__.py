"""LightFR (TOIS 2023): binary codes, with a model, a wire format and an aggregator."""

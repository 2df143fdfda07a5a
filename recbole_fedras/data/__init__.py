"""Data: RecBole's dataset with exact times, clients' own interactions, samples."""

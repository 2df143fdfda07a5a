"""FedRAS (KDD 2025) and CE: k-means, splitting, and how actions travel."""

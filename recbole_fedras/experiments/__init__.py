"""Many runs: sweeps, comparisons, exhibits of papers, and what they measure."""

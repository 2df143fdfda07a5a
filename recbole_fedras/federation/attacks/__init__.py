"""What hostile clients send instead of what they have trained."""

"""What Flower loads: all else is in the installed package."""

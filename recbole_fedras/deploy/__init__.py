"""The same federation as real processes, on Flower; needs the extra ``deploy``."""

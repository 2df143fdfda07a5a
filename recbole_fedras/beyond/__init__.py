"""Beyond recommenders: any PyTorch model's update through any compressor."""

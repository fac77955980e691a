"""SegGPT (segmentation by example) in JAX: convert the PyTorch weights, fine-tune, segment."""

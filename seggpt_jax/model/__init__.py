"""The network: architecture, attention, parameters, weights on disk, conversion from PyTorch, and adapters."""

"""Benchmarks that compare speed, memory and quality. Run one with `python -m benchmarks.NAME`."""

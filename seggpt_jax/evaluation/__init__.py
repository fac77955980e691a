"""Benchmarks of the field and inspections: runs a predictor on datasets and writes tables, reports and pictures."""

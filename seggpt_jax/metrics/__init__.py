"""Scores of predicted labels, as pure functions of arrays."""

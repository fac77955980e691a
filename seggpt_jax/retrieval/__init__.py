"""Prompt retrieval: chooses labeled images as prompts by their likeness to a query."""

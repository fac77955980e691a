"""Prompt retrieval: chooses labeled images as prompts by their similarity to a query."""

"""Makes the packaged weights: families of drawn tasks, held-out families, and their evaluation. Not in the wheel."""

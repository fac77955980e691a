"""The predictor for other programs: one engine that owns it, and the HTTP service on top."""

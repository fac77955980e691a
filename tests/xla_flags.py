"""The flag with which tests compile."""

# XLA compiles in half the time when it does not optimize, and the tests' networks are too small to run any faster then.
QUICK = "--xla_backend_optimization_level=0"

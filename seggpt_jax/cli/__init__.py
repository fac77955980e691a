"""The `seggpt` command: one module for each subcommand, which parses flags and calls one function."""

"""The commands: they parse, call the stages, and print."""

"""The configuration: its keys, reading and checking it."""

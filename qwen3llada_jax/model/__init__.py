"""The network: its configuration, layers, attention, and who sees whom."""

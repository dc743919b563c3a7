"""The process and its neighbors: devices, signals, locks, versions."""

"""The same piece of work done our way and as others do it in PyTorch, each reading in a process of its own."""

"""What an engine (engine.py) does with a row that a request has, beside writing it."""

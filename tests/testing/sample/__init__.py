"""An application as its author would write it: `handlers.py` and `test_handlers.py` are what it has to look like."""

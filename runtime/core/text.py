"""Text from outside, fit to be shown."""


def one_line(text: str, most: int = 200) -> str:
    """`text` with nothing in it that ends the line, drives a terminal or cannot be written; cut off after `most`."""
    safe = text if text.isprintable() else ascii(text)[1:-1]
    return safe if len(safe) <= most else safe[:most] + "…"

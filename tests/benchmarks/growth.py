"""growth"""


def report(scale: float) -> str:
    return ""

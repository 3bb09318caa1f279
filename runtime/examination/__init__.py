"""What `runtime doctor` does, without printing: looks at settings, Redis, handlers and platform, and tells.

Seeing is here, a module for each subject; `runtime.core.diagnosis` decides. Everything has a deadline. Nothing is
changed: in Redis a key under `rt:try:` is written, and lives for a second.
"""

from runtime.examination.visit import Examination, examine

__all__ = ["Examination", "examine"]

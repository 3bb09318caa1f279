"""Decides what is wrong, from what was seen; `runtime.examination` sees it. Pure: a group of checks a module."""

"""Pure values and decisions: no await, no clock, no third-party library."""

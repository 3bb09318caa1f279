"""The worker without its surroundings: anyio, core and ports only."""

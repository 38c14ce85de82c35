"""The built-in world: scenes that can be drawn, described, read back and scored exactly."""

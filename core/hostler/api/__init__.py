"""The HTTP API on Falcon: one module per resource noun, no engine knowledge."""

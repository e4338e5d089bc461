"""Opening and closing ports, one module per driver; the bursts themselves are in ext."""

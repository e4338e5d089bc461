"""What can go wrong with a port before a packet moves."""


class PortError(RuntimeError):
    """A port cannot be opened as it is configured; the text names the interface and what mends it."""

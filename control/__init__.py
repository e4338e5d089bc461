"""The control plane: configuration, commands, IKE, and the kernel's news; no packet comes by here."""

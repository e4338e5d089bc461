"""What the control plane knows of the network around it: the mirror of the kernel's tables."""

"""The network around control: the mirror of the kernel's tables, sockets of IKE, TUN devices, the host's traffic."""

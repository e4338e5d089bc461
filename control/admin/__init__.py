"""How the outside watches and steers the running gateway: logs, service manager, status socket."""

"""`esplanade demo`: two gateways between a client and a server, in four network namespaces of this machine.

command.py   the command: kernel forwarding for comparison, then each driver, then the table
course.py    what is tried between whom: a tunnel or transport mode, by ESP or AH; and the pings along it
proof.py     one driver: pings and new keys on a tapped cable, then speed on the direct one
report.py    what a driver showed, whether that passes, and how it is told
"""

"""A network laboratory: client - gateway A - gateway B - server in network namespaces of one machine.

`space.py` makes namespaces and runs programs in them, `topology.py` wires them up, `wiretap.py` watches the
cable between the gateways, `traffic.py` drives ping and iperf3, `gateway.py` runs Esplanade itself. The demo,
the benchmarks and the tests stand on it. It needs root, and iproute2, util-linux, iputils-ping and iperf3.
"""

from control.lab.space import LabError, Program, Space, sweep
from control.lab.topology import Lab

__all__ = ["Lab", "LabError", "Program", "Space", "sweep"]

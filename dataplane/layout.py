"""The shared structs of ext/*.pxd as numpy dtypes: the same bytes, seen from Python.

Written by hand, so that a reader sees what there is; tests/dataplane/test_layout.py holds every size,
offset and kind against what the C compiler says (ext.layout). Numbers are in host order unless a name says
otherwise; byte strings (kind V) are as on the wire.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TABLES_MAGIC = 0x45535031
TABLES_VERSION = 2
NO_INDEX = 0xFFFFFFFF
ROUTE_KERNEL = 0xFFFFFFFE
SA_VERDICTS = 28
VERDICTS = 64
PORTS_MAX = 8
CACHE_LINE = 64
ACQUIRE_RING = 128 + 64 * 64  # bytes of an ext.sa.AcquireRing, which ext.acquire alone looks into

# ext.sa.SaFlag
SA_ESN = 1
SA_ENCAP = 2
SA_INBOUND = 4
SA_DF_COPY = 8
SA_DF_SET = 16
SA_DSCP_COPY = 32
SA_LIVE = 64
SA_MSS_CLAMP = 128

# ext.sa: in the `bundle` of an SA
BUNDLE_OUTER = 0xFFFFFFFF
BUNDLE_BROKEN = 0xFFFFFFFE

# ext.sa.Oversize
CUT_BEFORE = 0
CUT_AFTER = 1

Records = npt.NDArray[np.void]


SEQUENCE = np.dtype(
    [
        ("next", "<u8"),
        ("limit", "<u8"),
        ("iv_mask", "V16"),
        ("hard_limit", "<u8"),
        ("path_mtu", "<u2"),
        ("pad_to", "<u2"),
        ("oversize", "u1"),
        ("spare_oversize", "u1"),
        ("dummies", "<u2"),
        ("bundle", "<u4"),
        ("spare", "V12"),
    ]
)

HOT = np.dtype(
    [
        ("header", "V40"),
        ("encap_ports", "V4"),
        ("spi", "V4"),
        ("salt", "V4"),
        ("adjacency", "<u4"),
        ("inner_mtu", "<u2"),
        ("header_length", "u1"),
        ("flags", "u1"),
        ("suite", "u1"),
        ("iv_length", "u1"),
        ("icv_length", "u1"),
        ("align", "u1"),
    ]
)

PLAIN_SELECTOR = np.dtype(
    [
        ("source_high", "<u8"),
        ("source_low", "<u8"),
        ("destination_high", "<u8"),
        ("destination_low", "<u8"),
        ("source_prefix", "u1"),
        ("destination_prefix", "u1"),
        ("protocol", "u1"),
        ("family", "u1"),
        ("spare", "V4"),
    ]
)

INBOUND = np.dtype(
    [
        ("local_high", "<u8"),
        ("local_low", "<u8"),
        ("first_selector", "<u4"),
        ("selector_count", "<u4"),
        ("plain", PLAIN_SELECTOR),
    ]
)

KEY = np.dtype(
    [
        ("expanded", "V1024"),
        ("encryption", "V32"),
        ("integrity_key", "V64"),
        ("id", "<u8"),
        ("index", "<u4"),
        ("cipher", "u1"),
        ("integrity", "u1"),
        ("encryption_length", "u1"),
        ("integrity_length", "u1"),
        ("icv_length", "u1"),
        ("spare", "V15"),
    ]
)

REPLAY = np.dtype(
    [
        ("top", "<u8"),
        ("lock", "<u4"),
        ("window", "<u4"),
        ("bundle", "<u4"),
        ("spare", "V44"),
        ("blocks", "<u8", (128,)),
    ]
)

SOURCE = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("version", "<u4"),
        ("taken", "<u4"),
        ("port", "<u2"),
        ("spare", "V38"),
    ]
)

SA = np.dtype(
    [
        ("sequence", SEQUENCE),
        ("hot", HOT),
        ("inbound", INBOUND),
        ("key", KEY),
        ("replay", REPLAY),
        ("source", SOURCE),
    ]
)

SELECTOR = np.dtype(
    [
        ("source_first_high", "<u8"),
        ("source_first_low", "<u8"),
        ("source_last_high", "<u8"),
        ("source_last_low", "<u8"),
        ("destination_first_high", "<u8"),
        ("destination_first_low", "<u8"),
        ("destination_last_high", "<u8"),
        ("destination_last_low", "<u8"),
        ("source_port_first", "<u2"),
        ("source_port_last", "<u2"),
        ("destination_port_first", "<u2"),
        ("destination_port_last", "<u2"),
        ("family", "u1"),
        ("protocol", "u1"),
        ("spare", "V22"),
    ]
)

POLICY = np.dtype(
    [
        ("selector", SELECTOR),
        ("sa", "<u4"),
        ("slot", "<u4"),
        ("action", "u1"),
        ("half", "u1"),
        ("spare", "V22"),
    ]
)

ADJACENCY = np.dtype(
    [
        ("link_header", "V14"),
        ("link_length", "u1"),
        ("valid", "u1"),
        ("port", "<u2"),
        ("mtu", "<u2"),
        ("spare", "V12"),
    ]
)

LPM_SLOT = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("value", "<u4"),
        ("prefix", "u1"),
        ("family", "u1"),
        ("plain", "u1"),
        ("action", "u1"),
        ("source_high", "<u8"),
        ("source_low", "<u8"),
        ("source_prefix", "u1"),
        ("protocol", "u1"),
        ("spare", "V14"),
        ("sa", "<u4"),
        ("next", "<u4"),
    ]
)

LPM_HALF = np.dtype(
    {
        "names": [
            "slots_offset",
            "candidates_offset",
            "seed",
            "capacity",
            "candidates_capacity",
            "mask",
            "spare",
            "ipv4_count",
            "ipv6_count",
            "ipv4_prefixes",
            "ipv6_prefixes",
        ],
        "formats": [
            "<u8",
            "<u8",
            "<u8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "u1",
            "u1",
            ("u1", (33,)),
            ("u1", (129,)),
        ],
        "offsets": [0, 8, 16, 24, 28, 32, 36, 40, 41, 42, 75],
        "itemsize": 208,
    }
)

LPM_TABLE = np.dtype([("active", "<u4"), ("spare", "<u4"), ("halves", LPM_HALF, (2,))])

HEADER = np.dtype(
    [
        ("magic", "<u8"),
        ("version", "<u4"),
        ("engine", "<u4"),
        ("size", "<u8"),
        ("generation", "<u8"),
        ("max_sas", "<u4"),
        ("max_policies", "<u4"),
        ("max_selectors", "<u4"),
        ("max_adjacencies", "<u4"),
        ("max_routes", "<u4"),
        ("workers", "<u4"),
        ("spi_mask", "<u4"),
        ("sas_used", "<u4"),
        ("sas_offset", "<u8"),
        ("spis_offset", "<u8"),
        ("policies_offset", "<u8"),
        ("selectors_offset", "<u8"),
        ("adjacencies_offset", "<u8"),
        ("workers_offset", "<u8"),
        ("sa_counters_offset", "<u8"),
        ("acquires_offset", "<u8"),
        ("boot_id", "<u8"),
        ("spi_moves", "<u8"),
        ("spd", LPM_TABLE),
        ("routes", LPM_TABLE),
        ("dummy_sas", "<u8"),
    ]
)

PORT_COUNTERS = np.dtype(
    [
        (name, "<u8")
        for name in (
            "rx_packets",
            "rx_bytes",
            "tx_packets",
            "tx_bytes",
            "rx_syscalls",
            "tx_syscalls",
            "tx_full",
            "tx_errors",
        )
    ]
)

WORKER_COUNTERS = np.dtype(
    [
        ("seen_generation", "<u8"),
        ("loops", "<u8"),
        ("sleeps", "<u8"),
        ("heartbeat", "<u8"),
        ("pid", "<u8"),
        ("dealt", "<u8"),
        ("helped", "<u8"),
        ("moved", "<u8"),
        ("reserved", "V448"),
        ("verdicts", "<u8", (VERDICTS,)),
        ("ports", PORT_COUNTERS, (PORTS_MAX,)),
        ("tail", "V512"),
    ]
)

SA_COUNTERS = np.dtype(
    [
        ("packets", "<u8"),
        ("bytes", "<u8"),
        ("last_used", "<u8"),
        ("reserved", "<u8"),
        ("drops", "<u8", (SA_VERDICTS,)),
    ]
)

#: ext.sa.SA_SHARED and RESOURCES: a policy's SA has others of single workers beside it.
SA_SHARED = 0x80000000
RESOURCES = 16

#: struct name in ext/*.pxd -> dtype
DTYPES: dict[str, np.dtype[np.void]] = {
    "SaSequence": SEQUENCE,
    "SaHot": HOT,
    "SaInbound": INBOUND,
    "Key": KEY,
    "Replay": REPLAY,
    "SaSource": SOURCE,
    "Sa": SA,
    "PlainSelector": PLAIN_SELECTOR,
    "Selector": SELECTOR,
    "Policy": POLICY,
    "Adjacency": ADJACENCY,
    "LpmSlot": LPM_SLOT,
    "LpmHalf": LPM_HALF,
    "LpmTable": LPM_TABLE,
    "TablesHeader": HEADER,
    "PortCounters": PORT_COUNTERS,
    "WorkerCounters": WORKER_COUNTERS,
    "SaCounters": SA_COUNTERS,
}

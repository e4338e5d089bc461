"""What the C compiler made of the shared structs: a test holds numpy's dtypes to these sizes and offsets.

A kind is numpy's ("u1", "u2", "u4", "u8") or the name of another struct here. The test also asks that the
fields leave no hole, so one that is forgotten here is found.
"""

from libc.stddef cimport size_t

from ext.counters cimport PortCounters, SaCounters, WorkerCounters
from ext.crypto cimport Key
from ext.sa cimport (
    Adjacency, LpmHalf, LpmSlot, LpmTable, PlainSelector, Policy, Replay, Sa, SaHot, SaInbound, SaSequence, SaSource,
    Selector, TablesHeader,
)


cdef tuple at(const void *base, const void *field, size_t size, str kind):
    """(offset, size, kind) of one field."""
    return (<const char *>field - <const char *>base, size, kind)


cdef tuple key_layout():
    cdef Key x
    return sizeof(x), {
        "expanded": at(&x, x.expanded, sizeof(x.expanded), "u1"),
        "encryption": at(&x, x.encryption, sizeof(x.encryption), "u1"),
        "integrity_key": at(&x, x.integrity_key, sizeof(x.integrity_key), "u1"),
        "id": at(&x, &x.id, sizeof(x.id), "u8"),
        "index": at(&x, &x.index, sizeof(x.index), "u4"),
        "cipher": at(&x, &x.cipher, sizeof(x.cipher), "u1"),
        "integrity": at(&x, &x.integrity, sizeof(x.integrity), "u1"),
        "encryption_length": at(&x, &x.encryption_length, sizeof(x.encryption_length), "u1"),
        "integrity_length": at(&x, &x.integrity_length, sizeof(x.integrity_length), "u1"),
        "icv_length": at(&x, &x.icv_length, sizeof(x.icv_length), "u1"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
    }


cdef tuple sa_sequence_layout():
    cdef SaSequence x
    return sizeof(x), {
        "next": at(&x, &x.next, sizeof(x.next), "u8"),
        "limit": at(&x, &x.limit, sizeof(x.limit), "u8"),
        "iv_mask": at(&x, x.iv_mask, sizeof(x.iv_mask), "u1"),
        "hard_limit": at(&x, &x.hard_limit, sizeof(x.hard_limit), "u8"),
        "path_mtu": at(&x, &x.path_mtu, sizeof(x.path_mtu), "u2"),
        "pad_to": at(&x, &x.pad_to, sizeof(x.pad_to), "u2"),
        "oversize": at(&x, &x.oversize, sizeof(x.oversize), "u1"),
        "spare_oversize": at(&x, &x.spare_oversize, sizeof(x.spare_oversize), "u1"),
        "dummies": at(&x, &x.dummies, sizeof(x.dummies), "u2"),
        "bundle": at(&x, &x.bundle, sizeof(x.bundle), "u4"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
    }


cdef tuple sa_hot_layout():
    cdef SaHot x
    return sizeof(x), {
        "header": at(&x, x.header, sizeof(x.header), "u1"),
        "encap_ports": at(&x, x.encap_ports, sizeof(x.encap_ports), "u1"),
        "spi": at(&x, &x.spi, sizeof(x.spi), "u4"),
        "salt": at(&x, x.salt, sizeof(x.salt), "u1"),
        "adjacency": at(&x, &x.adjacency, sizeof(x.adjacency), "u4"),
        "inner_mtu": at(&x, &x.inner_mtu, sizeof(x.inner_mtu), "u2"),
        "header_length": at(&x, &x.header_length, sizeof(x.header_length), "u1"),
        "flags": at(&x, &x.flags, sizeof(x.flags), "u1"),
        "suite": at(&x, &x.suite, sizeof(x.suite), "u1"),
        "iv_length": at(&x, &x.iv_length, sizeof(x.iv_length), "u1"),
        "icv_length": at(&x, &x.icv_length, sizeof(x.icv_length), "u1"),
        "align": at(&x, &x.align, sizeof(x.align), "u1"),
    }


cdef tuple plain_selector_layout():
    cdef PlainSelector x
    return sizeof(x), {
        "source_high": at(&x, &x.source_high, sizeof(x.source_high), "u8"),
        "source_low": at(&x, &x.source_low, sizeof(x.source_low), "u8"),
        "destination_high": at(&x, &x.destination_high, sizeof(x.destination_high), "u8"),
        "destination_low": at(&x, &x.destination_low, sizeof(x.destination_low), "u8"),
        "source_prefix": at(&x, &x.source_prefix, sizeof(x.source_prefix), "u1"),
        "destination_prefix": at(&x, &x.destination_prefix, sizeof(x.destination_prefix), "u1"),
        "protocol": at(&x, &x.protocol, sizeof(x.protocol), "u1"),
        "family": at(&x, &x.family, sizeof(x.family), "u1"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
    }


cdef tuple sa_inbound_layout():
    cdef SaInbound x
    return sizeof(x), {
        "local_high": at(&x, &x.local_high, sizeof(x.local_high), "u8"),
        "local_low": at(&x, &x.local_low, sizeof(x.local_low), "u8"),
        "first_selector": at(&x, &x.first_selector, sizeof(x.first_selector), "u4"),
        "selector_count": at(&x, &x.selector_count, sizeof(x.selector_count), "u4"),
        "plain": at(&x, &x.plain, sizeof(x.plain), "PlainSelector"),
    }


cdef tuple replay_layout():
    cdef Replay x
    return sizeof(x), {
        "top": at(&x, &x.top, sizeof(x.top), "u8"),
        "lock": at(&x, &x.lock, sizeof(x.lock), "u4"),
        "window": at(&x, &x.window, sizeof(x.window), "u4"),
        "bundle": at(&x, &x.bundle, sizeof(x.bundle), "u4"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
        "blocks": at(&x, x.blocks, sizeof(x.blocks), "u8"),
    }


cdef tuple sa_source_layout():
    cdef SaSource x
    return sizeof(x), {
        "high": at(&x, &x.high, sizeof(x.high), "u8"),
        "low": at(&x, &x.low, sizeof(x.low), "u8"),
        "version": at(&x, &x.version, sizeof(x.version), "u4"),
        "taken": at(&x, &x.taken, sizeof(x.taken), "u4"),
        "port": at(&x, &x.port, sizeof(x.port), "u2"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
    }


cdef tuple sa_layout():
    cdef Sa x
    return sizeof(x), {
        "sequence": at(&x, &x.sequence, sizeof(x.sequence), "SaSequence"),
        "hot": at(&x, &x.hot, sizeof(x.hot), "SaHot"),
        "inbound": at(&x, &x.inbound, sizeof(x.inbound), "SaInbound"),
        "key": at(&x, &x.key, sizeof(x.key), "Key"),
        "replay": at(&x, &x.replay, sizeof(x.replay), "Replay"),
        "source": at(&x, &x.source, sizeof(x.source), "SaSource"),
    }


cdef tuple selector_layout():
    cdef Selector x
    return sizeof(x), {
        "source_first_high": at(&x, &x.source_first_high, sizeof(x.source_first_high), "u8"),
        "source_first_low": at(&x, &x.source_first_low, sizeof(x.source_first_low), "u8"),
        "source_last_high": at(&x, &x.source_last_high, sizeof(x.source_last_high), "u8"),
        "source_last_low": at(&x, &x.source_last_low, sizeof(x.source_last_low), "u8"),
        "destination_first_high": at(&x, &x.destination_first_high, sizeof(x.destination_first_high), "u8"),
        "destination_first_low": at(&x, &x.destination_first_low, sizeof(x.destination_first_low), "u8"),
        "destination_last_high": at(&x, &x.destination_last_high, sizeof(x.destination_last_high), "u8"),
        "destination_last_low": at(&x, &x.destination_last_low, sizeof(x.destination_last_low), "u8"),
        "source_port_first": at(&x, &x.source_port_first, sizeof(x.source_port_first), "u2"),
        "source_port_last": at(&x, &x.source_port_last, sizeof(x.source_port_last), "u2"),
        "destination_port_first": at(&x, &x.destination_port_first, sizeof(x.destination_port_first), "u2"),
        "destination_port_last": at(&x, &x.destination_port_last, sizeof(x.destination_port_last), "u2"),
        "family": at(&x, &x.family, sizeof(x.family), "u1"),
        "protocol": at(&x, &x.protocol, sizeof(x.protocol), "u1"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
    }


cdef tuple policy_layout():
    cdef Policy x
    return sizeof(x), {
        "selector": at(&x, &x.selector, sizeof(x.selector), "Selector"),
        "sa": at(&x, &x.sa, sizeof(x.sa), "u4"),
        "slot": at(&x, &x.slot, sizeof(x.slot), "u4"),
        "action": at(&x, &x.action, sizeof(x.action), "u1"),
        "half": at(&x, &x.half, sizeof(x.half), "u1"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
    }


cdef tuple adjacency_layout():
    cdef Adjacency x
    return sizeof(x), {
        "link_header": at(&x, x.link_header, sizeof(x.link_header), "u1"),
        "link_length": at(&x, &x.link_length, sizeof(x.link_length), "u1"),
        "valid": at(&x, &x.valid, sizeof(x.valid), "u1"),
        "port": at(&x, &x.port, sizeof(x.port), "u2"),
        "mtu": at(&x, &x.mtu, sizeof(x.mtu), "u2"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
    }


cdef tuple lpm_slot_layout():
    cdef LpmSlot x
    return sizeof(x), {
        "high": at(&x, &x.high, sizeof(x.high), "u8"),
        "low": at(&x, &x.low, sizeof(x.low), "u8"),
        "value": at(&x, &x.value, sizeof(x.value), "u4"),
        "prefix": at(&x, &x.prefix, sizeof(x.prefix), "u1"),
        "family": at(&x, &x.family, sizeof(x.family), "u1"),
        "plain": at(&x, &x.plain, sizeof(x.plain), "u1"),
        "action": at(&x, &x.action, sizeof(x.action), "u1"),
        "source_high": at(&x, &x.source_high, sizeof(x.source_high), "u8"),
        "source_low": at(&x, &x.source_low, sizeof(x.source_low), "u8"),
        "source_prefix": at(&x, &x.source_prefix, sizeof(x.source_prefix), "u1"),
        "protocol": at(&x, &x.protocol, sizeof(x.protocol), "u1"),
        "spare": at(&x, x.spare, sizeof(x.spare), "u1"),
        "sa": at(&x, &x.sa, sizeof(x.sa), "u4"),
        "next": at(&x, &x.next, sizeof(x.next), "u4"),
    }


cdef tuple lpm_half_layout():
    cdef LpmHalf x
    return sizeof(x), {
        "slots_offset": at(&x, &x.slots_offset, sizeof(x.slots_offset), "u8"),
        "candidates_offset": at(&x, &x.candidates_offset, sizeof(x.candidates_offset), "u8"),
        "seed": at(&x, &x.seed, sizeof(x.seed), "u8"),
        "capacity": at(&x, &x.capacity, sizeof(x.capacity), "u4"),
        "candidates_capacity": at(&x, &x.candidates_capacity, sizeof(x.candidates_capacity), "u4"),
        "mask": at(&x, &x.mask, sizeof(x.mask), "u4"),
        "spare": at(&x, &x.spare, sizeof(x.spare), "u4"),
        "ipv4_count": at(&x, &x.ipv4_count, sizeof(x.ipv4_count), "u1"),
        "ipv6_count": at(&x, &x.ipv6_count, sizeof(x.ipv6_count), "u1"),
        "ipv4_prefixes": at(&x, x.ipv4_prefixes, sizeof(x.ipv4_prefixes), "u1"),
        "ipv6_prefixes": at(&x, x.ipv6_prefixes, sizeof(x.ipv6_prefixes), "u1"),
    }


cdef tuple lpm_table_layout():
    cdef LpmTable x
    return sizeof(x), {
        "active": at(&x, &x.active, sizeof(x.active), "u4"),
        "spare": at(&x, &x.spare, sizeof(x.spare), "u4"),
        "halves": at(&x, x.halves, sizeof(x.halves), "LpmHalf"),
    }


cdef tuple tables_header_layout():
    cdef TablesHeader x
    return sizeof(x), {
        "magic": at(&x, &x.magic, sizeof(x.magic), "u8"),
        "version": at(&x, &x.version, sizeof(x.version), "u4"),
        "engine": at(&x, &x.engine, sizeof(x.engine), "u4"),
        "size": at(&x, &x.size, sizeof(x.size), "u8"),
        "generation": at(&x, &x.generation, sizeof(x.generation), "u8"),
        "max_sas": at(&x, &x.max_sas, sizeof(x.max_sas), "u4"),
        "max_policies": at(&x, &x.max_policies, sizeof(x.max_policies), "u4"),
        "max_selectors": at(&x, &x.max_selectors, sizeof(x.max_selectors), "u4"),
        "max_adjacencies": at(&x, &x.max_adjacencies, sizeof(x.max_adjacencies), "u4"),
        "max_routes": at(&x, &x.max_routes, sizeof(x.max_routes), "u4"),
        "workers": at(&x, &x.workers, sizeof(x.workers), "u4"),
        "spi_mask": at(&x, &x.spi_mask, sizeof(x.spi_mask), "u4"),
        "sas_used": at(&x, &x.sas_used, sizeof(x.sas_used), "u4"),
        "sas_offset": at(&x, &x.sas_offset, sizeof(x.sas_offset), "u8"),
        "spis_offset": at(&x, &x.spis_offset, sizeof(x.spis_offset), "u8"),
        "policies_offset": at(&x, &x.policies_offset, sizeof(x.policies_offset), "u8"),
        "selectors_offset": at(&x, &x.selectors_offset, sizeof(x.selectors_offset), "u8"),
        "adjacencies_offset": at(&x, &x.adjacencies_offset, sizeof(x.adjacencies_offset), "u8"),
        "workers_offset": at(&x, &x.workers_offset, sizeof(x.workers_offset), "u8"),
        "sa_counters_offset": at(&x, &x.sa_counters_offset, sizeof(x.sa_counters_offset), "u8"),
        "acquires_offset": at(&x, &x.acquires_offset, sizeof(x.acquires_offset), "u8"),
        "boot_id": at(&x, &x.boot_id, sizeof(x.boot_id), "u8"),
        "spi_moves": at(&x, &x.spi_moves, sizeof(x.spi_moves), "u8"),
        "spd": at(&x, &x.spd, sizeof(x.spd), "LpmTable"),
        "routes": at(&x, &x.routes, sizeof(x.routes), "LpmTable"),
        "dummy_sas": at(&x, &x.dummy_sas, sizeof(x.dummy_sas), "u8"),
    }


cdef tuple port_counters_layout():
    cdef PortCounters x
    return sizeof(x), {
        "rx_packets": at(&x, &x.rx_packets, sizeof(x.rx_packets), "u8"),
        "rx_bytes": at(&x, &x.rx_bytes, sizeof(x.rx_bytes), "u8"),
        "tx_packets": at(&x, &x.tx_packets, sizeof(x.tx_packets), "u8"),
        "tx_bytes": at(&x, &x.tx_bytes, sizeof(x.tx_bytes), "u8"),
        "rx_syscalls": at(&x, &x.rx_syscalls, sizeof(x.rx_syscalls), "u8"),
        "tx_syscalls": at(&x, &x.tx_syscalls, sizeof(x.tx_syscalls), "u8"),
        "tx_full": at(&x, &x.tx_full, sizeof(x.tx_full), "u8"),
        "tx_errors": at(&x, &x.tx_errors, sizeof(x.tx_errors), "u8"),
    }


cdef tuple worker_counters_layout():
    cdef WorkerCounters x
    return sizeof(x), {
        "seen_generation": at(&x, &x.seen_generation, sizeof(x.seen_generation), "u8"),
        "loops": at(&x, &x.loops, sizeof(x.loops), "u8"),
        "sleeps": at(&x, &x.sleeps, sizeof(x.sleeps), "u8"),
        "heartbeat": at(&x, &x.heartbeat, sizeof(x.heartbeat), "u8"),
        "pid": at(&x, &x.pid, sizeof(x.pid), "u8"),
        "dealt": at(&x, &x.dealt, sizeof(x.dealt), "u8"),
        "helped": at(&x, &x.helped, sizeof(x.helped), "u8"),
        "moved": at(&x, &x.moved, sizeof(x.moved), "u8"),
        "reserved": at(&x, x.reserved, sizeof(x.reserved), "u8"),
        "verdicts": at(&x, x.verdicts, sizeof(x.verdicts), "u8"),
        "ports": at(&x, x.ports, sizeof(x.ports), "PortCounters"),
        "tail": at(&x, x.tail, sizeof(x.tail), "u8"),
    }


cdef tuple sa_counters_layout():
    cdef SaCounters x
    return sizeof(x), {
        "packets": at(&x, &x.packets, sizeof(x.packets), "u8"),
        "bytes": at(&x, &x.bytes, sizeof(x.bytes), "u8"),
        "last_used": at(&x, &x.last_used, sizeof(x.last_used), "u8"),
        "reserved": at(&x, &x.reserved, sizeof(x.reserved), "u8"),
        "drops": at(&x, x.drops, sizeof(x.drops), "u8"),
    }


def layout():
    """{struct name: (bytes, {field name: (offset, bytes, kind)})} of every struct in the segment."""
    return {
        "Key": key_layout(),
        "SaSequence": sa_sequence_layout(),
        "SaHot": sa_hot_layout(),
        "SaInbound": sa_inbound_layout(),
        "Replay": replay_layout(),
        "SaSource": sa_source_layout(),
        "Sa": sa_layout(),
        "Selector": selector_layout(),
        "PlainSelector": plain_selector_layout(),
        "Policy": policy_layout(),
        "Adjacency": adjacency_layout(),
        "LpmSlot": lpm_slot_layout(),
        "LpmHalf": lpm_half_layout(),
        "LpmTable": lpm_table_layout(),
        "TablesHeader": tables_header_layout(),
        "PortCounters": port_counters_layout(),
        "WorkerCounters": worker_counters_layout(),
        "SaCounters": sa_counters_layout(),
    }

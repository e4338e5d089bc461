"""Join packets of one flow into super-packets, so that one system call and one walk through the kernel carries many.

    gather      sort a batch into runs: TCP segments of one flow that follow each other, UDP datagrams of one flow and
                size; whatever cannot be joined is a run of its own
    order       put the batch's pointers into the order of the runs, so that every run is a slice of them
    run_apply   write the super-packet's lengths and partial checksum into the first packet's headers and list the
                pieces for writev() or sendmsg(): nothing is copied
    run_undo    the reverse, for runs that the kernel did not take
    run_refused whether it was for being a run of UDP: then no more are made, and the packets leave one by one

The rules are those of the kernel's GRO (net/ipv4/tcp_offload.c), so that segmenting a run again gives the packets back:
equal addresses, ports, TOS, TTL, acknowledgement, window and options; flags equal but for FIN and PSH, which end a run;
no SYN, RST, URG or CWR; all payloads of one size, the last may be shorter; IPv4 IDs counting up unless DF is set (RFC
6864 section 4.1 gives the ID of such packets no meaning). A packet joins only when its checksum is right, because the
kernel will compute a new one over whatever it holds.

Order within a flow never changes: a packet that cannot join its flow's run closes it.
Not joined: fragments, IPv4 options, IPv6 extension headers, UDP without checksum. Before Linux 6.2, UDP at all: such
a kernel knows no GSO_UDP_L4 in a virtio_net_hdr, and says EINVAL (virtio_net_hdr_to_skb).
"""

from libc.errno cimport EINVAL
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from ext.linuxnet cimport iovec
from ext.packet cimport BATCH_MAX, Packet
from ext.segment cimport GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET_NEEDS_CSUM, partial_checksum, sum_long
from ext.wire cimport (
    PROTOCOL_TCP, PROTOCOL_UDP, fold, load16, load32, put_raw16, raw16, raw32, raw64, restamp_ipv4, store16,
)

cdef enum:
    TCP_FIN = 0x01
    TCP_PSH = 0x08
    TCP_ACK = 0x10
    TCP_ECE = 0x40
    SUPER_IP_MAX = 65535        # bytes: what an IP total length can say


cdef void gather(Runs *runs, Packet **packets, uint32_t count, uint32_t link) noexcept nogil:
    """Sort packets[0:count] (at most BATCH_MAX), each with `link` bytes of link header, into runs."""
    cdef uint32_t index
    cdef uint32_t slot
    cdef Run *run
    cdef Run *candidate
    runs.count = 0
    runs.open_count = 0
    runs.link = link
    for index in range(count):
        candidate = &runs.runs[runs.count]
        memset(candidate, 0, sizeof(Run))
        candidate.first = index
        candidate.last = index
        candidate.count = 1
        _look(candidate, packets[index], link)
        slot = 0
        while slot < runs.open_count:
            run = &runs.runs[runs.open[slot]]
            if _same_flow(run, packets[run.first].data, candidate, packets[index].data, link):
                break
            slot += 1
        if slot < runs.open_count:
            run = &runs.runs[runs.open[slot]]
            if _joins(run, packets, candidate, link):
                _append(runs, run, candidate)
                if candidate.payload < run.size or candidate.last_flags & (TCP_FIN | TCP_PSH):
                    _close(runs, slot)
                continue
            _close(runs, slot)
        if _may_lead(runs, candidate):
            if runs.open_count == OPEN_RUNS:
                _close(runs, 0)
            runs.open[runs.open_count] = <uint8_t>runs.count
            runs.open_count += 1
        runs.count += 1


cdef inline void _close(Runs *runs, uint32_t slot) noexcept nogil:
    """Let the run in this slot grow no more; the oldest stays first."""
    runs.open_count -= 1
    while slot < runs.open_count:
        runs.open[slot] = runs.open[slot + 1]
        slot += 1


cdef inline void _append(Runs *runs, Run *run, const Run *packet) noexcept nogil:
    runs.next[run.last] = <uint8_t>packet.first
    run.last = packet.first
    run.count += 1
    run.payload += packet.payload
    run.next_sequence = packet.next_sequence
    run.last_flags = packet.last_flags
    run.identification = packet.identification


cdef void _look(Run *run, const Packet *packet, uint32_t link) noexcept nogil:
    """Describe one packet as a run of its own; `family` stays 0 for what cannot be joined."""
    cdef const uint8_t *network = packet.data + link
    cdef const uint8_t *transport
    cdef uint32_t room = packet.length - link
    cdef uint32_t size, total
    if packet.length < link + 28:
        return
    if network[0] == 0x45:
        total = load16(network + 2)
        run.protocol = network[9]
        if total != room or load16(network + 6) & 0x3FFF:
            return
        run.identification = load16(network + 4)
        size = 20
        run.flow = raw32(network + 12) + raw32(network + 16) * <uint32_t>0x9E3779B1
        run.family = 4
    elif network[0] >> 4 == 6 and room >= 48:
        run.protocol = network[6]
        if 40 + <uint32_t>load16(network + 4) != room:
            return
        size = 40
        run.flow = raw32(network + 20) + raw32(network + 36) * <uint32_t>0x9E3779B1
        run.family = 6
    else:
        return
    transport = network + size
    run.transport = <uint16_t>(link + size)
    if run.protocol == PROTOCOL_TCP and room >= size + 20 and size + (transport[12] >> 4) * 4 <= room:
        if transport[12] >> 4 < 5:
            run.family = 0
            return
        size += (transport[12] >> 4) * 4
        run.first_flags = transport[13]
        run.last_flags = transport[13]
        run.checksum = raw16(transport + 16)
        run.next_sequence = load32(transport + 4) + (room - size)
    elif run.protocol == PROTOCOL_UDP and load16(transport + 4) == room - size:
        size += 8
        run.checksum = raw16(transport + 6)
    else:
        run.family = 0
        return
    run.flow ^= raw32(transport) * <uint32_t>0x85EBCA6B
    run.headers = <uint16_t>(link + size)
    run.payload = room - size
    run.size = <uint16_t>run.payload


cdef inline bint _may_lead(const Runs *runs, const Run *run) noexcept nogil:
    """Whether others may follow this packet in a run."""
    if run.family == 0 or run.payload == 0:
        return False
    if run.protocol == PROTOCOL_TCP:
        return run.first_flags & ~TCP_ECE == TCP_ACK
    return run.checksum != 0 and not runs.no_udp


cdef inline bint _same_flow(const Run *run, const uint8_t *first, const Run *packet, const uint8_t *data,
                            uint32_t link) noexcept nogil:
    """Equal family, protocol, addresses and ports."""
    if run.flow != packet.flow or run.family != packet.family or run.protocol != packet.protocol:
        return False
    if raw32(first + run.transport) != raw32(data + packet.transport):
        return False
    if run.family == 4:
        return raw64(first + link + 12) == raw64(data + link + 12)
    return memcmp(first + link + 8, data + link + 8, 32) == 0


cdef bint _joins(Run *run, Packet **packets, const Run *packet, uint32_t link) noexcept nogil:
    """Whether a packet of the same flow continues the run."""
    cdef const uint8_t *first = packets[run.first].data
    cdef const uint8_t *data = packets[packet.first].data
    cdef const uint8_t *old = first + run.transport
    cdef const uint8_t *new = data + packet.transport
    if packet.payload == 0 or packet.payload > run.size or packet.headers != run.headers:
        return False
    if run.headers - link + run.payload + packet.payload > SUPER_IP_MAX:
        return False
    if memcmp(first, data, link) != 0:
        return False
    first += link
    data += link
    if run.family == 4:
        if first[1] != data[1] or first[8] != data[8] or raw16(first + 6) != raw16(data + 6):
            return False
        if not data[6] & 0x40 and packet.identification != <uint16_t>(run.identification + 1):
            return False
    elif raw32(first) != raw32(data) or first[7] != data[7]:
        return False
    if run.protocol == PROTOCOL_TCP:
        if packet.next_sequence - packet.payload != run.next_sequence:
            return False
        if (packet.first_flags ^ run.first_flags) & ~(TCP_FIN | TCP_PSH):
            return False
        # Acknowledgement and data offset; window; urgent pointer and options.
        if raw32(old + 8) != raw32(new + 8) or old[12] != new[12] or raw16(old + 14) != raw16(new + 14):
            return False
        if memcmp(old + 18, new + 18, run.headers - run.transport - 18) != 0:
            return False
    elif packet.checksum == 0:
        return False
    if not run.verified:
        if not _checksum_right(run, packets[run.first], link):
            return False
        run.verified = 1
    return _checksum_right(packet, packets[packet.first], link)


cdef inline bint _checksum_right(const Run *run, const Packet *packet, uint32_t link) noexcept nogil:
    """True when the transport checksum of a packet that stands alone is right."""
    cdef uint32_t length = packet.length - run.transport
    cdef uint64_t total = partial_checksum(packet.data + link, run.family, run.protocol, length)
    return fold(total + sum_long(packet.data + run.transport, length)) == 0xFFFF


cdef void order(const Runs *runs, Packet **packets, uint32_t count) noexcept nogil:
    """Rearrange packets[0:count] so that the packets of each run stand together, in the order of the runs."""
    cdef Packet *sorted[BATCH_MAX]
    cdef uint32_t at = 0
    cdef uint32_t index, member, _left
    if runs.count == count:
        return
    for index in range(runs.count):
        member = runs.runs[index].first
        for _left in range(runs.runs[index].count):
            sorted[at] = packets[member]
            at += 1
            member = runs.next[member]
    for index in range(count):
        packets[index] = sorted[index]


cdef uint32_t run_apply(Run *run, Packet **members, uint32_t link, iovec *parts) noexcept nogil:
    """Make one super-packet of members[0:run.count]; fills `run.about` and `parts`, returns the number of parts."""
    cdef Packet *first = members[0]
    cdef uint8_t *network = first.data + link
    cdef uint8_t *transport = first.data + run.transport
    cdef uint32_t length = run.headers - run.transport + run.payload
    cdef uint32_t index
    parts[0].iov_base = first.data
    parts[0].iov_len = first.length
    if run.count == 1:
        return 1
    for index in range(1, run.count):
        parts[index].iov_base = members[index].data + run.headers
        parts[index].iov_len = members[index].length - run.headers
    run.about.flags = VNET_NEEDS_CSUM
    run.about.header_length = run.headers
    run.about.gso_size = run.size
    run.about.csum_start = run.transport
    if run.family == 4:
        store16(network + 2, <uint16_t>(run.headers - link + run.payload))
        restamp_ipv4(network)
    else:
        store16(network + 4, <uint16_t>(run.headers - link - 40 + run.payload))
    if run.protocol == PROTOCOL_TCP:
        run.about.gso_type = GSO_TCPV4 if run.family == 4 else GSO_TCPV6
        run.about.csum_offset = 16
        transport[13] = run.last_flags
    else:
        run.about.gso_type = GSO_UDP_L4
        run.about.csum_offset = 6
        store16(transport + 4, <uint16_t>length)
    put_raw16(transport + run.about.csum_offset, partial_checksum(network, run.family, run.protocol, length))
    return run.count


cdef void run_undo(const Run *run, Packet **members, uint32_t link) noexcept nogil:
    """Give the first packet back the headers that run_apply changed."""
    cdef uint8_t *network = members[0].data + link
    cdef uint8_t *transport = members[0].data + run.transport
    if run.about.gso_type == GSO_NONE:
        return
    if run.family == 4:
        store16(network + 2, <uint16_t>(members[0].length - link))
        restamp_ipv4(network)
    else:
        store16(network + 4, <uint16_t>(members[0].length - link - 40))
    if run.protocol == PROTOCOL_TCP:
        transport[13] = run.first_flags
    else:
        store16(transport + 4, <uint16_t>(members[0].length - run.transport))
    put_raw16(transport + run.about.csum_offset, run.checksum)


cdef bint run_refused(Runs *runs, const Run *run, int error) noexcept nogil:
    """True when the kernel, having said `error`, may take this run's packets one by one: it is offered them again.

    Once is enough to know: what no kernel of this host takes is not tried with every batch.
    """
    if error != EINVAL or run.about.gso_type != GSO_UDP_L4:
        return False
    runs.no_udp = True
    return True

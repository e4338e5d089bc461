"""IP fragmentation: RFC 791 3.2 for IPv4, RFC 8200 4.5 for IPv6.

    fragment_packet    one packet -> pieces of at most `mtu` bytes; the first stays in the packet's frame, the others
                       are copied into frames of the pool

Inner IPv4 packets are cut before they are enciphered, outer ones of either family afterwards (loop.pyx decides).
Routers do not fragment IPv6, so inner IPv6 packets never come here.

Limits: an IPv6 packet whose unfragmentable part is more than its header, one that would need more than PIECES_MAX
pieces, and an MTU that leaves no room for 8 bytes of payload are refused; so is any packet when frames run out.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from ext.packet cimport PACKET_CUT_AFTER, PACKET_FRAGMENT, PACKET_NO_PORTS, frame_give, frame_take
from ext.wire cimport load16, restamp_ipv4, store16, store32

cdef enum:
    IPV4_LEAST = 20
    IPV4_MOST = 60
    IPV6_HEADER = 40
    FRAGMENT_HEADER = 8
    NEXT_FRAGMENT = 44
    MORE = 0x2000               # of IPv4's flags and offset
    OFFSET = 0x1FFF             # in units of 8 bytes
    LINK_ROOM = 14
    TAIL_ROOM = 128             # behind a piece, for ESP's trailer


cdef uint32_t fragment_packet(FramePool *frames, Packet *whole, uint32_t mtu, uint32_t identification,
                              Packet *pieces) noexcept nogil:
    """Cut an IP packet, DF or not, into pieces[0:returned]; 0, and everything as it was, when that cannot be.

    `pieces` has room for PIECES_MAX. IPv4 keeps its ID, IPv6 takes `identification`. Pieces inherit all else from the
    packet, the SA among it, and PASS.
    """
    if whole.data[0] >> 4 == 4:
        return _cut_ipv4(frames, whole, mtu, pieces)
    return _cut_ipv6(frames, whole, mtu, identification, pieces)


cdef bint _take_frames(FramePool *frames, const Packet *whole, uint32_t count, uint32_t size,
                       Packet *pieces) noexcept nogil:
    """Frames for pieces[1:count] of up to `size` bytes, all or none."""
    cdef uint32_t index
    cdef uint64_t frame
    if count > PIECES_MAX or frames.headroom + size + TAIL_ROOM > frames.frame_size:
        return False
    for index in range(1, count):
        if not frame_take(frames, &frame):
            while index > 1:
                index -= 1
                frame_give(frames, pieces[index].frame)
            return False
        pieces[index] = whole[0]
        pieces[index].frame = frame
        pieces[index].data = frames.base + frame + frames.headroom
        pieces[index].headroom = <uint16_t>frames.headroom
        pieces[index].flags |= PACKET_NO_PORTS
    pieces[0] = whole[0]
    return True


cdef inline void _finish(Packet *piece, uint32_t length, uint32_t room) noexcept nogil:
    """What holds for each piece; `room`: bytes from `data` to the frame's end."""
    piece.length = length
    piece.tailroom = <uint16_t>(room - length)
    piece.flags = (piece.flags | PACKET_FRAGMENT) & ~PACKET_CUT_AFTER
    piece.verdict = 0


cdef uint32_t _later_header(const uint8_t *header, uint32_t length, uint8_t *target) noexcept nogil:
    """The IPv4 header of pieces after the first: options only where their copied flag is set (RFC 791 3.1)."""
    cdef uint32_t at = IPV4_LEAST
    cdef uint32_t made = IPV4_LEAST
    cdef uint32_t size
    memcpy(target, header, IPV4_LEAST)
    while at < length and header[at] != 0:
        size = 1 if header[at] == 1 else header[at + 1] if at + 1 < length else 0
        if size == 0 or at + size > length or (header[at] != 1 and size < 2):
            break               # no option that can be read
        if header[at] & 0x80:
            memcpy(target + made, header + at, size)
            made += size
        at += size
    while made & 3:
        target[made] = 0
        made += 1
    target[0] = <uint8_t>(0x40 | made >> 2)
    return made


cdef uint32_t _cut_ipv4(FramePool *frames, Packet *whole, uint32_t mtu, Packet *pieces) noexcept nogil:
    cdef uint8_t later[IPV4_MOST]
    cdef uint8_t *header = whole.data
    cdef uint32_t header_length = (header[0] & 15) * 4
    cdef uint32_t later_length = _later_header(header, header_length, later)
    cdef uint32_t payload = whole.length - header_length
    cdef uint32_t first, rest, size, count, index
    cdef uint32_t offset = load16(header + 6) & OFFSET
    cdef uint32_t more = load16(header + 6) & MORE
    cdef uint32_t done
    cdef uint8_t *data
    if mtu < header_length + 8 or whole.length <= mtu:
        return 0
    first = (mtu - header_length) & ~<uint32_t>7
    rest = (mtu - later_length) & ~<uint32_t>7
    if first >= payload:        # the header alone is what is too much
        return 0
    count = 1 + (payload - first + rest - 1) // rest
    if not _take_frames(frames, whole, count, later_length + rest, pieces):
        return 0
    done = first
    for index in range(1, count):
        size = payload - done if payload - done < rest else rest
        data = pieces[index].data
        memcpy(data, later, later_length)
        memcpy(data + later_length, header + header_length + done, size)
        store16(data + 2, <uint16_t>(later_length + size))
        store16(data + 6, <uint16_t>((offset + (done >> 3)) | (more if index == count - 1 else MORE)))
        restamp_ipv4(data)
        pieces[index].transport = <uint16_t>later_length
        _finish(&pieces[index], later_length + size, frames.frame_size - frames.headroom)
        done += size
    store16(header + 2, <uint16_t>(header_length + first))
    store16(header + 6, <uint16_t>(offset | MORE))
    restamp_ipv4(header)
    _finish(&pieces[0], header_length + first, whole.length + whole.tailroom)
    return count


cdef uint32_t _cut_ipv6(FramePool *frames, Packet *whole, uint32_t mtu, uint32_t identification,
                        Packet *pieces) noexcept nogil:
    cdef uint8_t *header = whole.data
    cdef uint8_t protocol = header[6]
    cdef uint32_t payload = whole.length - IPV6_HEADER
    cdef uint32_t most, size, count, index
    cdef uint32_t done
    cdef uint8_t *data
    # Hop-by-hop options, a routing header and what comes before one would have to be in every piece.
    if protocol == 0 or protocol == 43 or protocol == 60 or protocol == NEXT_FRAGMENT:
        return 0
    if mtu < IPV6_HEADER + FRAGMENT_HEADER + 8 or whole.headroom < FRAGMENT_HEADER + LINK_ROOM or whole.length <= mtu:
        return 0
    most = (mtu - IPV6_HEADER - FRAGMENT_HEADER) & ~<uint32_t>7
    count = (payload + most - 1) // most
    if not _take_frames(frames, whole, count, IPV6_HEADER + FRAGMENT_HEADER + most, pieces):
        return 0
    done = most
    for index in range(1, count):
        size = payload - done if payload - done < most else most
        data = pieces[index].data
        memcpy(data, header, IPV6_HEADER)
        memcpy(data + IPV6_HEADER + FRAGMENT_HEADER, header + IPV6_HEADER + done, size)
        _write_fragment_header(data, protocol, done, index < count - 1, identification, size)
        _finish(&pieces[index], IPV6_HEADER + FRAGMENT_HEADER + size, frames.frame_size - frames.headroom)
        done += size
    size = most if most < payload else payload
    data = header - FRAGMENT_HEADER
    memmove(data, header, IPV6_HEADER)
    _write_fragment_header(data, protocol, 0, count > 1, identification, size)
    pieces[0].data = data
    pieces[0].headroom = <uint16_t>(whole.headroom - FRAGMENT_HEADER)
    _finish(&pieces[0], IPV6_HEADER + FRAGMENT_HEADER + size, whole.length + whole.tailroom + FRAGMENT_HEADER)
    return count


cdef inline void _write_fragment_header(uint8_t *data, uint8_t protocol, uint32_t offset, bint more,
                                        uint32_t identification, uint32_t size) noexcept nogil:
    """Behind the IPv6 header at `data`, which is told of it; `offset` and `size` in bytes of payload."""
    data[6] = NEXT_FRAGMENT
    store16(data + 4, <uint16_t>(FRAGMENT_HEADER + size))
    data[IPV6_HEADER] = protocol
    data[IPV6_HEADER + 1] = 0
    store16(data + IPV6_HEADER + 2, <uint16_t>(offset | more))
    store32(data + IPV6_HEADER + 4, identification)

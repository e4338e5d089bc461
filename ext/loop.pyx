"""One worker's life in one nogil loop: receive, walk, dispatch, flush; sleep when nothing comes.

    step      for each port: receive a batch -> parse_batch -> outbound (protected) or inbound (unprotected)
    deal      when this core is full, inbound batches are opened by whichever worker has time (ext/deal.pyx)
    report    flows that wait for an SA, so that control brings it about
    turn back what came out of a tunnel and is not for the protected side is the SPD's before it is the kernel's
    answer    TTL and size verdicts become ICMP errors, back to the sender or back through the tunnel
    cut       what is too big and may be fragmented is, before or after encapsulation
    dispatch  by adjacency to a port's queue, to the kernel, or back to the frame pool; every verdict counted
    flush     each port kicks the kernel, reaps and refills
    sleep     when looking on does not pay (ext/idle.pyx) every port is armed and poll() waits: idle costs no CPU

Nothing is allocated and no Python runs between two sleeps. The loop ends when stop_fd has something to say:
control writes to it, or dies and closes it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ext.acquire cimport report_acquires
from ext.clock cimport now_ns
from ext.counters cimport (
    BYPASSED, DROP_ICMP_LIMIT, DROP_INNER_SELECTORS, DROP_KERNEL, DROP_NO_FRAME, DROP_NO_POLICY, DROP_NO_ROUTE,
    DROP_POLICY_DISCARD, DROP_TOO_BIG, DROP_TTL, DROP_TX_FULL, DUMMY_SENT, FRAGMENTED, ICMP_SENT, PASS,
    SA_VERDICTS, TO_KERNEL, SaCounters, WorkerCounters,
)
from ext.deal cimport (
    Deal, DealSlot, Team, deal_claim, deal_done, deal_drop, deal_flying, deal_help, deal_may_sleep, deal_measure,
    deal_lost, deal_pass, deal_port, deal_post, deal_room, deal_slot, deal_woken,
)
from ext.dummy cimport DUMMY_TICK_MS, dummies_make
from ext.esp_in cimport inbound, inbound_late, inbound_settle
from ext.esp_out cimport outbound, outbound_known
from ext.fragment cimport PIECES_MAX, fragment_packet
from ext.icmp cimport icmp_answer
from ext.idle cimport idle_begin, idle_enough, idle_over, idle_woken
from ext.packet cimport (
    BATCH_MAX, LINK_ETHERNET, NO_INDEX, NO_PORT, PACKET_CUT_AFTER, PACKET_NO_PORTS, ROLE_PROTECTED, Leaders,
    frame_give,
)
from ext.policy cimport policy_of
from ext.quoted cimport may_quote, quoted_selected, sa_of_quoted
from ext.sa cimport (
    ACTION_BYPASS, ACTION_DISCARD, CUT_AFTER, CUT_BEFORE, CUT_NEVER, SA_DF_COPY, SA_DF_SET, SA_INBOUND, Adjacency,
    Policy, Sa, tables_enter, tables_leave, tables_pass,
)
from ext.wire cimport decrement_ttl, likely, parse_batch, store16, unlikely

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    IDLE_LOOPS = 8              # empty rounds between two looks at the clock
    SLEEP_MS = 1000
    LOST_NS = 1000000000        # between two questions to the kernel what it threw away, of a worker that sleeps
    STOP_CHECK = 1023           # rounds between two looks at stop_fd while busy (a power of two less one)
    LINK_HEADER = 14
    HELP_BELOW = 32             # a round with more packets of our own leaves no time for those of others
    IPV6_LEAST = 1280           # RFC 8200 5: every IPv6 link carries so much
    LEAD_MOST = 128             # bytes: no SA puts more before a packet
    DF = 0x40                   # in byte 6 of an IPv4 header
    ID_STEP = 0x9E3779B1        # spreads SPIs over the fragment IDs of one pair of gateways


cdef uint32_t step(Worker *worker) noexcept nogil:
    """One round over all ports; returns the packets received or opened for others, not 0 while batches are dealt."""
    cdef uint32_t index
    cdef uint32_t count
    cdef uint32_t total = 0
    cdef Port *port
    cdef Batch *batch = &worker.batch
    cdef Deal *deal = worker.deal
    cdef uint64_t now = 0
    cdef bint full = False
    if deal == NULL:
        tables_pass(worker.tables)
    else:
        deal_pass(deal)
    for index in range(worker.port_count):
        port = worker.ports[index]
        if unlikely(deal != NULL and port.role != ROLE_PROTECTED and (deal.active or deal_flying(deal)), 0):
            if deal_room(deal):
                count = _deal(worker, port)
                if count and now == 0:
                    now = now_ns()
                total += count
                full |= count == BATCH_MAX
                continue
            if deal_flying(deal):
                continue        # what comes in now must leave after those
        count = port.receive(port, batch)
        if count == 0:
            continue
        if now == 0:
            now = now_ns()
        total += count
        if port.role == ROLE_PROTECTED:
            parse_batch(batch, port, &worker.out.leaders)
            outbound(batch, worker.tables, worker.engine, &worker.out, port.link == LINK_ETHERNET, now)
            report_acquires(batch, &worker.out.leaders, worker.tables, &worker.acquires, now)
            _leave(worker, batch, port, NULL, now)
        else:
            parse_batch(batch, port, &worker.into.leaders)
            inbound(batch, worker.tables, worker.engine, &worker.into, now)
            _leave(worker, batch, port, &worker.into.leaders, now)
            full |= count == BATCH_MAX
    if deal != NULL:
        deal_measure(deal, total, full, now)
        if deal_flying(deal):
            total += _settle(worker, total)
    for index in range(worker.port_count):
        worker.ports[index].flush(worker.ports[index])
    if worker.kernel != NULL:
        worker.kernel.flush(worker.kernel)
    if deal != NULL and total <= HELP_BELOW:
        total += deal_help(deal)
    return total


cdef uint32_t _deal(Worker *worker, Port *port) noexcept nogil:
    """Receive a batch, and let whoever has time open it."""
    cdef Deal *deal = worker.deal
    cdef uint32_t count
    port.in_place = True        # most of them others will open: do not carry the packets to this core first
    count = port.receive(port, &deal_slot(deal, deal.head).batch)
    port.in_place = False
    if count:
        deal_post(deal, port)
    return count


cdef uint32_t _settle(Worker *worker, uint32_t received) noexcept nogil:
    """Batches that are open leave in their order; with nothing else to do we open one. Returns those under way."""
    cdef Deal *deal = worker.deal
    _commit(worker)
    if deal_flying(deal) and (received == 0 or not deal_room(deal)) and deal_claim(deal):
        _commit(worker)
    return <uint32_t>(deal.head - deal.tail)


cdef void _commit(Worker *worker) noexcept nogil:
    """The second part of `inbound`, and what follows it, for the oldest batches as far as they are open."""
    cdef Deal *deal = worker.deal
    cdef DealSlot *slot
    cdef uint64_t now
    while deal_done(deal):
        if likely(not deal_lost(deal), 1):
            now = now_ns()
            slot = deal_slot(deal, deal.tail)
            inbound_settle(&slot.batch, worker.tables, &slot.elsewhere, now)
            if unlikely(slot.waiting != 0, 0):
                inbound_late(&slot.batch, worker.tables, worker.engine, &worker.into, &slot.leaders, now)
            if unlikely(_send_ready(worker, &slot.batch) < slot.batch.count, 0):
                _leave(worker, &slot.batch, deal_port(deal), &slot.leaders, now)
        deal_drop(deal)


cdef uint32_t _send_ready(Worker *worker, Batch *batch) noexcept nogil:
    """Packets that need nothing but their port; returns how many."""
    cdef uint32_t index
    cdef uint32_t passed = 0
    cdef Packet *packet
    for index in range(batch.count):
        packet = &batch.packets[index]
        if likely(packet.leaves_by < worker.port_count, 1):
            _queue(worker, packet.leaves_by, packet)
            packet.verdict = ICMP_SENT      # dispatch: nothing left to do
            passed += 1
        elif packet.leaves_by != NO_PORT:
            packet.verdict = DROP_NO_ROUTE  # a port that only the helper has
    worker.tables.worker.verdicts[<int>PASS] += passed
    _hand_over(worker)
    return passed


cdef void _leave(Worker *worker, Batch *batch, Port *port, const Leaders *leaders, uint64_t now) noexcept nogil:
    """A batch that came in by `port` has its verdicts: every packet to where it goes, and answers to what was refused.

    `leaders` is of packets that came out of a tunnel, else NULL. Most batches pass whole.
    """
    if likely(_forward(worker, batch) == batch.count, 1):
        _hand_over(worker)
        return
    if leaders != NULL:
        _turn_back(worker, batch, leaders)
    _answer(worker, batch, port, now)
    _dispose(worker, batch)
    _hand_over(worker)
    if worker.returns.count:
        _send_own(worker, &worker.returns, now)
        _answer(worker, &worker.returns, port, now)
        _dispatch(worker, &worker.returns)
        worker.returns.count = 0
    if worker.answers.count:
        _send_own(worker, &worker.answers, now)
        _quote_answers(worker, port)
        _dispatch(worker, &worker.answers)
        worker.answers.count = 0
    if unlikely(worker.aside.count, 0):
        _send_aside(worker, now)


cdef void _turn_back(Worker *worker, Batch *batch, const Leaders *leaders) noexcept nogil:
    """What does not lead to the protected side is the SPD's before it is the kernel's (RFC 4301 5.1).

    Between two spokes of a hub it leaves through the other's tunnel; the kernel would send it on in clear.
    """
    cdef uint32_t index
    cdef Packet *packet
    cdef Packet *back
    cdef const Packet *leader
    cdef const Policy *policy
    for index in range(batch.count):
        packet = &batch.packets[index]
        if likely(packet.verdict != TO_KERNEL or packet.adjacency != NO_INDEX, 1):
            continue
        leader = &batch.packets[leaders.leader[index]]
        policy = policy_of(packet, leader, worker.tables, False)
        if policy == NULL or policy.action == ACTION_BYPASS:
            continue
        if policy.action == ACTION_DISCARD:
            packet.verdict = DROP_POLICY_DISCARD
            continue
        if (packet.data[8] if packet.family == 4 else packet.data[7]) <= 1:
            packet.verdict = DROP_TTL
            continue
        decrement_ttl(packet)
        back = &worker.returns.packets[worker.returns.count]
        worker.returns.count += 1
        back[0] = packet[0]
        back.source_port = leader.source_port
        back.destination_port = leader.destination_port
        back.flags |= leader.flags & PACKET_NO_PORTS
        back.sa = NO_INDEX
        back.verdict = PASS
        packet.verdict = ICMP_SENT      # dispatch: nothing left to do


cdef void _send_own(Worker *worker, Batch *batch, uint64_t now) noexcept nogil:
    """Outbound for packets that no port brought: each leads itself, and none costs a hop."""
    cdef uint32_t index
    cdef Leaders *leaders = &worker.out.leaders
    leaders.count = batch.count
    for index in range(batch.count):
        leaders.packets[index] = <uint8_t>index
        leaders.leader[index] = <uint8_t>index
    outbound(batch, worker.tables, worker.engine, &worker.out, False, now)
    report_acquires(batch, leaders, worker.tables, &worker.acquires, now)


cdef const Port *_first_protected(const Worker *worker, uint8_t family) noexcept nogil:
    """The port whose address answers for packets that came out of a tunnel."""
    cdef uint32_t index
    for index in range(worker.port_count):
        if worker.ports[index].role == ROLE_PROTECTED:
            if worker.ports[index].has_ipv4 if family == 4 else worker.ports[index].has_ipv6:
                return worker.ports[index]
    return NULL


cdef void _answer(Worker *worker, Batch *batch, Port *port, uint64_t now) noexcept nogil:
    """ICMP errors for what was refused for its TTL or its size."""
    cdef uint32_t index
    cdef uint32_t mtu
    cdef Packet *packet
    cdef uint8_t refused
    cdef uint8_t verdict
    cdef uint8_t link[12]
    cdef const Port *source
    cdef WorkerCounters *counters = worker.tables.worker
    for index in range(batch.count):
        packet = &batch.packets[index]
        refused = packet.verdict
        if likely(refused == PASS, 1):
            continue
        if refused == DROP_NO_POLICY or refused == DROP_INNER_SELECTORS:
            if may_quote(packet):
                _by_quotation(worker, packet, port)
            continue
        if refused != DROP_TTL and refused != DROP_TOO_BIG:
            continue
        if refused == DROP_TOO_BIG and (_set_aside(worker, packet, port) or _fits(worker, packet)):
            continue
        mtu = _mtu_of(worker, packet) if refused == DROP_TOO_BIG else 0
        source = port
        if port.role == ROLE_PROTECTED:
            if port.link == LINK_ETHERNET:
                memcpy(link, packet.data - 8, 6)            # its source becomes our destination
                memcpy(link + 6, packet.data - LINK_HEADER, 6)
        else:
            source = _first_protected(worker, packet.family)
            if source == NULL:
                continue
        # The drop itself is counted here: `_dispatch` will see the answer, not the packet.
        _count(worker, packet)
        verdict = icmp_answer(packet, source, mtu, &worker.limit, now)
        if verdict != ICMP_SENT:
            if verdict == DROP_ICMP_LIMIT:
                counters.verdicts[<int>DROP_ICMP_LIMIT] += 1
            _release(worker, packet)
            continue
        counters.verdicts[<int>ICMP_SENT] += 1
        if port.role == ROLE_PROTECTED:
            if port.link == LINK_ETHERNET:
                packet.data -= LINK_HEADER
                packet.length += LINK_HEADER
                memcpy(packet.data, link, 12)
                store16(packet.data + 12, 0x0800 if packet.family == 4 else 0x86DD)
            _queue(worker, port.index, packet)
            packet.verdict = ICMP_SENT
        else:
            # At most one for each packet that came in, so there is room for all.
            worker.answers.packets[worker.answers.count] = packet[0]
            worker.answers.count += 1
            packet.verdict = ICMP_SENT


cdef inline bint _came_in(const Worker *worker, const Packet *packet) noexcept nogil:
    """A packet that was refused came out of a tunnel, and was not for another one."""
    return worker.tables.sas[packet.sa].hot.flags & SA_INBOUND != 0


cdef inline uint32_t _mtu_of(const Worker *worker, const Packet *packet) noexcept nogil:
    """What a packet that was too big has to fit: the link that it leaves by, or its outbound SA."""
    if _came_in(worker, packet):
        return worker.tables.adjacencies[packet.adjacency].mtu
    return worker.tables.sas[packet.sa].hot.inner_mtu


cdef inline bint _fits(const Worker *worker, const Packet *packet) noexcept nogil:
    """A packet that was refused only because it came behind one that is too big for their SA."""
    return not _came_in(worker, packet) and packet.length <= worker.tables.sas[packet.sa].hot.inner_mtu


cdef uint8_t _way_to_cut(const Worker *worker, const Packet *packet) noexcept nogil:
    """Oversize: whether a packet over the MTU of its SA may be fragmented, and where."""
    cdef const Sa *sa = &worker.tables.sas[packet.sa]
    cdef bint df_copy = sa.hot.flags & SA_DF_COPY
    cdef bint df_set = sa.hot.flags & SA_DF_SET
    cdef bint after = True
    cdef const Adjacency *adjacency
    if _came_in(worker, packet):
        return CUT_NEVER if packet.family == 6 or packet.data[6] & DF else CUT_BEFORE   # as any router (RFC 1812 5.2.6)
    if sa.hot.adjacency != NO_INDEX:
        adjacency = &worker.tables.adjacencies[sa.hot.adjacency]
        after = adjacency.port < worker.port_count and not worker.ports[adjacency.port].whole_only
    if packet.family == 6:
        # RFC 8200 5: a link carries 1280 bytes, or fragments by itself; more is for the sender to cut.
        return CUT_AFTER if packet.length <= IPV6_LEAST and after else CUT_NEVER
    if packet.data[6] & DF:
        # RFC 4301 8.1: DF of the outer header clear means that the inner one is not heeded.
        return CUT_NEVER if df_copy or df_set or not after else CUT_AFTER
    if sa.hot.header_length == 0:
        return CUT_AFTER if after else CUT_NEVER        # transport mode takes whole packets only (RFC 4303 3.1.1)
    return CUT_AFTER if after and not df_set and sa.sequence.oversize == CUT_AFTER else CUT_BEFORE


cdef bint _set_aside(Worker *worker, Packet *packet, const Port *port) noexcept nogil:
    """Take a packet that may be fragmented, or is behind one, out of its batch; False: it must be answered instead."""
    cdef Packet *aside
    cdef uint8_t way = <uint8_t>CUT_BEFORE if _fits(worker, packet) else _way_to_cut(worker, packet)
    if way == CUT_NEVER or worker.aside.count == BATCH_MAX:
        return False
    if _came_in(worker, packet) or (port.role == ROLE_PROTECTED and port.link == LINK_ETHERNET):
        decrement_ttl(packet)       # it was refused before that
    aside = &worker.aside.packets[worker.aside.count]
    worker.aside.count += 1
    aside[0] = packet[0]
    if way == CUT_AFTER:
        aside.flags |= PACKET_CUT_AFTER
    packet.verdict = ICMP_SENT      # dispatch: nothing left to do
    return True


cdef void _by_quotation(Worker *worker, Packet *packet, const Port *port) noexcept nogil:
    """An ICMP error that no selector takes goes with the traffic that it is about, if any (RFC 4301 6.2)."""
    cdef Packet *aside
    cdef uint32_t sa
    if packet.verdict == DROP_INNER_SELECTORS:
        if quoted_selected(packet, worker.tables):
            worker.tables.sa_counters[packet.sa].packets += 1
            worker.tables.sa_counters[packet.sa].bytes += packet.length
            packet.adjacency = NO_INDEX
            packet.verdict = TO_KERNEL      # there are few of them: let it find their way
        return
    sa = sa_of_quoted(packet, worker.tables)
    if sa == NO_INDEX or worker.aside.count == BATCH_MAX:
        return
    if port.role == ROLE_PROTECTED and port.link == LINK_ETHERNET:
        if (packet.data[8] if packet.family == 4 else packet.data[7]) <= 1:
            return
        decrement_ttl(packet)
    aside = &worker.aside.packets[worker.aside.count]
    worker.aside.count += 1
    aside[0] = packet[0]
    aside.sa = sa
    aside.flags |= PACKET_CUT_AFTER
    packet.verdict = ICMP_SENT      # dispatch: nothing left to do


cdef void _quote_answers(Worker *worker, const Port *port) noexcept nogil:
    """Our own errors about decrypted packets: the port whose address they bear may be outside every policy."""
    cdef uint32_t index
    for index in range(worker.answers.count):
        if worker.answers.packets[index].verdict == DROP_NO_POLICY:
            _by_quotation(worker, &worker.answers.packets[index], port)


cdef void _send_aside(Worker *worker, uint64_t now) noexcept nogil:
    """Send what was set aside; fragment what is too big, before or after encapsulation (RFC 4301 7)."""
    cdef uint32_t index
    cdef uint32_t made
    cdef Packet *whole
    cdef Batch *pieces = &worker.pieces
    pieces.count = 0
    for index in range(worker.aside.count):
        whole = &worker.aside.packets[index]
        if pieces.count + PIECES_MAX > BATCH_MAX:
            _send_pieces(worker, now)
        if whole.flags & PACKET_CUT_AFTER or _fits(worker, whole):
            pieces.packets[pieces.count] = whole[0]
            pieces.packets[pieces.count].verdict = PASS
            pieces.count += 1
            continue
        if _came_in(worker, whole):
            _cut_inside(worker, whole)
            continue
        made = fragment_packet(worker.ports[0].frames, whole, worker.tables.sas[whole.sa].hot.inner_mtu,
                               whole.length, &pieces.packets[pieces.count])
        if made == 0:
            _count(worker, whole)       # DROP_TOO_BIG still
            _release(worker, whole)
            continue
        pieces.count += made
        worker.tables.worker.verdicts[<int>FRAGMENTED] += made - 1
    worker.aside.count = 0
    _send_pieces(worker, now)


cdef void _cut_inside(Worker *worker, Packet *whole) noexcept nogil:
    """Send a packet that came out of a tunnel on in pieces that the link inside takes."""
    cdef Batch *pieces = &worker.outer_pieces
    cdef SaCounters *counters = &worker.tables.sa_counters[whole.sa]
    cdef uint32_t length = whole.length
    pieces.count = fragment_packet(worker.ports[0].frames, whole, _mtu_of(worker, whole), 0, pieces.packets)
    if pieces.count == 0:
        _count(worker, whole)       # DROP_TOO_BIG still
        _release(worker, whole)
        return
    counters.packets += 1
    counters.bytes += length
    worker.tables.worker.verdicts[<int>FRAGMENTED] += pieces.count - 1
    _dispatch(worker, pieces)
    pieces.count = 0


cdef void _send_pieces(Worker *worker, uint64_t now) noexcept nogil:
    """Encipher the pieces; fragment those outer packets that are still too big. All leave in their order."""
    cdef uint32_t index
    cdef uint32_t made
    cdef Packet *packet
    cdef Batch *pieces = &worker.pieces
    cdef Batch *outer = &worker.outer_pieces
    outer.count = 0
    outbound_known(pieces, worker.tables, worker.engine, &worker.out, now)
    for index in range(pieces.count):
        packet = &pieces.packets[index]
        if outer.count + PIECES_MAX > BATCH_MAX:
            _dispatch(worker, outer)
            outer.count = 0
        if packet.verdict != PASS or not packet.flags & PACKET_CUT_AFTER \
                or packet.length <= worker.tables.sas[packet.sa].sequence.path_mtu:
            outer.packets[outer.count] = packet[0]
            outer.count += 1
            continue
        # Its room was that around the inner packet.
        packet.headroom = <uint16_t>(packet.headroom - LEAD_MOST) if packet.headroom > LEAD_MOST else 0
        packet.tailroom = 0
        made = fragment_packet(worker.ports[0].frames, packet, worker.tables.sas[packet.sa].sequence.path_mtu,
                               <uint32_t>packet.sequence + worker.tables.sas[packet.sa].hot.spi * ID_STEP,
                               &outer.packets[outer.count])
        if made == 0:
            packet.verdict = DROP_TOO_BIG
            outer.packets[outer.count] = packet[0]
            made = 1
        outer.count += made
        worker.tables.worker.verdicts[<int>FRAGMENTED] += made - 1
    _dispatch(worker, outer)
    pieces.count = 0
    outer.count = 0


cdef inline bint _makes_dummies(const Worker *worker) noexcept nogil:
    """Some SAs send dummy packets, and it falls to this worker to make them."""
    return worker.tables.header.dummy_sas != 0 and worker.tables.worker_index == 0


cdef uint32_t _send_dummies(Worker *worker, uint64_t now) noexcept nogil:
    """Send the dummy packets that are due; they count apart, and an SA that sends nothing else is idle."""
    cdef uint32_t index
    cdef uint32_t made = 0
    cdef Packet *packet
    cdef SaCounters *counters
    cdef uint64_t last_used[BATCH_MAX]
    cdef Batch *batch = &worker.pieces
    if dummies_make(&worker.dummies, worker.tables, worker.ports[0].frames, batch, now) == 0:
        return 0
    for index in range(batch.count):
        last_used[index] = worker.tables.sa_counters[batch.packets[index].sa].last_used
    outbound_known(batch, worker.tables, worker.engine, &worker.out, now)
    for index in range(batch.count):
        packet = &batch.packets[index]
        counters = &worker.tables.sa_counters[packet.sa]
        if packet.verdict == PASS:
            counters.packets -= 1
            counters.bytes -= packet.inner_bytes
            made += 1
        counters.last_used = last_used[index]
    worker.tables.worker.verdicts[<int>DUMMY_SENT] += made
    _dispatch(worker, batch)
    batch.count = 0
    for index in range(worker.port_count):
        worker.ports[index].flush(worker.ports[index])
    if worker.kernel != NULL:
        worker.kernel.flush(worker.kernel)
    return made


cdef inline void _count(Worker *worker, const Packet *packet) noexcept nogil:
    """One verdict, for the worker and, where it belongs to one, for the SA."""
    worker.tables.worker.verdicts[packet.verdict] += 1
    if packet.verdict < SA_VERDICTS and packet.sa != NO_INDEX and packet.verdict != PASS:
        worker.tables.sa_counters[packet.sa].drops[packet.verdict] += 1


cdef inline void _release(Worker *worker, Packet *packet) noexcept nogil:
    """The one place where the frame of a packet that goes nowhere returns to the pool."""
    frame_give(worker.ports[0].frames, packet.frame)
    packet.verdict = ICMP_SENT      # dispatch: nothing left to do


cdef inline void _queue(Worker *worker, uint32_t port, Packet *packet) noexcept nogil:
    worker.queues[port][worker.queued[port]] = packet
    worker.queued[port] += 1


cdef void _dispatch(Worker *worker, Batch *batch) noexcept nogil:
    """Every packet of the batch leaves here: to a port, to the kernel, or back to the pool."""
    if _forward(worker, batch) < batch.count:
        _dispose(worker, batch)
    _hand_over(worker)


cdef uint32_t _forward(Worker *worker, Batch *batch) noexcept nogil:
    """Queue what passed for the port that its adjacency names; returns how many. What has none becomes TO_KERNEL."""
    cdef uint32_t index
    cdef uint32_t passed = 0
    cdef uint32_t found = NO_INDEX              # `adjacency` is this one
    cdef const Adjacency *adjacency = NULL      # NULL where it cannot be used
    cdef Packet *packet
    for index in range(batch.count):
        packet = &batch.packets[index]
        if unlikely(packet.verdict != PASS, 0):
            continue
        if unlikely(packet.adjacency != found, 0):
            found = packet.adjacency
            adjacency = &worker.tables.adjacencies[found] if found != NO_INDEX else NULL
            if adjacency != NULL and (not adjacency.valid or adjacency.port >= worker.port_count):
                adjacency = NULL
        if unlikely(adjacency == NULL, 0):
            packet.verdict = TO_KERNEL
            continue
        if adjacency.link_length:
            packet.data -= LINK_HEADER
            packet.length += LINK_HEADER
            memcpy(packet.data, adjacency.link_header, LINK_HEADER)
        _queue(worker, adjacency.port, packet)
        passed += 1
    worker.tables.worker.verdicts[<int>PASS] += passed
    return passed


cdef void _dispose(Worker *worker, Batch *batch) noexcept nogil:
    """What `_forward` left: to the kernel, or back to the pool."""
    cdef uint32_t index
    cdef Packet *packet
    for index in range(batch.count):
        packet = &batch.packets[index]
        if packet.verdict == PASS or packet.verdict == ICMP_SENT:
            continue
        if packet.verdict == TO_KERNEL or packet.verdict == BYPASSED:
            if worker.kernel != NULL:
                if unlikely(packet.length > worker.inside_mtu, 0) and _cut_for_kernel(worker, batch, packet):
                    continue
                worker.tables.worker.verdicts[packet.verdict] += 1
                _queue(worker, PORTS_MAX, packet)
                continue
            packet.verdict = DROP_NO_ROUTE
        _count(worker, packet)
        _release(worker, packet)


cdef bint _cut_for_kernel(Worker *worker, const Batch *batch, const Packet *packet) noexcept nogil:
    """Hand a packet that came out of a tunnel to the kernel in pieces: its raw sockets take none beyond a link's MTU.

    False where it may not be cut, or cannot be: the kernel will refuse it, which is counted.
    """
    cdef Batch *pieces = &worker.outer_pieces
    cdef uint32_t index
    if batch == pieces or packet.sa == NO_INDEX or not _came_in(worker, packet) or packet.data[0] >> 4 != 4 \
            or packet.data[6] & DF:
        return False
    pieces.packets[PIECES_MAX] = packet[0]
    pieces.count = fragment_packet(worker.ports[0].frames, &pieces.packets[PIECES_MAX], worker.inside_mtu, 0,
                                   pieces.packets)
    if pieces.count == 0:
        return False
    _hand_over(worker)
    worker.tables.worker.verdicts[<int>TO_KERNEL] += pieces.count
    worker.tables.worker.verdicts[<int>FRAGMENTED] += pieces.count - 1
    for index in range(pieces.count):
        _queue(worker, PORTS_MAX, &pieces.packets[index])
    _hand_over(worker)
    pieces.count = 0
    return True


cdef void _hand_over(Worker *worker) noexcept nogil:
    """All queues to their ports."""
    cdef uint32_t index
    for index in range(worker.port_count):
        if worker.queued[index]:
            _transmit(worker, worker.ports[index], index, DROP_TX_FULL)
    if worker.queued[PORTS_MAX]:
        _transmit(worker, worker.kernel, PORTS_MAX, DROP_KERNEL)


cdef void _transmit(Worker *worker, Port *port, uint32_t queue, uint8_t refused) noexcept nogil:
    """Hand a queue over; one flush and one more try where it did not all fit, then the rest is dropped."""
    cdef uint32_t count = worker.queued[queue]
    cdef uint32_t sent = port.transmit(port, worker.queues[queue], count)
    cdef uint32_t index
    if sent < count:
        port.flush(port)
        sent += port.transmit(port, &worker.queues[queue][sent], count - sent)
    for index in range(sent, count):
        worker.tables.worker.verdicts[refused] += 1
        frame_give(worker.ports[0].frames, worker.queues[queue][index].frame)
    worker.queued[queue] = 0


cdef bint _sleep(Worker *worker) noexcept nogil:
    """Wait for a packet or for stop_fd; True when the loop must end."""
    cdef pollfd fds[PORTS_MAX + 2]
    cdef uint32_t index
    cdef int ready
    cdef bint may_sleep = True
    cdef uint64_t now
    cdef Deal *deal = worker.deal
    cdef uint32_t count = worker.port_count + 1
    cdef int wait = DUMMY_TICK_MS if _makes_dummies(worker) else SLEEP_MS
    for index in range(worker.port_count):
        fds[index].fd = worker.ports[index].fd
        fds[index].events = POLLIN
        fds[index].revents = 0
        if not worker.ports[index].arm(worker.ports[index]):
            may_sleep = False
    fds[worker.port_count].fd = worker.stop_fd
    fds[worker.port_count].events = POLLIN
    fds[worker.port_count].revents = 0
    if deal != NULL:
        fds[count].fd = deal.wake_fds[deal.index]
        fds[count].events = POLLIN
        fds[count].revents = 0
        count += 1
        may_sleep = may_sleep and deal_may_sleep(deal)
    if may_sleep:
        worker.tables.worker.sleeps += 1
        tables_leave(worker.tables)
    ready = poll(fds, count, wait if may_sleep else 0)
    if may_sleep:
        tables_enter(worker.tables)
        now = now_ns()
        idle_woken(&worker.idle, now)
        if now - worker.lost_asked >= LOST_NS:
            worker.lost_asked = now
            _count_lost(worker)
    if deal != NULL:
        deal_woken(deal, fds[count - 1].revents != 0)
    return ready > 0 and fds[worker.port_count].revents != 0


cdef void run(Worker *worker) noexcept nogil:
    """Until stop_fd speaks."""
    cdef uint32_t idle = 0
    cdef uint64_t rounds = 0
    tables_enter(worker.tables)
    while True:
        rounds += 1
        if step(worker):
            idle = 0
            idle_over(&worker.idle)
        else:
            idle += 1
        if idle < IDLE_LOOPS and rounds & STOP_CHECK:
            continue
        worker.tables.worker.loops = rounds
        worker.tables.worker.heartbeat = rounds
        if unlikely(_makes_dummies(worker), 0):
            _send_dummies(worker, now_ns())
        if rounds & STOP_CHECK == 0:
            _count_lost(worker)
            if _stopped(worker):
                break
        if idle >= IDLE_LOOPS:
            idle = 0
            if not idle_enough(&worker.idle, now_ns()):
                sched_yield()   # to the kernel's network thread above all: it may hold what we wait for
                continue
            if _sleep(worker):
                break
    _drain(worker)
    tables_leave(worker.tables)


cdef void _count_lost(Worker *worker) noexcept nogil:
    """Count what the kernel threw away before it came to us. Asked now and then: each port takes a system call."""
    cdef Port *port
    cdef uint32_t index
    cdef uint64_t lost
    for index in range(worker.port_count):
        port = worker.ports[index]
        if port.lost == NULL:
            continue
        lost = port.lost(port)
        if lost > port.lost_before:     # the kernel's counters of sockets begin again after 2^32
            worker.tables.worker.verdicts[<uint32_t>DROP_NO_FRAME] += lost - port.lost_before
        port.lost_before = lost


cdef void _drain(Worker *worker) noexcept nogil:
    """Finish what was dealt: at the latest when helpers count as stopped."""
    cdef uint32_t index
    if worker.deal == NULL:
        return
    while deal_flying(worker.deal):
        _settle(worker, 0)
    for index in range(worker.port_count):
        worker.ports[index].flush(worker.ports[index])


cdef bint _stopped(Worker *worker) noexcept nogil:
    cdef pollfd fd
    fd.fd = worker.stop_fd
    fd.events = POLLIN
    fd.revents = 0
    return poll(&fd, 1, 0) > 0


cdef class Loop:
    """A worker's loop over its ports.

    `view` must have been opened with this worker's index; `ports` in the order that Adjacency.port counts, all on
    one Pool; `kernel` takes what has no adjacency (None: such packets are dropped as "no_route"); `stop_fd`
    becomes readable or hangs up when the loop must end (-1: only `step` is used); `team`, whose pool it must be, shares
    the work with other workers; without `spin` it sleeps as soon as there is nothing to do. Raises ValueError for more
    than PORTS_MAX ports or ports of different pools, and what Team.adopt does.
    """

    def __cinit__(self, TablesView view, EngineHandle engine, ports, PortHandle kernel=None, int stop_fd=-1,
                  Team team=None, *, bint spin=True):
        cdef PortHandle handle
        cdef uint32_t index
        if not 1 <= len(ports) < PORTS_MAX:
            raise ValueError(f"{len(ports)} ports; a worker takes 1 to {PORTS_MAX}")
        if view.c.worker == NULL:
            raise ValueError("the tables were opened without a worker index")
        self.worker = <Worker *>aligned_alloc(64, (sizeof(Worker) + 63) & ~<size_t>63)
        if self.worker == NULL:
            raise MemoryError("worker state")
        memset(self.worker, 0, sizeof(Worker))
        self.view = view
        self.keep = (engine, list(ports), kernel, team)
        self.worker.tables = &view.c
        self.worker.engine = &engine.c
        self.worker.stop_fd = stop_fd
        idle_begin(&self.worker.idle, spin)
        self.worker.inside_mtu = 0xFFFF
        self.worker.port_count = len(ports)
        for index in range(<uint32_t>len(ports)):
            handle = ports[index]
            if handle.pool is not ports[0].pool:
                raise ValueError(f"port {handle.name} has a frame pool of its own; all ports of a worker share one")
            handle.c.index = <uint8_t>index
            handle.c.counters = &view.c.worker.ports[index]
            self.worker.ports[index] = &handle.c
            if handle.c.role == ROLE_PROTECTED and handle.c.mtu < self.worker.inside_mtu:
                self.worker.inside_mtu = handle.c.mtu
        if kernel is not None:
            kernel.c.counters = &view.c.worker.ports[PORTS_MAX - 1]
            self.worker.kernel = &kernel.c
        if team is not None:
            if team.pool is not ports[0].pool:
                raise ValueError("the ports are not on the team's frames")
            team.adopt(view, engine)
            team.c.port_count = self.worker.port_count
            self.worker.deal = &team.c

    def __dealloc__(self):
        free(self.worker)

    def run(self) -> None:
        """Work until stop_fd becomes readable or hangs up. The GIL is free meanwhile."""
        with nogil:
            run(self.worker)

    def step(self, uint32_t rounds=1) -> int:
        """`rounds` rounds without sleep; returns the packets received. For tests, pcap and benches: no dummies."""
        cdef uint64_t received = 0
        cdef uint32_t _round
        with nogil:
            tables_enter(self.worker.tables)
            for _round in range(rounds):
                received += step(self.worker)
            _drain(self.worker)
            tables_leave(self.worker.tables)
        return received

    def send_dummies(self, uint64_t now) -> int:
        """Send the dummy packets that are due at `now` (nanoseconds of any one clock); their number. For tests."""
        cdef uint32_t sent
        with nogil:
            tables_enter(self.worker.tables)
            sent = _send_dummies(self.worker, now)
            tables_leave(self.worker.tables)
        return sent

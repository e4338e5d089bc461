"""Every verdict a packet can get, and the counters that remember them.

One name per reason: the enumerator DROP_REPLAY, the counter, the metric, the log line and
the test all say "replay" (`counters.pyx` derives the names, so they cannot drift apart).
The reasons below SA_VERDICTS are known to belong to one SA and are counted there as well.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    SA_VERDICTS = 28     # verdicts 0 .. SA_VERDICTS-1 are also counted per SA
    VERDICTS = 64        # size of the per-worker array; more than the enumerators in use
    PORTS_MAX = 8        # ports of one worker

cpdef enum Verdict:
    # Not a drop.
    PASS = 0                    # goes out by its adjacency
    # Drops that belong to one SA.
    DROP_SEQUENCE_EXHAUSTED     # RFC 4303 3.3.3: the number space of the SA is used up
    DROP_SEQUENCE_UNRESERVED    # no number below the persisted high-water mark is left
    DROP_TOO_BIG                # inner packet over the SA's effective MTU (an ICMP error answers it)
    DROP_HEADROOM               # frame has no room for the outer headers or the trailer
    DROP_ENCAP_MISMATCH         # UDP-encapsulated, and the SA is not (or the reverse)
    DROP_WRONG_ADDRESS          # SPI known, outer destination is not this SA's; out: ends are not its transport's
    DROP_ESP_TRUNCATED          # too short for header, IV, trailer and ICV
    DROP_ESP_MISALIGNED         # ciphertext is no multiple of the cipher's block
    DROP_REPLAY                 # sequence number was accepted before
    DROP_REPLAY_OLD             # sequence number lies left of the window, or is 0
    DROP_INTEGRITY              # ICV does not match
    DROP_PADDING                # pad length past the payload, or pad bytes not 1, 2, 3, ...
    DROP_DUMMY                  # next header 59, RFC 4303 2.6: made to be discarded
    DROP_NEXT_HEADER            # neither 4 nor 41 in tunnel mode
    DROP_INNER_MALFORMED        # decrypted packet is no well-formed IP packet
    DROP_INNER_SELECTORS        # decrypted packet is outside the SA's selectors, RFC 4301 5.2
    DROP_ECN                    # RFC 6040: outer CE over inner Not-ECT
    DROP_AH_TRUNCATED           # too short for an AH header and its ICV
    DROP_AH_LENGTH              # AH's own length is not that of its ICV, padded
    DROP_CRYPTO                 # the engine failed (never seen; a bug or broken hardware)
    DROP_BUNDLE                 # AH and ESP of an SA bundle, one without the other
    # Drops of no SA in particular.
    DROP_RUNT = SA_VERDICTS     # shorter than its link or IP header
    DROP_NOT_IP                 # ethertype is not IPv4 or IPv6
    DROP_VLAN                   # an 802.1Q tag: ports are untagged, VLANs are interfaces of their own
    DROP_VERSION                # IP version does not match the ethertype, or is unknown
    DROP_HEADER_LENGTH          # IHL below 5 or past the packet
    DROP_LENGTH                 # IP total length past the frame or below the header
    DROP_CHECKSUM               # IPv4 header checksum is wrong
    DROP_FRAGMENT               # an outer fragment reached the dataplane, or any for transport mode
    DROP_EXTENSION_HEADER       # IPv6 extension headers: truncated, too many, or unknown
    DROP_IP_OPTION              # AH: IPv4 options that cannot be followed, or a source route that goes on
    DROP_TTL                    # TTL or hop limit used up (an ICMP error answers it)
    DROP_NO_POLICY              # no SPD entry: discard by default, RFC 4301 5.1
    DROP_POLICY_DISCARD         # an SPD entry says discard
    DROP_POLICY_NO_SA           # an SPD entry says protect and has no SA yet
    DROP_NO_SA                  # unknown SPI, or the SPI of an SA of the other protocol
    DROP_NOT_ESP                # neither ESP, AH nor ESP in UDP on an unprotected port
    DROP_CLEARTEXT              # came in clear, and the SPD wants it protected (or discarded): RFC 4301 5.2
    DROP_NAT_KEEPALIVE          # the 0xFF byte of RFC 3948 2.3
    DROP_NO_ROUTE               # no route or adjacency, and no way to ask the kernel
    DROP_KERNEL                 # handed to the kernel, which refused it
    DROP_TX_FULL                # the transmit ring stayed full
    DROP_TX_ERROR               # the kernel refused the packet on transmit
    DROP_NO_FRAME               # thrown away by the kernel: no free frame to receive into, too short, or no room
    DROP_WORKER_LOST            # dealt to another worker, which died or was stopped (ext/deal.pyx)
    DROP_ICMP_LIMIT             # an ICMP error was due and the rate limit was reached
    DROPS_END                   # one past the last drop
    # Not drops: counted by name too.
    DUMMY_SENT = 59             # a dummy packet was made (RFC 4303 2.6); it passes as any other
    TO_KERNEL = 60              # handed to the kernel: no adjacency yet, or traffic for this host
    BYPASSED = 61               # an SPD entry says bypass: handed to the kernel in clear
    ICMP_SENT = 62              # turned into the ICMP error that answers it
    FRAGMENTED = 63             # a packet came of another by fragmentation: once for each piece beyond the first

cdef struct PortCounters:       # 64 bytes
    uint64_t rx_packets
    uint64_t rx_bytes           # IP bytes
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t rx_syscalls
    uint64_t tx_syscalls
    uint64_t tx_full            # times the ring or socket took fewer than it was offered
    uint64_t tx_errors          # packets that the port took and the kernel then refused (DROP_TX_ERROR)

cdef struct WorkerCounters:     # 2048 bytes, written by one worker, read by control
    uint64_t seen_generation    # TablesHeader.generation last read; QUIESCENT while it sleeps
    uint64_t loops
    uint64_t sleeps
    uint64_t heartbeat          # loop count mirrored before each sleep; 0 until the loop runs
    uint64_t pid
    uint64_t dealt              # batches offered to other workers
    uint64_t helped             # batches opened for other workers
    uint64_t moved              # inbound SAs whose packets came from elsewhere than they should (follow.pyx)
    uint64_t reserved[56]
    uint64_t verdicts[VERDICTS]
    PortCounters ports[PORTS_MAX]
    uint64_t tail[64]

cdef struct SaCounters:         # 256 bytes, one per (worker, SA)
    uint64_t packets            # passed
    uint64_t bytes              # of inner IP packets passed
    uint64_t last_used          # CLOCK_MONOTONIC nanoseconds of the last batch with a passed packet
    uint64_t reserved
    uint64_t drops[SA_VERDICTS]

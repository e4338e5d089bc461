"""ESP and AH over the kernel's own sockets: ESP in UDP, and both as IP protocols 50 and 51."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ext.linuxnet cimport iovec, mmsghdr, sockaddr_in6
from ext.packet cimport BATCH_MAX, PortHandle
from ext.rawsock cimport Sender

cdef enum:
    MESSAGES = 32               # messages per recvmmsg(): each may hold 64 KB
    CONTROL_SIZE = 128          # bytes of control messages per message
    OUTER_MAX = 48              # bytes of the longest synthesized header: IPv6 and UDP
    RUN_MAX = 64                # datagrams that one UDP_SEGMENT send may carry (UDP_MAX_SEGMENTS of old kernels)
    RUN_BYTES = 65000           # and their bytes, below any limit of IP

cdef enum Segmenting:           # whether UDP_SEGMENT is used
    SEGMENTING_OFF = 0          # the kernel cannot: one datagram per message
    SEGMENTING_ON = 1
    SEGMENTING_DOUBTED = 2      # a run was refused: the next single datagram shows whether it was for being a run

cdef struct Intake:             # one socket that is read
    int fd                      # -1: family not served
    uint8_t family              # 4 or 6
    uint8_t udp                 # 1: UDP; 0: raw
    uint8_t outer               # bytes of header to synthesize before the payload: 28, 48, 40 or 0
    uint8_t protocol            # of the packets that come by it: PROTOCOL_UDP, PROTOCOL_ESP or PROTOCOL_AH
    uint8_t local_port[2]       # UDP, network order
    uint32_t received           # messages of the last recvmmsg()
    uint32_t taken              # of these, how many have been dealt with
    uint32_t busy               # the last look at it found something
    # Of the message that is being cut (UDP_GRO): all its datagrams stand one after the other.
    const uint8_t *whole
    uint32_t whole_length       # bytes
    uint32_t whole_done         # bytes cut off so far
    uint32_t whole_size         # bytes per datagram
    uint8_t header[OUTER_MAX]   # goes before each
    uint8_t *overflow           # per message SUPER_HEAD + SUPER_MAX bytes
    uint64_t frames[MESSAGES]   # per message the frame it is received into, or NO_FRAME
    iovec parts[MESSAGES][2]
    sockaddr_in6 names[MESSAGES]
    uint8_t control[MESSAGES][CONTROL_SIZE]
    mmsghdr messages[MESSAGES]

cdef struct Pair:               # the sockets of both families
    Intake ipv4
    Intake ipv6
    uint32_t turn               # calls of receive
    uint32_t ipv6_first         # 0 or 1: the family that brought packets last is looked at first

cdef struct Seldom:             # when a port that has little to bring is looked at
    uint32_t on                 # 0: always
    uint32_t calls
    uint32_t busy               # it brought something, or the worker has slept

cdef struct UdpState:
    Pair sockets
    Seldom seldom
    uint32_t segmenting         # Segmenting
    uint64_t too_big            # datagrams refused with EMSGSIZE
    uint32_t counts[BATCH_MAX]  # packets in each message
    iovec tx_parts[BATCH_MAX]
    sockaddr_in6 tx_names[BATCH_MAX]
    uint8_t tx_control[BATCH_MAX][CONTROL_SIZE]
    mmsghdr tx[BATCH_MAX]

cdef struct RawState:
    Pair sockets                # of ESP
    Pair ah
    Seldom seldom
    uint32_t turn               # calls of receive
    uint32_t ah_busy            # the last look at AH's sockets found something
    Sender sender

cdef class UdpPort(PortHandle):
    cdef UdpState state
    cdef object watch           # epoll of both sockets

cdef class RawPort(PortHandle):
    cdef RawState state
    cdef object watch           # epoll of both sockets

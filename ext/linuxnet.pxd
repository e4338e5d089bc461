"""Socket calls, structs and constants of Linux: the used subset, extern only. Functions return -1 and errno."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t readv(int fd, const iovec *parts, int count)
    ssize_t writev(int fd, const iovec *parts, int count)

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        unsigned short sa_family
    struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len    # bytes received or sent
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    enum:
        AF_INET
        AF_INET6
        MSG_DONTWAIT
        MSG_TRUNC
        SOL_SOCKET
        SO_SNDBUF
        SO_SNDBUFFORCE
        SO_MEMINFO              # an array of numbers, indexed by those of <linux/sock_diag.h>
        SOL_XDP
    ssize_t sendto(int fd, const void *buffer, size_t length, int flags, const sockaddr *to, uint32_t to_length)
    ssize_t recvfrom(int fd, void *buffer, size_t length, int flags, sockaddr *sender, uint32_t *sender_length)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int getsockopt(int fd, int level, int name, void *value, uint32_t *length)
    int setsockopt(int fd, int level, int name, const void *value, uint32_t length)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *current)
    uint8_t *CMSG_DATA(cmsghdr *current)
    size_t CMSG_SPACE(size_t length)
    size_t CMSG_LEN(size_t length)

cdef extern from "<linux/sock_diag.h>" nogil:
    enum:
        SK_MEMINFO_DROPS
        SK_MEMINFO_VARS

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr         # network order
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port       # network order
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port      # network order
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst    # send: source address
        in_addr ipi_addr        # receive: destination address of the header
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    enum:
        IPPROTO_IP
        IPPROTO_IPV6
        IPPROTO_UDP
        IP_PKTINFO
        IP_TOS
        IPV6_PKTINFO
        IPV6_TCLASS
        IPV6_HOPLIMIT

cdef extern from "<netinet/udp.h>" nogil:
    enum:
        UDP_SEGMENT
        UDP_GRO

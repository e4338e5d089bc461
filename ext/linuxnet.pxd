"""Socket calls and constants of Linux: the used subset, extern only. Functions return -1 and errno."""

from libc.stdint cimport uint32_t

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    enum:
        MSG_DONTWAIT
        SOL_SOCKET
        SO_SNDBUF
        SO_SNDBUFFORCE
        SOL_XDP
    ssize_t sendto(int fd, const void *buffer, size_t length, int flags, const sockaddr *to, uint32_t to_length)
    ssize_t recvfrom(int fd, void *buffer, size_t length, int flags, sockaddr *sender, uint32_t *sender_length)
    int getsockopt(int fd, int level, int name, void *value, uint32_t *length)
    int setsockopt(int fd, int level, int name, const void *value, uint32_t length)

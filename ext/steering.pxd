"""The steering program of one interface, as other extension modules see it."""

from ext.libbpf cimport bpf_object, bpf_tc_hook, bpf_tc_opts

cdef class Steering:
    """See steering.pyx."""
    cdef bpf_object *object
    cdef unsigned int xdp_flags         # the mode of the XDP attachment; 0: none
    cdef bpf_tc_hook hook               # the clsact qdisc's ingress side
    cdef bpf_tc_opts filter
    cdef bint filtering                 # the clsact filter is in place
    cdef bint made_clsact               # and the qdisc under it is ours
    cdef object claim                   # the socket whose name says that the interface is ours
    cdef readonly str interface
    cdef readonly int ifindex
    cdef readonly str mode              # native, generic, clsact; "" when not attached
    cdef readonly str refused           # why a better mode was not taken; "" when it was
    cdef dict _entries                  # map name -> set of keys in it

    cdef int _map(self, const char *name) except -1
    cdef int _program(self, const char *name) except -1
    cdef int _claim(self) except -1
    cdef int _attach_mode(self, unsigned int flags) except -1
    cdef int _left_behind(self, unsigned int flags) except -2
    cdef void _prepare_clsact(self)
    cdef void _detach(self)
    cdef int _replace(self, str name, dict wanted) except -1

"""The steering program of one interface, as other extension modules see it."""

from ext.libbpf cimport bpf_object, bpf_tc_hook, bpf_tc_opts

cdef class Steering:
    """See steering.pyx."""
    cdef bpf_object *object
    cdef int link_fd                    # of the BPF link; -1: none
    cdef bpf_tc_hook hook               # clsact, on kernels without tcx
    cdef bpf_tc_opts filter
    cdef bint filtering                 # the clsact filter is in place
    cdef bint made_clsact               # and the qdisc under it is ours
    cdef readonly str interface
    cdef readonly int ifindex
    cdef readonly str mode              # native, generic, tcx, clsact; "" when not attached
    cdef readonly str refused           # why a better mode was not taken; "" when it was
    cdef dict _entries                  # map name -> set of keys in it

    cdef int _map(self, const char *name) except -1
    cdef int _program(self, const char *name) except -1
    cdef int _refuse_second(self) except -1
    cdef int _link(self, const char *program, int attach_type, unsigned int flags) except -1
    cdef int _attach_clsact(self) except -1
    cdef void _prepare_clsact(self)
    cdef void _detach(self)
    cdef int _replace(self, str name, dict wanted) except -1

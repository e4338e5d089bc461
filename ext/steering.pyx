"""Steering: the BPF program of one interface, loaded, fed and attached.

    Steering(object file, interface, role) -> attach_xdp() or attach_tc() -> set_locals(), set_remotes(),
    set_encap_ports() as often as they change -> close()

Each interface loads the object for itself, so each has its own maps. Fill the maps before attaching, or the
first packets go to the kernel. What is attached stays until `close`, also when the process is killed (so no BPF
link, which the kernel would undo): steered frames then have no socket and are dropped, where the kernel would route
them on in clear. The next attach takes the place of what was left; only one living process can have an interface.

Limits: control-plane code, one thread, Python throughout; nothing here sees a packet. Needs CAP_BPF,
CAP_PERFMON and CAP_NET_ADMIN; CAP_SYS_ADMIN to take over at XDP. The interface is looked up in the network namespace
of the calling thread; attach and `close` must be called in the same one.
"""

from libc.errno cimport EADDRINUSE, EBUSY, EEXIST, ENOENT, ENOSPC, EOPNOTSUPP, EPERM, ERANGE, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ext.libbpf cimport (
    BPF_TC_EGRESS, BPF_TC_F_REPLACE, BPF_TC_INGRESS, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE,
    XDP_FLAGS_UPDATE_IF_NOEXIST, bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem,
    bpf_obj_get_info_by_fd, bpf_object__close, bpf_object__find_map_fd_by_name, bpf_object__find_program_by_name,
    bpf_object__load, bpf_object__open_file, bpf_prog_get_fd_by_id, bpf_prog_info, bpf_program, bpf_program__fd,
    bpf_program__flags, bpf_program__set_flags, bpf_tc_attach, bpf_tc_attach_point, bpf_tc_detach, bpf_tc_hook_create,
    bpf_tc_hook_destroy, bpf_xdp_attach, bpf_xdp_attach_opts, bpf_xdp_detach, bpf_xdp_query_id,
    libbpf_num_possible_cpus,
)

import ipaddress
import os
import socket

cdef extern from *:
    """
    #include <stdarg.h>
    #include <stdio.h>
    #include <string.h>
    #include <bpf/libbpf.h>

    /* libbpf's own words, kept for our error messages instead of going to stderr: the last warnings. */
    static char libbpf_said[2048];

    static int libbpf_keep(enum libbpf_print_level level, const char *format, va_list arguments)
    {
        size_t used = strlen(libbpf_said);

        if (level != LIBBPF_WARN)
            return 0;
        if (used > sizeof(libbpf_said) / 2)
            used = 0;
        return vsnprintf(libbpf_said + used, sizeof(libbpf_said) - used, format, arguments);
    }

    static void libbpf_listen(void) { libbpf_set_print(libbpf_keep); }
    static void libbpf_forget(void) { libbpf_said[0] = 0; }
    """
    void libbpf_listen()
    void libbpf_forget()
    const char *libbpf_said

cdef enum:
    BPF_F_XDP_HAS_FRAGS = 1 << 5    # of the program: it takes frames of several buffers
    # Where our clsact filter sits, so that a later attach finds and replaces what a killed process left.
    TC_HANDLE = 1
    TC_PRIORITY = 1

# In the order of `enum reason` in bpf/steer.bpf.c.
REASONS = (
    "steered", "no_socket", "multicast", "vlan", "other_host", "not_ip", "short", "link_local", "unmatched",
    "local", "not_local", "ike", "fragment",
)

_HINTS = {
    EOPNOTSUPP: "the driver does not support it",
    EPERM: "it needs CAP_BPF and CAP_NET_ADMIN",
    EBUSY: "another XDP program is attached (`bpftool net` shows it)",
    EEXIST: "another XDP program is attached in another mode (`bpftool net` shows it)",
    ERANGE: "the MTU is too large for XDP; on veth the peer's may be 3506 at most, unless ours is larger than 3498",
    ENOSPC: "the peer has more transmit queues than this interface has receive queues; "
            "`ethtool -L {interface} rx N` gives it more, up to its numrxqueues",
}

libbpf_listen()


cdef object _failure(int code, str what):
    """The OSError for errno `code`, with what libbpf had to say about it."""
    said = " ".join(libbpf_said.decode(errors="replace").split())
    libbpf_forget()
    return OSError(code, f"{what}: {os.strerror(code)}" + (f" (libbpf: {said})" if said else ""))


def map_address(address) -> bytes:
    """16 bytes of an address, IPv4 as ::ffff:a.b.c.d: the key of `locals`."""
    packed = ipaddress.ip_address(address).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def map_network(network) -> bytes:
    """The key of `remotes`: prefix length in host order, then the mapped address."""
    network = ipaddress.ip_network(network)
    length = network.prefixlen + (96 if network.version == 4 else 0)
    return length.to_bytes(4, "little") + map_address(network.network_address)


cdef class Steering:
    """The steering program of one interface.

    `path` is the object file, `role` 0 protected or 1 unprotected (ext.packet.Role), `jumbo` whether it takes frames of
    several buffers at XDP, which changes what a veth pair's other end may send. Raises OSError when the object cannot
    be read or the kernel refuses it, or when there is no such interface.
    """

    def __cinit__(self, str path, str interface, int role, *, bint jumbo=False):
        self.object = NULL
        self.xdp_flags = 0
        self.claim = None

    def __init__(self, str path, str interface, int role, *, bint jumbo=False):
        cdef int error
        cdef bpf_program *program
        cdef uint32_t zero = 0
        cdef uint32_t value = role
        if role not in (0, 1):
            raise ValueError(f"role is {role}; it must be 0 (protected) or 1 (unprotected)")
        self.interface = interface
        self.ifindex = socket.if_nametoindex(interface)
        self.mode = ""
        self.refused = ""
        self._entries = {"locals": set(), "remotes": set(), "encap_ports": set()}
        libbpf_forget()
        self.object = bpf_object__open_file(path.encode(), NULL)
        if self.object == NULL:
            raise _failure(errno, f"open BPF object {path}")
        if jumbo:
            program = bpf_object__find_program_by_name(self.object, b"steer_xdp")
            bpf_program__set_flags(program, bpf_program__flags(program) | <uint32_t>BPF_F_XDP_HAS_FRAGS)
        error = bpf_object__load(self.object)
        if error:
            raise _failure(-error, f"load BPF object {path} for {interface}")
        if bpf_map_update_elem(self._map(b"config"), &zero, &value, 0):
            raise _failure(errno, f"set the role of {interface}")

    def __dealloc__(self):
        self._detach()
        if self.object != NULL:
            bpf_object__close(self.object)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    cdef int _map(self, const char *name) except -1:
        """Descriptor of a map."""
        if self.object == NULL:
            raise ValueError(f"the steering program of {self.interface} is closed")
        cdef int fd = bpf_object__find_map_fd_by_name(self.object, name)
        if fd < 0:
            raise _failure(-fd, f"find map {name.decode()}")
        return fd

    cdef int _program(self, const char *name) except -1:
        """Descriptor of a program."""
        if self.object == NULL:
            raise ValueError(f"the steering program of {self.interface} is closed")
        cdef int fd = bpf_program__fd(bpf_object__find_program_by_name(self.object, name))
        if fd < 0:
            raise _failure(-fd, f"find program {name.decode()}")
        return fd

    @property
    def xsks_fd(self) -> int:
        """Descriptor of the XSKMAP, good until `close`: workers put their sockets in at their queue."""
        return self._map(b"xsks")

    def socket_filter_fd(self) -> int:
        """A new descriptor, the caller's to close, of the program for SO_ATTACH_BPF: a packet socket then sees
        steered frames only."""
        return os.dup(self._program(b"steer_socket"))

    def attach_xdp(self, str mode="auto") -> str:
        """Attach at XDP; returns and keeps the mode: "native" or "generic".

        `mode` is "native", "generic", or "auto": native, else generic; `refused` then says why not native.
        Raises OSError naming every mode tried.
        """
        modes = {"auto": ("native", "generic"), "native": ("native",), "generic": ("generic",)}
        if mode not in modes:
            raise ValueError(f"XDP mode is {mode!r}; it must be auto, native or generic")
        self._claim()
        cdef int error = 0
        tried = []
        for name in modes[mode]:
            error = self._attach_mode(XDP_FLAGS_DRV_MODE if name == "native" else XDP_FLAGS_SKB_MODE)
            if error == 0:
                self.mode = name
                self.refused = "; ".join(tried)
                return name
            hint = _HINTS.get(error, "").format(interface=self.interface)
            tried.append(f"{name} XDP: {os.strerror(error)}" + (f": {hint}" if hint else ""))
            if error == EBUSY or error == EPERM:
                break   # no mode mends that
        self._detach()
        raise OSError(error, f"attach to {self.interface}: " + "; ".join(tried))

    cdef int _attach_mode(self, unsigned int flags) except -1:
        """Attach at XDP in one mode, in place of what a killed process of ours has left; 0, or errno."""
        cdef bpf_xdp_attach_opts opts
        cdef int program = self._program(b"steer_xdp")
        cdef int error = bpf_xdp_attach(self.ifindex, program, flags | XDP_FLAGS_UPDATE_IF_NOEXIST, NULL)
        cdef unsigned int other
        cdef int left
        if error == -EBUSY or error == -EEXIST:
            # Busy: this mode is taken, and one program replaces the other between two frames. Exists: the other mode
            # is, and has to go first; for that moment the kernel routes what we should steer.
            other = flags if error == -EBUSY else flags ^ XDP_FLAGS_DRV_MODE ^ XDP_FLAGS_SKB_MODE
            left = self._left_behind(other)
            if left >= 0:
                memset(&opts, 0, sizeof(opts))
                opts.sz = sizeof(opts)
                opts.old_prog_fd = left
                if other == flags:
                    error = bpf_xdp_attach(self.ifindex, program, flags, &opts)
                else:
                    error = bpf_xdp_detach(self.ifindex, other, &opts)
                    if error == 0:
                        error = bpf_xdp_attach(self.ifindex, program, flags | XDP_FLAGS_UPDATE_IF_NOEXIST, NULL)
                os.close(left)
        libbpf_forget()
        if error == 0:
            self.xdp_flags = flags
        return -error

    cdef int _left_behind(self, unsigned int flags) except -2:
        """Descriptor of the program attached in this mode if it is a steering program; else -1."""
        cdef bpf_prog_info info
        cdef uint32_t length = sizeof(info)
        cdef uint32_t number = 0
        cdef int fd
        if bpf_xdp_query_id(self.ifindex, flags, &number) or number == 0:
            return -1
        fd = bpf_prog_get_fd_by_id(number)
        if fd < 0:
            return -1
        memset(&info, 0, sizeof(info))
        # The interface is claimed, so no living process has put it there.
        if bpf_obj_get_info_by_fd(fd, &info, &length) == 0 and info.name == b"steer_xdp":
            return fd
        os.close(fd)
        return -1

    def attach_tc(self) -> str:
        """Attach at tc ingress, where steered frames are shot; returns and keeps the mode: "clsact".

        Not tcx, the newer way in: it knows links only by descriptor or by pins, and neither outlives us everywhere.
        """
        self._claim()
        cdef int error
        self._prepare_clsact()
        error = bpf_tc_hook_create(&self.hook)
        if error and error != -EEXIST:
            self._detach()
            raise _failure(-error, f"attach to {self.interface}: clsact")
        self.made_clsact = error == 0
        self.filter.prog_fd = self._program(b"steer_tc")
        self.filter.flags = BPF_TC_F_REPLACE
        libbpf_forget()     # it reports a clsact that existed as a warning
        error = bpf_tc_attach(&self.hook, &self.filter)
        if error:
            self._detach()
            raise _failure(-error, f"attach to {self.interface}: tc ingress filter")
        self.filtering = True
        self.mode = "clsact"
        return self.mode

    cdef int _claim(self) except -1:
        """Make the interface ours among living processes: a socket's name, which the kernel frees however we end."""
        if self.mode:
            raise ValueError(f"the steering program of {self.interface} is attached already ({self.mode})")
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # Abstract names belong to a network namespace, as interface indices do.
            claim.bind(f"\0esplanade/steering/{self.ifindex}")
        except OSError as error:
            claim.close()
            if error.errno != EADDRINUSE:
                raise
            raise OSError(EBUSY, f"attach to {self.interface}: another gateway that runs has it") from None
        self.claim = claim
        return 0

    cdef void _prepare_clsact(self):
        memset(&self.hook, 0, sizeof(self.hook))
        self.hook.sz = sizeof(self.hook)
        self.hook.ifindex = self.ifindex
        self.hook.attach_point = BPF_TC_INGRESS
        memset(&self.filter, 0, sizeof(self.filter))
        self.filter.sz = sizeof(self.filter)
        self.filter.handle = TC_HANDLE
        self.filter.priority = TC_PRIORITY

    cdef void _detach(self):
        cdef bpf_xdp_attach_opts opts
        if self.xdp_flags:
            memset(&opts, 0, sizeof(opts))
            opts.sz = sizeof(opts)
            # Only if it is still ours that sits there.
            opts.old_prog_fd = bpf_program__fd(bpf_object__find_program_by_name(self.object, b"steer_xdp"))
            bpf_xdp_detach(self.ifindex, self.xdp_flags, &opts)
            self.xdp_flags = 0
            libbpf_forget()
        if self.filtering:
            self._prepare_clsact()
            bpf_tc_detach(&self.hook, &self.filter)
            if self.made_clsact:
                self.hook.attach_point = <bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS)
                bpf_tc_hook_destroy(&self.hook)
            self.filtering = False
            libbpf_forget()
        if self.claim is not None:
            self.claim.close()
            self.claim = None

    def close(self) -> None:
        """Detach and unload. Sockets in the XSKMAP stay open; they receive nothing more."""
        self._detach()
        self.mode = ""
        if self.object != NULL:
            bpf_object__close(self.object)
            self.object = NULL

    def leave(self) -> None:
        """Unload and stay attached, as a killed process would: what is steered is dropped until the next attach."""
        self.xdp_flags = 0
        self.filtering = False
        self.close()

    def set_locals(self, addresses) -> None:
        """Make `addresses` (any ipaddress form) the host's own, while packets flow."""
        self._replace("locals", {map_address(address): 1 for address in addresses})

    def set_remotes(self, networks) -> None:
        """Make `networks` what a protected interface steers, while packets flow."""
        wanted = [ipaddress.ip_network(network) for network in networks]
        self._replace("remotes", {map_network(network): network.version for network in wanted})

    def set_encap_ports(self, ports) -> None:
        """Make `ports` (numbers) the UDP destination ports that carry ESP, while packets flow."""
        self._replace("encap_ports", {int(port).to_bytes(2, "big"): 1 for port in ports})

    cdef int _replace(self, str name, dict wanted) except -1:
        """Add what is new, then remove what is old: what is in both is never missing. Raises OSError; entries
        written until then stay, and a later call starts from there."""
        cdef int fd = self._map(name.encode())
        cdef bytes key
        cdef uint8_t value
        cdef set present = self._entries[name]
        for key, number in wanted.items():
            if key in present:
                continue
            value = number
            if bpf_map_update_elem(fd, <const char *>key, &value, 0):
                raise _failure(errno, f"add to {name} of {self.interface} (it holds {len(present)})")
            present.add(key)
        for key in present - wanted.keys():
            if bpf_map_delete_elem(fd, <const char *>key) and errno != ENOENT:
                raise _failure(errno, f"remove from {name} of {self.interface}")
            present.discard(key)
        return 0

    def counts(self) -> dict:
        """Frames by reason since loading, over all CPUs: "steered" went to a socket (or, at tc, to the packet
        socket only), "no_socket" was dropped for want of one, all others were passed to the kernel."""
        cdef int fd = self._map(b"counts")
        cdef int cpus = libbpf_num_possible_cpus()
        cdef uint32_t index
        cdef int cpu
        cdef uint64_t total
        cdef uint64_t *values = <uint64_t *>calloc(cpus, sizeof(uint64_t))
        if values == NULL:
            raise MemoryError(f"counters of {cpus} CPUs")
        totals = {}
        try:
            for index, name in enumerate(REASONS):
                if bpf_map_lookup_elem(fd, &index, values):
                    raise _failure(errno, f"read counts of {self.interface}")
                total = 0
                for cpu in range(cpus):
                    total += values[cpu]
                totals[name] = total
        finally:
            free(values)
        return totals

"""libbpf: the used subset of bpf/libbpf.h and bpf/bpf.h. Functions return a negative errno, or NULL and errno."""

from libc.stdint cimport uint32_t

cdef extern from "<linux/bpf.h>" nogil:
    struct bpf_prog_info:
        char name[16]           # cut to 15 characters

cdef extern from "<linux/if_link.h>" nogil:
    enum:
        XDP_FLAGS_SKB_MODE
        XDP_FLAGS_DRV_MODE
        XDP_FLAGS_UPDATE_IF_NOEXIST

cdef extern from "<bpf/libbpf.h>" nogil:
    struct bpf_object:
        pass
    struct bpf_program:
        pass
    struct bpf_map:
        pass

    bpf_object *bpf_object__open_file(const char *path, const void *opts)
    int bpf_object__load(bpf_object *obj)
    void bpf_object__close(bpf_object *obj)
    bpf_program *bpf_object__find_program_by_name(const bpf_object *obj, const char *name)
    int bpf_object__find_map_fd_by_name(bpf_object *obj, const char *name)
    int bpf_program__fd(const bpf_program *prog)
    uint32_t bpf_program__flags(const bpf_program *prog)
    int bpf_program__set_flags(bpf_program *prog, uint32_t flags)
    int libbpf_num_possible_cpus()

    enum bpf_tc_attach_point:
        BPF_TC_INGRESS
        BPF_TC_EGRESS
    enum bpf_tc_flags:
        BPF_TC_F_REPLACE
    struct bpf_tc_hook:
        size_t sz
        int ifindex
        bpf_tc_attach_point attach_point
    struct bpf_tc_opts:
        size_t sz
        int prog_fd
        uint32_t flags
        uint32_t prog_id
        uint32_t handle
        uint32_t priority
    struct bpf_xdp_attach_opts:
        size_t sz
        int old_prog_fd
    int bpf_xdp_attach(int ifindex, int prog_fd, uint32_t flags, const bpf_xdp_attach_opts *opts)
    int bpf_xdp_detach(int ifindex, uint32_t flags, const bpf_xdp_attach_opts *opts)
    int bpf_xdp_query_id(int ifindex, int flags, uint32_t *prog_id)
    int bpf_tc_hook_create(bpf_tc_hook *hook)
    int bpf_tc_hook_destroy(bpf_tc_hook *hook)
    int bpf_tc_attach(const bpf_tc_hook *hook, bpf_tc_opts *opts)
    int bpf_tc_detach(const bpf_tc_hook *hook, const bpf_tc_opts *opts)

cdef extern from "<bpf/bpf.h>" nogil:
    int bpf_prog_get_fd_by_id(uint32_t id)
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *info_length)
    int bpf_map_update_elem(int fd, const void *key, const void *value, unsigned long long flags)
    int bpf_map_delete_elem(int fd, const void *key)
    int bpf_map_lookup_elem(int fd, const void *key, void *value)

// SPDX-License-Identifier: Apache-2.0
/* Which frames are ours: one question, asked at three hooks.
 *
 * classify() sees a frame from its Ethernet header on and answers with a reason (enum reason). The
 * three sections differ only in how they read the frame and in what they do with the answer:
 *
 *   xdp      steered frames go to the AF_XDP socket of their queue; where there is none they are
 *            DROPPED, never passed, so a dead worker cannot leak clear text through the kernel
 *   tc       (ingress of interfaces of the `packet` driver) steered frames are shot, because a packet
 *            socket has seen them already and the kernel must neither forward nor answer them
 *   socket   (filter on that packet socket) nothing but steered frames comes in
 *
 * Protected interface: IPv4 and IPv6 unicast, whatever its transport and however malformed beyond its
 * destination, is steered if the destination is in `remotes` (what the SPD protects or discards) and
 * not in `locals`. The dataplane, not this program, says why such a packet is bad.
 * Unprotected interface: to an address in `locals`, ESP, AH, and UDP to a port in `encap_ports` that
 * begins with no non-ESP marker (RFC 3948 2.2) or is a keepalive (2.3). And what is on its way
 * through, in clear, from a source in `remotes`: the dataplane asks the SPD (RFC 4301 5.2).
 * All else goes to the kernel: ARP, neighbour discovery, IKE, multicast, VLAN tags, the host's traffic,
 * and fragments to `locals`, which the kernel reassembles: what they make comes to a worker's sockets.
 *
 * Limits: Ethernet only. At most EXTENSIONS_MAX IPv6 extension headers are walked. Frames for another
 * station's MAC are told apart where the kernel says so (tc, socket); at XDP they are steered if the
 * interface is promiscuous, which is harmless, whereas a comparison with a stale MAC address would
 * let clear text pass. Whether frames of several buffers are welcome ("xdp.frags") is told when the program
 * is loaded; headers are looked for in the first. Where they are not, the kernel holds the sender of a veth
 * pair to what one AF_XDP frame can carry (MTU 3506), and turns its segmentation offload off.
 *
 * Loads on Linux 6.1 and later. No helper in use asks for a GPL-compatible licence.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define QUEUES_MAX      256
#define LOCALS_MAX      4096
#define REMOTES_MAX     (1 << 20)
#define ENCAP_PORTS_MAX 64
#define EXTENSIONS_MAX  6

#define IKE_PORT             500
#define NAT_KEEPALIVE        0xFF   /* RFC 3948 2.3 */
#define FRAGMENT_BITS        0x3FFF /* more-fragments and offset of struct iphdr.frag_off */
#define NEXT_HEADER_FRAGMENT 44

/* ext.packet.Role */
enum role { ROLE_PROTECTED = 0, ROLE_UNPROTECTED = 1 };

/* Index in `counts`; ext/steering.pyx names them in this order. */
enum reason {
    STEERED,
    NO_SOCKET, /* steered, and dropped: no socket on this queue */
    MULTICAST, /* from here on: passed to the kernel */
    VLAN,
    OTHER_HOST, /* another station's MAC address */
    NOT_IP,
    SHORT,      /* ends before the headers do */
    LINK_LOCAL, /* IPv6 link-local destination: never forwarded, RFC 4291 2.5.6 */
    UNMATCHED,  /* protected: no SPD entry for the destination */
    LOCAL,      /* to an address of this host, and neither ESP nor AH */
    NOT_LOCAL,  /* unprotected: to somebody else's address */
    IKE,
    FRAGMENT, /* of ESP, AH or UDP to this host, IPv6: of anything */
    REASONS,
};

enum hook { HOOK_XDP, HOOK_SKB };

struct address { /* IPv4 as ::ffff:a.b.c.d */
    union {
        __u8 bytes[16];
        __u32 words[4];
    };
};

struct prefix {
    __u32 length; /* bits of `address`: IPv4 prefixes are 96 longer */
    struct address address;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32); /* enum role */
} config SEC(".maps");

struct { /* every address of this host */
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, LOCALS_MAX);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct address);
    __type(value, __u8);
} locals SEC(".maps");

struct { /* what the SPD protects or discards; the value is the family, 4 or 6 */
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(max_entries, REMOTES_MAX);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct prefix);
    __type(value, __u8);
} remotes SEC(".maps");

struct { /* UDP destination ports that carry ESP, network order */
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, ENCAP_PORTS_MAX);
    __type(key, __be16);
    __type(value, __u8);
} encap_ports SEC(".maps");

struct { /* receive queue to AF_XDP socket */
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, QUEUES_MAX);
    __type(key, __u32);
    __type(value, __u32);
} xsks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, REASONS);
    __type(key, __u32);
    __type(value, __u64);
} counts SEC(".maps");

struct view {
    void *context; /* struct xdp_md or struct __sk_buff */
    void *data;    /* HOOK_XDP: the frame */
    void *end;
};

/* Copy `size` bytes at `offset` of the frame; nonzero when it ends before that. XDP reads memory; an skb
 * may keep part of its packet in pages, so there a helper reads. `hook` is a constant: one branch stays. */
static __always_inline int load(const struct view *view, enum hook hook, __u32 offset, void *to, __u32 size)
{
    void *at;

    if (hook == HOOK_SKB)
        return bpf_skb_load_bytes(view->context, offset, to, size);
    at = view->data + (offset & 0x3FFF); /* the mask only tells the verifier that it is small */
    if (at + size > view->end)
        return -1;
    __builtin_memcpy(to, at, size);
    return 0;
}

static __always_inline enum reason classify_udp(const struct view *view, enum hook hook, __u32 offset)
{
    struct udphdr udp;
    __u32 marker;
    __u16 payload;
    __u8 first;

    if (load(view, hook, offset, &udp, sizeof(udp)))
        return SHORT;
    if (!bpf_map_lookup_elem(&encap_ports, &udp.dest))
        return udp.dest == bpf_htons(IKE_PORT) ? IKE : LOCAL;
    if (bpf_ntohs(udp.len) < sizeof(udp))
        return SHORT;
    payload = bpf_ntohs(udp.len) - sizeof(udp);
    if (payload == 1)
        return load(view, hook, offset + sizeof(udp), &first, 1) ? SHORT
               : first == NAT_KEEPALIVE                          ? STEERED
                                                                 : LOCAL;
    if (payload < sizeof(marker))
        return LOCAL;
    if (load(view, hook, offset + sizeof(udp), &marker, sizeof(marker)))
        return SHORT;
    return marker ? STEERED : IKE;
}

static __always_inline int is_remote(struct prefix *prefix, __u8 family)
{
    __u8 *found;

    prefix->length = 128;
    found = bpf_map_lookup_elem(&remotes, prefix);
    /* ::/0 covers the mapped IPv4 addresses too, yet says nothing about IPv4. */
    return found && (family == 6 || *found == 4);
}

static __always_inline enum reason classify_protected(struct prefix *destination, __u8 family)
{
    if (!is_remote(destination, family))
        return UNMATCHED;
    return bpf_map_lookup_elem(&locals, &destination->address) ? LOCAL : STEERED;
}

static __always_inline enum reason classify_ipv4(const struct view *view, enum hook hook, __u32 role)
{
    struct prefix destination = {};
    struct iphdr ip;
    __u32 offset;

    if (load(view, hook, ETH_HLEN, &ip, sizeof(ip)))
        return SHORT;
    if ((ip.daddr & bpf_htonl(0xF0000000)) == bpf_htonl(0xE0000000) || ip.daddr == 0xFFFFFFFF)
        return MULTICAST;
    destination.address.words[2] = bpf_htonl(0xFFFF);
    destination.address.words[3] = ip.daddr;
    if (role == ROLE_PROTECTED)
        return classify_protected(&destination, 4);
    if (!bpf_map_lookup_elem(&locals, &destination.address)) {
        /* From behind a tunnel and in clear: the dataplane asks the SPD, RFC 4301 5.2. */
        destination.address.words[3] = ip.saddr;
        return is_remote(&destination, 4) ? STEERED : NOT_LOCAL;
    }
    if (ip.protocol != IPPROTO_ESP && ip.protocol != IPPROTO_AH && ip.protocol != IPPROTO_UDP)
        return LOCAL;
    if (ip.frag_off & bpf_htons(FRAGMENT_BITS))
        return FRAGMENT;
    if (ip.protocol != IPPROTO_UDP)
        return STEERED;
    offset = ip.ihl * 4;
    return offset < sizeof(ip) ? SHORT : classify_udp(view, hook, ETH_HLEN + offset);
}

/* Walk to the transport header: hop-by-hop, destination and routing options are stepped over. */
static __always_inline enum reason classify_ipv6_transport(const struct view *view, enum hook hook, __u8 next)
{
    __u32 offset = ETH_HLEN + sizeof(struct ipv6hdr);
    struct ipv6_opt_hdr option;

#pragma clang loop unroll(full)
    for (int walked = 0; walked <= EXTENSIONS_MAX; walked++) {
        if (next == IPPROTO_ESP || next == IPPROTO_AH)
            return STEERED;
        if (next == NEXT_HEADER_FRAGMENT)
            return FRAGMENT;
        if (next == IPPROTO_UDP)
            return classify_udp(view, hook, offset);
        if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_ROUTING)
            return LOCAL;
        if (load(view, hook, offset, &option, sizeof(option)))
            return SHORT;
        next = option.nexthdr;
        offset += (option.hdrlen + 1) * 8;
    }
    return LOCAL;
}

static __always_inline enum reason classify_ipv6(const struct view *view, enum hook hook, __u32 role)
{
    struct prefix destination = {};
    struct ipv6hdr ip;

    if (load(view, hook, ETH_HLEN, &ip, sizeof(ip)))
        return SHORT;
    __builtin_memcpy(&destination.address, &ip.daddr, sizeof(destination.address));
    if (destination.address.bytes[0] == 0xFF)
        return MULTICAST;
    if (role == ROLE_PROTECTED) {
        if (destination.address.bytes[0] == 0xFE && (destination.address.bytes[1] & 0xC0) == 0x80)
            return LINK_LOCAL;
        return classify_protected(&destination, 6);
    }
    if (!bpf_map_lookup_elem(&locals, &destination.address)) {
        __builtin_memcpy(&destination.address, &ip.saddr, sizeof(destination.address));
        return is_remote(&destination, 6) ? STEERED : NOT_LOCAL;
    }
    return classify_ipv6_transport(view, hook, ip.nexthdr);
}

static __always_inline enum reason classify(const struct view *view, enum hook hook)
{
    struct ethhdr link;
    __u32 zero = 0, *role;

    if (load(view, hook, 0, &link, sizeof(link)))
        return SHORT;
    if (link.h_dest[0] & 1)
        return MULTICAST;
    role = bpf_map_lookup_elem(&config, &zero);
    if (!role)
        return NOT_IP; /* cannot be: an array's elements always exist */
    switch (link.h_proto) {
    case bpf_htons(ETH_P_IP):
        return classify_ipv4(view, hook, *role);
    case bpf_htons(ETH_P_IPV6):
        return classify_ipv6(view, hook, *role);
    case bpf_htons(ETH_P_8021Q):
    case bpf_htons(ETH_P_8021AD):
        return VLAN;
    }
    return NOT_IP;
}

/* The kernel has taken a VLAN tag out of the frame, and knows whose MAC address it bears. */
static __always_inline enum reason classify_skb(struct __sk_buff *skb)
{
    struct view view = {.context = skb};

    if (skb->vlan_present)
        return VLAN;
    if (skb->pkt_type == PACKET_OTHERHOST || skb->pkt_type == PACKET_OUTGOING)
        return OTHER_HOST;
    return classify(&view, HOOK_SKB);
}

static __always_inline void count(__u32 reason)
{
    __u64 *packets = bpf_map_lookup_elem(&counts, &reason);

    if (packets)
        (*packets)++;
}

SEC("xdp")
int steer_xdp(struct xdp_md *context)
{
    struct view view = {
        .context = context,
        .data = (void *)(long)context->data,
        .end = (void *)(long)context->data_end,
    };
    enum reason reason = classify(&view, HOOK_XDP);
    int verdict = XDP_PASS;

    if (reason == STEERED) {
        /* The last argument is the verdict for a queue without socket. */
        verdict = bpf_redirect_map(&xsks, context->rx_queue_index, XDP_DROP);
        if (verdict != XDP_REDIRECT)
            reason = NO_SOCKET;
    }
    count(reason);
    return verdict;
}

SEC("tc")
int steer_tc(struct __sk_buff *skb)
{
    enum reason reason = classify_skb(skb);

    count(reason);
    return reason == STEERED ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* Does not count: where it runs, steer_tc sees the same frames. */
SEC("socket")
int steer_socket(struct __sk_buff *skb)
{
    return classify_skb(skb) == STEERED ? -1 : 0; /* bytes to keep of the packet */
}

char LICENSE[] SEC("license") = "Apache-2.0";

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The option in SYN and SYN-ACK: found, written, and the module's steps around it. */
#ifndef TCP_SM_RING_OPTION_H
#define TCP_SM_RING_OPTION_H

#include "../common/scope.h"
#include "../tcp_sm_region.h"

#define TCPHDR_SYN 0x02
#define TCPHDR_ACK 0x10
#define TCP_LISTEN 10
#define SOL_TCP 6
#define TCP_SAVE_SYN 27
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
#define HEADER_OPTIONS BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG

extern int tcp_sm_offer(struct bpf_sock_ops *ctx) __ksym;
extern int tcp_sm_option(struct bpf_sock_ops *ctx, struct tcp_sm_option *option,
			 __u32 option__sz) __ksym;
extern int tcp_sm_accept(struct bpf_sock_ops *ctx, struct tcp_sm_option *option,
			 __u32 option__sz) __ksym;
extern int tcp_sm_settle(struct bpf_sock_ops *ctx, struct tcp_sm_option *option,
			 __u32 option__sz) __ksym;
extern int tcp_sm_join(struct bpf_sock_ops *ctx, struct tcp_sm_option *option,
		       __u32 option__sz) __ksym;

/* Our option of the segment at hand, or of the SYN. False: there is none of that length. */
static __always_inline bool load_option(struct bpf_sock_ops *skops, struct tcp_sm_option *option,
					__u64 flags)
{
	int len;

	/* The search: the kind, 4 for "an ExID of two bytes", the ExID. */
	option->kind = TCP_SM_OPTION_KIND;
	option->len = 4;
	option->exid[0] = TCP_SM_OPTION_EXID_0;
	option->exid[1] = TCP_SM_OPTION_EXID_1;
	len = bpf_load_hdr_opt(skops, option, sizeof(*option), flags);
	if (len == TCP_SM_OPTION_LEN)
		return true;
	__builtin_memset(option, 0, sizeof(*option));
	return false;
}

/*
 * Why an offer was refused, by its tag. Programs may keep nothing at a request,
 * and when its connection is made the listener's options are out of reach.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u8);
} tcp_sm_refused SEC(".maps");

static __always_inline __u64 tag_of(const struct tcp_sm_option *option)
{
	__u64 tag;

	__builtin_memcpy(&tag, option->tag, sizeof(tag));
	return tag;
}

/* What was said of this offer when the SYN-ACK was written; NONE: nothing. */
static __always_inline __u8 recall_refusal(const struct tcp_sm_option *option)
{
	__u64 tag = tag_of(option);
	__u8 *reason = bpf_map_lookup_elem(&tcp_sm_refused, &tag);

	return reason ? *reason : TCP_SM_R_NONE;
}

/* May the server of this SYN-ACK use the ring, by the rules as they are now? NONE or why not. */
static __always_inline __u8 refuse_server(struct bpf_sock_ops *skops)
{
	struct bpf_sock_ops_kern *kern = bpf_cast_to_kern_ctx(skops);
	const struct tcp_sm_config *cfg = config();
	struct sock_common *req;

	if (refuse_by_mode(cfg) || !cfg)
		return TCP_SM_R_MODE_PASS;
	/* A request is no full socket, so programs are not shown it. */
	req = bpf_rdonly_cast(kern->sk, bpf_core_type_id_kernel(struct sock_common));
	return refuse_by_scope(cfg, req, skops->local_port);
}

/* Turns the offer of a SYN into the answer; false: it is refused. */
static __always_inline bool answer_offer(struct bpf_sock_ops *skops, struct tcp_sm_option *option)
{
	__u8 reason = refuse_server(skops);
	__u64 tag = tag_of(option);

	if (!reason)
		reason = tcp_sm_accept(skops, option, sizeof(*option));
	if (reason)
		bpf_map_update_elem(&tcp_sm_refused, &tag, &reason, BPF_ANY);
	return !reason;
}

/* What this SYN or SYN-ACK shall carry; false: nothing. */
static __always_inline bool make_option(struct bpf_sock_ops *skops, struct tcp_sm_option *option)
{
	__u32 flags = skops->skb_tcp_flags & (TCPHDR_SYN | TCPHDR_ACK);

	if (flags == TCPHDR_SYN)
		return !tcp_sm_option(skops, option, sizeof(*option));
	if (flags != (TCPHDR_SYN | TCPHDR_ACK) ||
	    skops->args[0] == BPF_WRITE_HDR_TCP_SYNACK_COOKIE)
		return false;
	return load_option(skops, option, BPF_LOAD_HDR_OPT_TCP_SYN) && answer_offer(skops, option);
}

static __always_inline void reserve_option(struct bpf_sock_ops *skops)
{
	struct tcp_sm_option option = {};

	if (make_option(skops, &option))
		bpf_reserve_hdr_opt(skops, sizeof(option), 0);
}

static __always_inline void write_option(struct bpf_sock_ops *skops)
{
	struct tcp_sm_option option = {};

	if (make_option(skops, &option))
		bpf_store_hdr_opt(skops, &option, sizeof(option), 0);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Scope: which connections the operator's port and address rules admit. */
#ifndef TCP_SM_COMMON_SCOPE_H
#define TCP_SM_COMMON_SCOPE_H

#include "maps.h"

/* Writes an address in its v4-mapped form. */
static __always_inline void store_address(__u8 *to, const struct sock_common *sk,
					  bool remote)
{
	const __u32 *from6 = remote ? sk->skc_v6_daddr.in6_u.u6_addr32
				    : sk->skc_v6_rcv_saddr.in6_u.u6_addr32;
	__u32 words[4] = {0, 0, bpf_htonl(0xffff),
			  remote ? sk->skc_daddr : sk->skc_rcv_saddr};

	if (sk->skc_family == AF_INET6) {
		words[0] = from6[0];
		words[1] = from6[1];
		words[2] = from6[2];
		words[3] = from6[3];
	}
	__builtin_memcpy(to, words, sizeof(words));
}

static __always_inline __u64 cgroup_of(const struct sock *sk)
{
	return sk->sk_cgrp_data.cgroup->kn->id;
}

static __always_inline __u32 cidr_rule(const struct sock_common *sk, bool remote)
{
	struct tcp_sm_cidr key = {.prefixlen = 128};
	__u32 *rule;

	store_address(key.addr, sk, remote);
	rule = bpf_map_lookup_elem(&tcp_sm_cidrs, &key);
	return rule ? *rule : TCP_SM_RULE_NONE;
}

static __always_inline __u8 refuse_by_port(const struct tcp_sm_config *cfg, __u32 port)
{
	__u32 *found = bpf_map_lookup_elem(&tcp_sm_ports, &port);
	__u32 rule = found ? *found : TCP_SM_RULE_NONE;

	if (rule == TCP_SM_RULE_EXCLUDE)
		return TCP_SM_R_PORT;
	if (cfg->ports_included && rule != TCP_SM_RULE_INCLUDE)
		return TCP_SM_R_PORT;
	return TCP_SM_R_NONE;
}

static __always_inline __u8 refuse_by_cidr(const struct tcp_sm_config *cfg,
					   const struct sock_common *sk)
{
	__u32 local = cidr_rule(sk, false), remote = cidr_rule(sk, true);

	if (local == TCP_SM_RULE_EXCLUDE || remote == TCP_SM_RULE_EXCLUDE)
		return TCP_SM_R_CIDR;
	if (cfg->cidrs_included && local != TCP_SM_RULE_INCLUDE &&
	    remote != TCP_SM_RULE_INCLUDE)
		return TCP_SM_R_CIDR;
	return TCP_SM_R_NONE;
}

static __always_inline __u8 refuse_by_mode(const struct tcp_sm_config *cfg)
{
	return cfg && cfg->mode == TCP_SM_ON ? TCP_SM_R_NONE : TCP_SM_R_MODE_PASS;
}

static __always_inline __u8 refuse_by_scope(const struct tcp_sm_config *cfg,
					    const struct sock_common *sk, __u16 server_port)
{
	__u8 reason = refuse_by_port(cfg, server_port);

	return reason ? reason : refuse_by_cidr(cfg, sk);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a record says of the TCP socket itself. */
#ifndef TCP_SM_COMMON_RECORD_H
#define TCP_SM_COMMON_RECORD_H

#include "scope.h"

static __always_inline void fill_socket(struct tcp_sm_record *rec, const struct tcp_sock *tp)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	const struct sock_common *common = &sk->__sk_common;

	rec->tcp_sent = tp->bytes_acked;
	rec->tcp_received = tp->bytes_received;
	rec->netns = common->skc_net.net->ns.inum;
	rec->family = common->skc_family;
	rec->local_port = common->skc_num;
	rec->remote_port = bpf_ntohs(common->skc_dport);
	rec->tcp_state = common->skc_state;
	store_address(rec->local_addr, common, false);
	store_address(rec->remote_addr, common, true);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Socket options whose meaning a sockmap socket does not keep.
 *
 * Three kinds. What cannot change after the handshake is asked once. What the
 * *sender* sets must keep it out of the sockhash, since even a passed message
 * goes through tcp_bpf_sendmsg: zerocopy completions and transmit timestamps
 * are lost there. What the *receiver* sets only forbids redirection: bytes
 * that come by TCP are read by tcp_recvmsg, which honours it.
 */
#ifndef TCP_SM_OPTIONS_H
#define TCP_SM_OPTIONS_H

#include "maps.h"

static __always_inline bool has_flag(const struct sock *sk, __u32 bit)
{
	return sk->__sk_common.skc_flags & (1UL << (bit & 63));
}

/* Not accepted yet, being closed, or a socket of the kernel's own. */
static __always_inline bool has_no_file(const struct sock *sk)
{
	return !sk->sk_socket || !sk->sk_socket->file;
}

/* Of a socket that may be closed meanwhile: no file proves nothing. */
static __always_inline bool is_blocking(const struct sock *sk)
{
	const struct file *file = sk->sk_socket->file;

	return file && !(file->f_flags & O_NONBLOCK);
}

static __always_inline bool is_nonblocking(const struct sock *sk)
{
	return sk->sk_socket->file->f_flags & O_NONBLOCK;
}

/*
 * Came this end to be by TCP Fast Open? A child that did is born with its request
 * still attached; newer kernels (6.18 has it, 6.12 not) keep a mark besides.
 */
static __always_inline bool is_fast_open(const struct tcp_sock *tp)
{
	if (bpf_core_field_exists(tp->syn_fastopen_child) &&
	    BPF_CORE_READ_BITFIELD(tp, syn_fastopen_child))
		return true;
	return BPF_CORE_READ_BITFIELD(tp, syn_data) || tp->fastopen_rsk;
}

/* Fixed at the handshake. */
static __always_inline __u8 refuse_by_birth(const struct tcp_sock *tp)
{
	if (bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp)
		return TCP_SM_R_MPTCP;
	return is_fast_open(tp) ? TCP_SM_R_TFO : TCP_SM_R_NONE;
}

/* Set by the end that sends. */
static __always_inline __u8 refuse_by_sender(const struct tcp_sock *tp)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	if (has_flag(sk, bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)))
		return TCP_SM_R_ZEROCOPY;
	if (sk->sk_tsflags)
		return TCP_SM_R_TIMESTAMP;
	return TCP_SM_R_NONE;
}

/* Set by either. */
static __always_inline __u8 refuse_by_either(const struct tcp_sock *tp)
{
	if (tp->inet_conn.icsk_ulp_ops)
		return TCP_SM_R_ULP;
	if (BPF_CORE_READ_BITFIELD(tp, repair))
		return TCP_SM_R_REPAIR;
	return TCP_SM_R_NONE;
}

/* Set by the end that receives. */
static __always_inline __u8 refuse_by_receiver(const struct tcp_sock *tp)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	if (sk->sk_rcvlowat > 1)
		return TCP_SM_R_RCVLOWAT;
	if (BPF_CORE_READ_BITFIELD(tp, recvmsg_inq))
		return TCP_SM_R_INQ;
	if (sk->sk_peek_off >= 0)
		return TCP_SM_R_PEEK_OFF;
	if (has_flag(sk, bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMP)))
		return TCP_SM_R_TIMESTAMP;
	if (tp->urg_data)
		return TCP_SM_R_OOB;
	return TCP_SM_R_NONE;
}

static __always_inline __u8 refuse_by_options(const struct tcp_sock *tp)
{
	__u8 reason = refuse_by_either(tp);

	if (!reason)
		reason = refuse_by_sender(tp);
	return reason ? reason : refuse_by_receiver(tp);
}

#endif

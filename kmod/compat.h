/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs between the kernels that are supported, 6.12 to 7.3. Each shim
 * names the version that changed and why; nothing else tests a version.
 */
#ifndef TCP_SM_COMPAT_H
#define TCP_SM_COMPAT_H

#include <linux/btf.h>
#include <linux/version.h>

/* 6.19: recvmsg lost its last argument; nobody but recvmsg(2) fills names. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
#define TCP_SM_RECVMSG_ARGS	struct sock *sk, struct msghdr *msg, size_t len, int flags
#define TCP_SM_RECVMSG_PASS(sk, msg, len, flags) sk, msg, len, flags
#define tcp_sm_inet_recv_error(sk, msg, len) inet_recv_error(sk, msg, len)
#else
#define TCP_SM_RECVMSG_ARGS	struct sock *sk, struct msghdr *msg, size_t len, int flags, \
				int *addr_len
#define TCP_SM_RECVMSG_PASS(sk, msg, len, flags) sk, msg, len, flags, addr_len
#define tcp_sm_inet_recv_error(sk, msg, len) inet_recv_error(sk, msg, len, addr_len)
#endif

/* 6.16: msg_zerocopy_realloc() wants to know about device memory. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#define tcp_sm_zerocopy_alloc(sk, size) msg_zerocopy_realloc(sk, size, NULL, false)
#else
#define tcp_sm_zerocopy_alloc(sk, size) msg_zerocopy_realloc(sk, size, NULL)
#endif

/* 6.19: every pointer argument is trusted unless marked otherwise. */
#ifndef KF_TRUSTED_ARGS
#define KF_TRUSTED_ARGS 0
#endif

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The few kernel types the programs read, reduced to the fields they read.
 * libbpf relocates every access to the running kernel's BTF (CO-RE), so this
 * replaces a generated vmlinux.h: the build depends on no machine's kernel.
 */
#ifndef TCP_SM_KERNEL_TYPES_H
#define TCP_SM_KERNEL_TYPES_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define SOL_SOCKET 1
#define SO_RCVLOWAT 18
#define O_NONBLOCK 00004000
#define MSG_OOB 0x1
#define MSG_PEEK 0x2
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_ERRQUEUE 0x2000
#define RCV_SHUTDOWN 1
#define SEND_SHUTDOWN 2

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next, *prev;
};

typedef struct {
	__s64 counter;
} atomic64_t;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__u32 u6_addr32[4];
	} in6_u;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock;

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
	struct sock *skc_listener;
};

struct file {
	unsigned int f_flags;
};

struct socket {
	struct file *file;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct bpf_local_storage;

struct sock {
	struct sock_common __sk_common;
	__s32 sk_peek_off;
	int sk_rcvlowat;
	struct socket *sk_socket;
	__u32 sk_tsflags;
	__u8 sk_shutdown;
	__u16 sk_protocol;
	struct sock_cgroup_data sk_cgrp_data;
	struct bpf_local_storage *sk_bpf_storage;
};

struct inet_sock {
	struct sock sk;
};

struct tcp_ulp_ops {
	char name[16];
};
struct request_sock;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const struct tcp_ulp_ops *icsk_ulp_ops;
	void *icsk_ulp_data;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u8 repair:1;
	__u8 recvmsg_inq:1;
	__u8 syn_data:1;
	__u8 syn_fastopen:1;
	__u8 syn_fastopen_child:1;
	_Bool is_mptcp;
	__u8 bpf_sock_ops_cb_flags;
	__u32 copied_seq;
	__u32 write_seq;
	__u32 rcv_nxt;
	__u32 snd_nxt;
	__u16 urg_data;
	struct request_sock *fastopen_rsk;
	__u32 data_segs_in;
	__u32 data_segs_out;
	__u32 snd_una;
	__u64 bytes_received;
	__u64 bytes_acked;
};

struct request_sock {
	struct sock_common __req_common;
};

struct inet_request_sock {
	struct request_sock req;
};

struct tcp_request_sock {
	struct inet_request_sock req;
	_Bool tfo_listener;
	_Bool is_mptcp;
	__u32 rcv_isn;
	__u32 snt_isn;
};

struct pipe_inode_info {
	unsigned int head;
	unsigned int tail;
};

struct task_struct {
	struct pipe_inode_info *splice_pipe;
};

struct bpf_sock_ops_kern {
	struct sock *sk;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_map;

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
};

/* Bit numbers in sk_flags; their values move between kernels. */
enum sock_flags {
	SOCK_RCVTSTAMP = 0x7fffff01,
	SOCK_ZEROCOPY = 0x7fffff02,
};

#pragma clang attribute pop

#endif

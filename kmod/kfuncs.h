/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What programs may call: prototypes for the compiler, documented where they are defined. */
#ifndef TCP_SM_KFUNCS_H
#define TCP_SM_KFUNCS_H

#include "channel.h"

struct bpf_sock_ops;

/* handshake.c, of sockops programs */
int tcp_sm_offer(struct bpf_sock_ops *skops);
int tcp_sm_option(struct bpf_sock_ops *skops, struct tcp_sm_option *option, u32 option__sz);
int tcp_sm_accept(struct bpf_sock_ops *skops, struct tcp_sm_option *option, u32 option__sz);
int tcp_sm_settle(struct bpf_sock_ops *skops, struct tcp_sm_option *option, u32 option__sz);
int tcp_sm_join(struct bpf_sock_ops *skops, struct tcp_sm_option *option, u32 option__sz);

/* ops.c, of struct_ops programs */
u8 *tcp_sm_half(struct tcp_sm_conn *conn, u32 dir, int rdwr_buf_size);
u8 *tcp_sm_lane(struct tcp_sm_conn *conn, u32 dir, int rdwr_buf_size);
int tcp_sm_copy_in(struct tcp_sm_conn *conn, struct tcp_sm_io *io, u32 at, u32 len);
int tcp_sm_copy_out(struct tcp_sm_conn *conn, struct tcp_sm_io *io, u32 at, u32 len);
void tcp_sm_barrier(void);
void tcp_sm_wake_peer(struct tcp_sm_conn *conn);
void tcp_sm_wake_reader(struct tcp_sm_conn *conn);

#endif

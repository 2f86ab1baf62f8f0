// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A struct_ops map of a type that every kernel has: TCP congestion control.
 * -DVERSION changes a program, -DSWAPPED which program serves which function,
 * -DNAME a member that is no function, -DTYPE the type.
 */
#include "fixture.h"

#ifndef NAME
#define NAME "tcp_sm_unit"
#endif
#ifdef SWAPPED
#define FIRST unit_undo
#define SECOND unit_ssthresh
#else
#define FIRST unit_ssthresh
#define SECOND unit_undo
#endif
#ifndef TYPE
#define TYPE tcp_congestion_ops
#endif

struct sock;

struct TYPE {
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	char name[16];
};

char LICENSE[] SEC("license") = "GPL";

/* Both have the code of the other, so that only the table shows who serves what. */
SEC("struct_ops")
__u32 unit_ssthresh(__u64 *ctx)
{
	return 1 + VERSION;
}

SEC("struct_ops")
__u32 unit_undo(__u64 *ctx)
{
	return 1 + VERSION;
}

SEC("struct_ops")
void unit_avoid(__u64 *ctx)
{
}

SEC(".struct_ops.link")
struct TYPE unit_congestion = {
	.ssthresh = (void *)FIRST,
	.cong_avoid = (void *)unit_avoid,
	.undo_cwnd = (void *)SECOND,
	.name = NAME,
};

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ABI between the sockmap channel's BPF programs and user space.
 *
 * Fixed-width fields only, no implicit padding, every size asserted below.
 * plugins/module_utils/_model/abi.py mirrors it; tests/unit checks the two
 * against each other through the object's BTF.
 */
#ifndef TCP_SM_H
#define TCP_SM_H

/* Raised whenever a struct below or the meaning of a map changes. */
#define TCP_SM_ABI 1

enum tcp_sm_mode {
	TCP_SM_PASS = 0,	/* insert nothing, redirect nothing */
	TCP_SM_ON = 1,
	TCP_SM_DRAIN = 2,	/* as pass, and whoever is accelerated leaves for good */
};

enum tcp_sm_channel {
	TCP_SM_CH_TCP = 0,
	TCP_SM_CH_SOCKMAP = 1,
	TCP_SM_CH_RING = 2,
};

/* Why a connection is on TCP. Zero exactly when it is accelerated. */
enum tcp_sm_reason {
	TCP_SM_R_NONE = 0,
	TCP_SM_R_NO_LOCAL_PEER,		/* the peer is not a socket of this kernel in scope */
	TCP_SM_R_MODE_PASS,		/* the mode is `pass` */
	TCP_SM_R_PORT,			/* excluded by port */
	TCP_SM_R_CIDR,			/* excluded by address */
	TCP_SM_R_LEARNING,		/* first connections of this port are watched */
	TCP_SM_R_BLOCKING,		/* one end is not O_NONBLOCK */
	TCP_SM_R_TFO,			/* TCP Fast Open */
	TCP_SM_R_MPTCP,
	TCP_SM_R_ULP,			/* kTLS or another upper layer protocol */
	TCP_SM_R_ZEROCOPY,		/* SO_ZEROCOPY */
	TCP_SM_R_TIMESTAMP,		/* SO_TIMESTAMP or SO_TIMESTAMPING */
	TCP_SM_R_RCVLOWAT,		/* SO_RCVLOWAT above 1 */
	TCP_SM_R_INQ,			/* TCP_INQ */
	TCP_SM_R_PEEK_OFF,		/* SO_PEEK_OFF */
	TCP_SM_R_OOB,			/* urgent data */
	TCP_SM_R_SPLICE,		/* read past recv: splice, TCP_ZEROCOPY_RECEIVE */
	TCP_SM_R_RECV_FLAGS,		/* MSG_TRUNC, MSG_OOB or MSG_ERRQUEUE on receive */
	TCP_SM_R_REPAIR,		/* TCP_REPAIR */
	TCP_SM_R_SHORT,			/* connections of this port end before they gain */
	TCP_SM_R_STREAM,		/* a one-way stream, which TCP carries as fast */
	TCP_SM_R_PEER_LEFT,		/* the other end was refused */
	TCP_SM_R_NO_MEMORY,		/* a map is full */
	TCP_SM_R_BUSY,			/* the socket belongs to another sockmap user */
	TCP_SM_R_STARTING,		/* paired, nothing redirected yet */
	TCP_SM_R_SENDFILE,		/* large sendfile, which TCP moves without a copy */
	/* the ring channel */
	TCP_SM_R_NO_REGION,		/* this machine has no shared memory region */
	TCP_SM_R_NO_OFFER,		/* the other end said nothing of shared memory */
	TCP_SM_R_OTHER_REGION,		/* the other end is in another region */
	TCP_SM_R_SLOTS,			/* all slots of the client's chunk are taken */
	TCP_SM_R_DEFER_ACCEPT,		/* TCP_DEFER_ACCEPT on the listener */
	TCP_SM_R_SAME_GUEST,		/* both ends are in this machine */
	TCP_SM_R_UNCONFIRMED,		/* the other end did not confirm in time */
	TCP_SM_R_MAX,
};

enum tcp_sm_rule {
	TCP_SM_RULE_NONE = 0,
	TCP_SM_RULE_INCLUDE = 1,
	TCP_SM_RULE_EXCLUDE = 2,
};

enum tcp_sm_side {
	TCP_SM_CLIENT = 0,
	TCP_SM_SERVER = 1,
};

/* The single entry of map `tcp_sm_config`. */
struct tcp_sm_config {
	__u32 abi;		/* TCP_SM_ABI; anything else counts as mode `pass` */
	__u32 mode;		/* enum tcp_sm_mode */
	__u32 max_unread_bytes;	/* redirected and unread, per direction */
	__u32 max_unread_msgs;	/* likewise, messages */
	__u32 max_burst;	/* bytes one end may redirect before the other answers */
	__u32 eager;		/* 1: a non-blocking listener is proof enough */
	__u32 ports_included;	/* 1: only ports with an include rule */
	__u32 cidrs_included;	/* 1: only addresses with an include rule */
	__u32 events;		/* 1: write open and close events */
	__u32 reserved;
};

/* Key of LPM map `tcp_sm_cidrs`; IPv4 is v4-mapped, its prefix length + 96. */
struct tcp_sm_cidr {
	__u32 prefixlen;
	__u8 addr[16];
};

/* Names one connection: both initial sequence numbers. */
struct tcp_sm_pair {
	__u32 client_isn;
	__u32 server_isn;
};

/* Key of the sockhash. */
struct tcp_sm_end {
	struct tcp_sm_pair pair;
	__u32 side;		/* enum tcp_sm_side */
};

/* One direction of a connection, named by its sender. */
struct tcp_sm_flow {
	__u64 bytes;		/* redirected */
	__u64 msgs;
	__u64 read_bytes;	/* what the receiver's recv calls returned, by either way */
	__u64 passed_msgs;	/* sendmsg calls left to TCP */
};

/*
 * What a socket's end knows; iterator `tcp_sm_dump` writes one per socket,
 * the ring buffer one per open and close.
 */
struct tcp_sm_record {
	__u64 cookie;		/* socket cookie, as in `ss -e` */
	__u64 peer_cookie;	/* zero where there is no local peer */
	__u64 cgroup;		/* cgroup2 id */
	__u64 opened_ns;	/* CLOCK_MONOTONIC */
	__u64 tcp_sent;		/* bytes sent by TCP and acknowledged */
	__u64 tcp_received;	/* bytes received by TCP */
	struct tcp_sm_flow tx;
	struct tcp_sm_flow rx;
	struct tcp_sm_pair pair;
	__u32 netns;		/* inode number of the network namespace */
	__u16 family;		/* AF_INET or AF_INET6 */
	__u16 local_port;	/* host order */
	__u16 remote_port;
	__u8 side;
	__u8 channel;
	__u8 reason;
	__u8 tcp_state;		/* TCP_ESTABLISHED = 1, ... */
	__u8 event;		/* enum tcp_sm_event */
	__u8 version;		/* TCP_SM_ABI */
	__u8 local_addr[16];	/* IPv4 is v4-mapped */
	__u8 remote_addr[16];
};

enum tcp_sm_event {
	TCP_SM_EV_STATUS = 0,
	TCP_SM_EV_OPEN = 1,
	TCP_SM_EV_CLOSE = 2,
};

/* The value of the per-CPU array `tcp_sm_stats`, entry 0. */
struct tcp_sm_stats {
	__u64 opened[3];	/* by enum tcp_sm_channel, decided at establishment */
	__u64 closed;		/* of the accelerated and the watched ones */
	__u64 redirected_bytes;
	__u64 redirected_msgs;
	__u64 passed_msgs;
	__u64 left;		/* connections that left the sockhash alive */
	__u64 lost_events;
	__u64 reasons[64];	/* by enum tcp_sm_reason */
};

#define TCP_SM_ASSERT(type, size) \
	_Static_assert(sizeof(type) == (size), #type " has another size")
TCP_SM_ASSERT(struct tcp_sm_config, 40);
TCP_SM_ASSERT(struct tcp_sm_cidr, 20);
TCP_SM_ASSERT(struct tcp_sm_end, 12);
TCP_SM_ASSERT(struct tcp_sm_flow, 32);
TCP_SM_ASSERT(struct tcp_sm_record, 168);
TCP_SM_ASSERT(struct tcp_sm_stats, 584);

#endif

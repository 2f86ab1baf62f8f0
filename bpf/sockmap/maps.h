/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The maps of the sockmap channel and what is private to its programs.
 *
 * Ownership decides the locking. A socket's own state (socket_state) is
 * written under its socket lock or by its reader, and dies with the socket, or
 * when the socket begins another connection. A connection's shared entry
 * (conn) lives from the client's establishment until both ends reached
 * TCP_CLOSE; conn.h has its rules. Who writes to it holds it, as the lock of
 * an end that is not closed yet, or as the server that is joining. The
 * reader's tracepoint holds nothing; that is why its counter is in
 * socket_state, which RCU keeps, and not here.
 */
#ifndef TCP_SM_MAPS_H
#define TCP_SM_MAPS_H

#include "../common/maps.h"

#define TCP_ESTABLISHED 1
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_NEW_SYN_RECV 12

/* What the reader's end publishes; the sender reads it by address. */
enum reader_mode {
	READER_UNSEEN = 0,	/* no recv yet: accept() or fcntl() may still come */
	READER_NONBLOCKING,	/* the latest recv was on an O_NONBLOCK file */
	READER_BLOCKING,
};

struct reader_state {
	__u64 read_bytes;	/* returned by recv, whichever queue they came from */
	__u32 mode;		/* enum reader_mode */
	__u32 veto;		/* enum tcp_sm_reason: leave, because of how it reads */
};

/* One per tracked socket, in its socket-local storage. */
struct socket_state {
	struct reader_state reader;
	__u64 counter;		/* the loaded instance that counts its recv calls */
	struct tcp_sm_pair pair;
	__u64 cookie;
	__u64 peer_cookie;
	__u64 cgroup;
	__u64 opened_ns;
	__u16 server_port;	/* as this end sees it, host order */
	__u8 side;
	__u8 reason;		/* why it was not inserted; NONE when it was */
	__u8 watched;		/* how it is read still matters */
	__u8 taught;		/* what it told its profile last: TAUGHT(reason), 0 for nothing */
	__u8 unused[2];
};

enum conn_phase {
	CONN_STARTING = 0,	/* the server's end is not in the sockhash yet */
	CONN_JOINING,		/* it is about to be */
	CONN_OPEN,		/* may redirect */
	CONN_LEAVING,		/* no new redirect; both queues drain */
	CONN_LEFT,		/* out of the sockhash, plain TCP for good */
	CONN_DEAD,		/* deleted, or another connection's by now */
};

struct flow_state {
	__u64 bytes;		/* claimed for redirection: >= what was queued */
	__u64 msgs;
	__u64 passed_msgs;
	__u64 latest_ns;	/* coarse clock */
	__u32 unread_msgs;	/* redirected since the receiver was last seen drained */
	__u32 burst_msgs;	/* sent since the other end last sent, or after a pause */
	__u32 burst_bytes;
	__u32 answers;		/* messages of the other end, when the burst began */
	__u32 passing;		/* leaky count of passed messages */
	__u32 unexplained;	/* times in a row that bytes were read past recv */
	__u32 poisoned;		/* the count is wrong: neither redirect nor leave */
	__u32 unused;
};

struct conn {
	__u64 word;		/* phase and more, see conn.h */
	__u32 leave_reason;	/* enum tcp_sm_reason */
	__u32 trusted;		/* bit per side whose profile knows how it reads */
	__u64 sk[2];		/* addresses of the tcp_socks, by side */
	__u64 reader[2];	/* addresses of their reader_states */
	__u64 cookie[2];
	struct flow_state flow[2];	/* by the sender's side */
};

/*
 * What the listener's side knows when it answers a SYN, in a table that a hash
 * of the pair indexes. Nothing is allocated or locked: a newer handshake just
 * overwrites an older one. Both words name the pair, so that a mixture of two
 * writers is recognised; it reads as no offer, and that connection stays TCP.
 */
struct offer {
	__u64 pair;
	__u64 tagged_reason;	/* hash of the pair << 8 | enum tcp_sm_reason */
};

#define OFFERS 16384

/* What was learned about the sockets of one program on one port. */
struct profile_key {
	__u64 cgroup;
	__u16 port;
	__u16 side;
	__u32 unused;
};

struct profile {
	__u32 known;		/* a reader was seen to use non-blocking recv */
	__u32 veto;		/* enum tcp_sm_reason, sticky */
	__u32 hopeless;		/* recent connections without gain, 0..16 */
	__u32 hopeless_reason;
	__u64 refused;		/* because hopeless; every 64th of them was let in */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OFFERS);
	__type(key, __u32);
	__type(value, struct offer);
} tcp_sm_offers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_state);
} tcp_sm_socks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tcp_sm_pair);
	__type(value, struct conn);
} tcp_sm_conns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 262144);
	__type(key, struct tcp_sm_end);
	__type(value, __u64);
} tcp_sm_sockhash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct profile_key);
	__type(value, struct profile);
} tcp_sm_profiles SEC(".maps");

static __always_inline __u8 other(__u8 side)
{
	return (side ^ 1) & 1;
}

/*
 * Adds, as a full barrier. An atomic add whose result nobody uses is compiled
 * to one without BPF_FETCH, which arm64 runs unordered.
 */
static __always_inline __u64 add_fenced(__u64 *to, __u64 value)
{
	__u64 before = __sync_fetch_and_add(to, value);

	asm volatile("" : : "r"(before));
	return before;
}

static __always_inline struct tcp_sock *tcp_at(__u64 address)
{
	return bpf_rdonly_cast((void *)address,
			       bpf_core_type_id_kernel(struct tcp_sock));
}

#endif

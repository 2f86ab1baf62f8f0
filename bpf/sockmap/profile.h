/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Profiles: what earlier connections of a (cgroup, server port) taught.
 *
 * A server's child enters the sockhash before accept() returns, when nobody
 * can know how it will be read. A blocking reader must never be in there: at
 * a half-close or a signal its recv would return EAGAIN. So the first
 * connections stay on TCP and are watched; only a port whose reader was seen
 * in non-blocking recv is admitted. A veto is sticky: a program that splices,
 * uses kTLS or zerocopy, or reads blocking once will do so again.
 *
 * The same map keeps out ports whose connections never gain: being in a
 * sockhash costs a connection some microseconds, and passing through one
 * 10-40 % per message.
 */
#ifndef TCP_SM_PROFILE_H
#define TCP_SM_PROFILE_H

#include "maps.h"

#define TAUGHT(reason) ((reason) + 1)
#define HOPELESS_MAX 16
#define HOPELESS_AT 8
#define HOPELESS_SAMPLE 64	/* one connection in so many tries again */
#define GAIN_MSGS 8		/* messages that pay for entering and leaving */

static __always_inline struct profile *profile_of(__u64 cgroup, __u16 port, __u8 side,
						  bool make)
{
	struct profile_key key = {.cgroup = cgroup, .port = port, .side = side};
	struct profile fresh = {};
	struct profile *found = bpf_map_lookup_elem(&tcp_sm_profiles, &key);

	if (found || !make)
		return found;
	bpf_map_update_elem(&tcp_sm_profiles, &key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tcp_sm_profiles, &key);
}

static __always_inline bool is_sticky(__u8 reason)
{
	return reason == TCP_SM_R_BLOCKING || reason == TCP_SM_R_SPLICE ||
	       reason == TCP_SM_R_RECV_FLAGS || reason == TCP_SM_R_OOB ||
	       reason == TCP_SM_R_ULP || reason == TCP_SM_R_ZEROCOPY ||
	       reason == TCP_SM_R_TIMESTAMP;
}

/* Trusted to read by non-blocking recv before it was seen to. */
static __always_inline bool is_trusted(const struct socket_state *state)
{
	struct profile *p = profile_of(state->cgroup, state->server_port, state->side, false);
	const struct tcp_sm_config *cfg = config();

	return (p && p->known && !p->veto) || (cfg && cfg->eager);
}

/* Without a lock: a lost update costs one connection's vote. */
static __always_inline void vote_against(struct profile *p, __u8 reason)
{
	__u32 hopeless = p->hopeless;

	WRITE_ONCE(p->hopeless_reason, reason);
	if (hopeless < HOPELESS_MAX)
		WRITE_ONCE(p->hopeless, hopeless + 1);
}

static __always_inline void vote_for(struct profile *p)
{
	__u32 hopeless = p->hopeless;

	WRITE_ONCE(p->hopeless, hopeless > 4 ? hopeless - 4 : 0);
}

/*
 * A reader was seen at work. Two may race here; both write a valid reason.
 * Clients that connect non-blocking, for a time limit, and read blocking are
 * common beside others of the same program: that is a vote and no veto.
 */
static __always_inline void teach(const struct socket_state *state, __u8 reason)
{
	struct profile *p = profile_of(state->cgroup, state->server_port, state->side, true);

	if (!p)
		return;
	if (reason == TCP_SM_R_BLOCKING && state->side == TCP_SM_CLIENT)
		vote_against(p, reason);
	else if (is_sticky(reason))
		WRITE_ONCE(p->veto, reason);
	else if (!reason && !p->known)
		WRITE_ONCE(p->known, 1);
}

/* What is certain from earlier connections; cheap, so it is asked first. */
static __always_inline __u8 refuse_by_history(struct profile *p)
{
	__u64 nth;

	if (!p)
		return TCP_SM_R_NONE;
	if (p->veto)
		return p->veto;
	if (p->hopeless < HOPELESS_AT)
		return TCP_SM_R_NONE;
	nth = __sync_fetch_and_add(&p->refused, 1);
	return nth % HOPELESS_SAMPLE ? p->hopeless_reason : TCP_SM_R_NONE;
}

static __always_inline __u8 refuse_by_ignorance(const struct tcp_sm_config *cfg,
						const struct profile *p,
						const struct sock *listener)
{
	if ((p && p->known) || (cfg->eager && is_nonblocking(listener)))
		return TCP_SM_R_NONE;
	return TCP_SM_R_LEARNING;
}

/*
 * At the end of an accelerated connection: did it pay? The server's end votes.
 * A client votes only about what it alone knows, or a port would be tried
 * again only when both ends happen to do so.
 */
static __always_inline void judge_gain(const struct socket_state *state, __u64 redirected,
				       __u8 reason)
{
	struct profile *p = profile_of(state->cgroup, state->server_port, state->side, true);

	if (!p || reason == TCP_SM_R_LEARNING || reason == TCP_SM_R_STARTING ||
	    reason == TCP_SM_R_MODE_PASS || reason == TCP_SM_R_PEER_LEFT)
		return;
	if (state->side == TCP_SM_CLIENT) {
		if (reason == TCP_SM_R_BLOCKING)
			vote_against(p, reason);
		else
			vote_for(p);
	} else if (reason) {
		vote_against(p, reason);
	} else if (redirected < GAIN_MSGS) {
		vote_against(p, TCP_SM_R_SHORT);
	} else {
		vote_for(p);
	}
}

#endif

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * struct_ops type `tcp_sm_ops` and the kfuncs of its programs.
 *
 * A program decides when a ring is read, written, full, and whom to wake; it
 * reaches ring memory through sized pointers and copies through kfuncs that
 * mask every index. Whatever it answers is checked by the caller. While no
 * program is attached, ring.c does the same in C.
 *
 * Detaching waits: struct_ops maps are freed without waiting for sleepable
 * programs, so unreg() does, by SRCU.
 */
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/btf_ids.h>
#include <linux/module.h>

#include "channel.h"
#include "kfuncs.h"

DEFINE_STATIC_SRCU(ops_srcu);
static DEFINE_MUTEX(ops_mutex);
static struct tcp_sm_ops __rcu *attached;

/* A program says how much it moved; `had` is what there was to move before. */
static int checked(int n, size_t had, const struct tcp_sm_io *io)
{
	return n < 0 || n == had - io->len ? n : -EPROTO;
}

int tcp_sm_ops_sendmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io)
{
	int idx = srcu_read_lock(&ops_srcu);
	struct tcp_sm_ops *ops = srcu_dereference(attached, &ops_srcu);
	size_t had = io->len;
	int n = ops ? ops->sendmsg(conn, io) : tcp_sm_ring_sendmsg(conn, io);

	srcu_read_unlock(&ops_srcu, idx);
	return checked(n, had, io);
}

int tcp_sm_ops_recvmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io)
{
	int idx = srcu_read_lock(&ops_srcu);
	struct tcp_sm_ops *ops = srcu_dereference(attached, &ops_srcu);
	size_t had = io->len;
	int n = ops ? ops->recvmsg(conn, io) : tcp_sm_ring_recvmsg(conn, io);

	srcu_read_unlock(&ops_srcu, idx);
	return checked(n, had, io);
}

u32 tcp_sm_ops_poll(struct tcp_sm_conn *conn, u32 lowat)
{
	int idx = srcu_read_lock(&ops_srcu);
	struct tcp_sm_ops *ops = srcu_dereference(attached, &ops_srcu);
	u32 mask = ops ? ops->poll(conn, lowat) : tcp_sm_ring_poll(conn, lowat);

	srcu_read_unlock(&ops_srcu, idx);
	return mask;
}

void tcp_sm_ops_close(struct tcp_sm_conn *conn)
{
	int idx = srcu_read_lock(&ops_srcu);
	struct tcp_sm_ops *ops = srcu_dereference(attached, &ops_srcu);

	if (ops)
		ops->close(conn);
	srcu_read_unlock(&ops_srcu, idx);
}

bool tcp_sm_ops_attached(void)
{
	return rcu_access_pointer(attached);
}

__bpf_kfunc_start_defs();

/* This end's half of direction `dir`: 32 bytes of struct tcp_sm_half. */
__bpf_kfunc u8 *tcp_sm_half(struct tcp_sm_conn *conn, u32 dir, int rdwr_buf_size)
{
	if (dir > TCP_SM_RX || rdwr_buf_size > (int)sizeof(struct tcp_sm_half))
		return NULL;
	return (u8 *)&conn->half[dir];
}

/* The shared lane of direction `dir`: 128 bytes of struct tcp_sm_lane. */
__bpf_kfunc u8 *tcp_sm_lane(struct tcp_sm_conn *conn, u32 dir, int rdwr_buf_size)
{
	if (dir > TCP_SM_RX || rdwr_buf_size > (int)sizeof(struct tcp_sm_lane))
		return NULL;
	return (u8 *)READ_ONCE(conn->lane[dir]);
}

/* Bytes from the caller of sendmsg into the ring at index `at`. */
__bpf_kfunc int tcp_sm_copy_in(struct tcp_sm_conn *conn, struct tcp_sm_io *io, u32 at, u32 len)
{
	return tcp_sm_ring_copy_in(conn, io, at, len);
}

/* Bytes of the ring from index `at` to the caller of recvmsg. */
__bpf_kfunc int tcp_sm_copy_out(struct tcp_sm_conn *conn, struct tcp_sm_io *io, u32 at, u32 len)
{
	return tcp_sm_ring_copy_out(conn, io, at, len);
}

/* Everything before is visible to the peer before everything after. */
__bpf_kfunc void tcp_sm_barrier(void)
{
	virt_mb();	/* what it orders, the programs say */
}

/* Ring the peer's bell for this connection. */
__bpf_kfunc void tcp_sm_wake_peer(struct tcp_sm_conn *conn)
{
	tcp_sm_conn_notify(conn);
}

/* Wake this end's reader. */
__bpf_kfunc void tcp_sm_wake_reader(struct tcp_sm_conn *conn)
{
	conn->sk->sk_data_ready(conn->sk);
}

__bpf_kfunc_end_defs();

BTF_KFUNCS_START(data_kfuncs)
BTF_ID_FLAGS(func, tcp_sm_half, KF_TRUSTED_ARGS | KF_RET_NULL)
BTF_ID_FLAGS(func, tcp_sm_lane, KF_TRUSTED_ARGS | KF_RET_NULL)
BTF_ID_FLAGS(func, tcp_sm_copy_in, KF_TRUSTED_ARGS | KF_SLEEPABLE)
BTF_ID_FLAGS(func, tcp_sm_copy_out, KF_TRUSTED_ARGS | KF_SLEEPABLE)
BTF_ID_FLAGS(func, tcp_sm_barrier)
BTF_ID_FLAGS(func, tcp_sm_wake_peer, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, tcp_sm_wake_reader, KF_TRUSTED_ARGS)
BTF_KFUNCS_END(data_kfuncs)

static const struct btf_kfunc_id_set data_kfunc_set = {
	.owner = THIS_MODULE,
	.set = &data_kfuncs,
};

static bool is_valid_access(int off, int size, enum bpf_access_type type,
			    const struct bpf_prog *prog, struct bpf_insn_access_aux *info)
{
	return bpf_tracing_btf_ctx_access(off, size, type, prog, info);
}

static const struct bpf_func_proto *get_func_proto(enum bpf_func_id id,
						   const struct bpf_prog *prog)
{
	return bpf_base_func_proto(id, prog);
}

static const struct bpf_verifier_ops verifier_ops = {
	.get_func_proto = get_func_proto,
	.is_valid_access = is_valid_access,
};

static int ops_init(struct btf *btf)
{
	return 0;
}

/* sendmsg and recvmsg run under the socket's lock and may sleep; the others may not. */
static int ops_check_member(const struct btf_type *type, const struct btf_member *member,
			    const struct bpf_prog *prog)
{
	u32 off = __btf_member_bit_offset(type, member) / 8;
	bool sleeps = off == offsetof(struct tcp_sm_ops, sendmsg) ||
		      off == offsetof(struct tcp_sm_ops, recvmsg);

	return prog->sleepable && !sleeps ? -EINVAL : 0;
}

static int ops_init_member(const struct btf_type *type, const struct btf_member *member,
			   void *kdata, const void *udata)
{
	return 0;	/* functions only */
}

static int ops_validate(void *kdata)
{
	struct tcp_sm_ops *ops = kdata;

	return ops->sendmsg && ops->recvmsg && ops->poll && ops->close ? 0 : -EINVAL;
}

static int ops_reg(void *kdata, struct bpf_link *link)
{
	int err = 0;

	mutex_lock(&ops_mutex);
	if (rcu_access_pointer(attached))
		err = -EEXIST;
	else
		rcu_assign_pointer(attached, kdata);
	mutex_unlock(&ops_mutex);
	return err;
}

static void ops_unreg(void *kdata, struct bpf_link *link)
{
	mutex_lock(&ops_mutex);
	if (rcu_access_pointer(attached) == kdata)
		rcu_assign_pointer(attached, NULL);
	mutex_unlock(&ops_mutex);
	synchronize_srcu(&ops_srcu);
}

static int ops_update(void *kdata, void *old_kdata, struct bpf_link *link)
{
	int err = 0;

	mutex_lock(&ops_mutex);
	if (rcu_access_pointer(attached) == old_kdata)
		rcu_assign_pointer(attached, kdata);
	else
		err = -EINVAL;
	mutex_unlock(&ops_mutex);
	synchronize_srcu(&ops_srcu);
	return err;
}

static int stub_sendmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io)
{
	return 0;
}

static int stub_recvmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io)
{
	return 0;
}

static u32 stub_poll(struct tcp_sm_conn *conn, u32 lowat)
{
	return 0;
}

static void stub_close(struct tcp_sm_conn *conn)
{
}

static struct tcp_sm_ops stubs = {
	.sendmsg = stub_sendmsg,
	.recvmsg = stub_recvmsg,
	.poll = stub_poll,
	.close = stub_close,
};

static struct bpf_struct_ops struct_ops = {
	.verifier_ops = &verifier_ops,
	.init = ops_init,
	.check_member = ops_check_member,
	.init_member = ops_init_member,
	.validate = ops_validate,
	.reg = ops_reg,
	.unreg = ops_unreg,
	.update = ops_update,
	.cfi_stubs = &stubs,
	.name = "tcp_sm_ops",
	.owner = THIS_MODULE,
};

int tcp_sm_ops_init(void)
{
	int err = register_btf_kfunc_id_set(BPF_PROG_TYPE_STRUCT_OPS, &data_kfunc_set);

	return err ?: register_bpf_struct_ops(&struct_ops, tcp_sm_ops);
}

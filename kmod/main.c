// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tcp_sm: TCP between machines of one hypervisor through shared memory.
 *
 * The sockets stay TCP sockets: the handshake, FIN, RST and keepalive are the
 * network's; the bytes between are in rings of an IVSHMEM region. See channel.h
 * for what is where.
 */
#include <linux/module.h>

#include "channel.h"

static int __init tcp_sm_init(void)
{
	int err;

	tcp_sm_proto_init();
	err = tcp_sm_ops_init() ?: tcp_sm_handshake_init();
	return err ?: tcp_sm_ivshmem_init();
}

static void __exit tcp_sm_exit(void)
{
	tcp_sm_ivshmem_exit();
	rcu_barrier();			/* conn_free() */
	tcp_sm_proto_exit();
}

module_init(tcp_sm_init);
module_exit(tcp_sm_exit);

MODULE_AUTHOR("the colocated.tcp_sm authors");
MODULE_DESCRIPTION("TCP between machines of one hypervisor through shared memory");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0.0");

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The headers of every program, and how memory is read that others write. */
#ifndef TCP_SM_COMMON_KERNEL_H
#define TCP_SM_COMMON_KERNEL_H

#include "kernel_types.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

extern void *bpf_cast_to_kern_ctx(void *obj) __ksym;
extern void *bpf_rdonly_cast(void *obj, __u32 btf_id) __ksym;

#endif

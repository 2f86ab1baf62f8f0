/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright (c) 2026, the colocated.tcp_sm authors */
/* What both ends of the load generator share: the first bytes, and non-blocking I/O. */
#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#define MAX_SIZE (1u << 20)
#define STALL_S 10	/* longer silence is a lost wake-up or lost bytes */

enum mode { PINGPONG, UP, DOWN, SHORT, MODES };

/* The first 8 bytes of every connection; both ends have one byte order. */
struct hello {
	uint16_t mode;
	uint16_t blocking;	/* both ends sleep in send and recv, not in epoll */
	uint32_t size;
};

struct conn {
	int fd;
	int writing;		/* EPOLLOUT is armed */
	struct hello hello;
	size_t hello_got;
	size_t got, put;	/* of the message being read or written */
	uint64_t bytes;		/* streamed: sent, or received by the server */
	int stopping;
};

struct target {
	struct sockaddr_storage address;
	socklen_t len;
};

extern int ep;			/* the process's one epoll instance */
extern char in[MAX_SIZE];

/* Prints what failed with errno's text and ends the process. */
void die(const char *what) __attribute__((noreturn));

/* An IPv4 address and a port, or an AF_UNIX path, which has a slash. */
void parse_target(const char *text, const char *port, struct target *target);

void watch(struct conn *c, int op, uint32_t events);

/* Want EPOLLOUT only while there is something that did not fit. */
void want_write(struct conn *c, int on);

/* Requests and answers leave at once; streams keep the kernel's coalescing. */
void no_delay(int fd, uint32_t mode);

/* From here on the connection's calls block, up to STALL_S, and epoll is not used. */
void make_blocking(struct conn *c);

/* Bytes received, 0 at the end or after an error or a stall, -1 when it would block. */
ssize_t get(struct conn *c, void *to, size_t size);

/* Sends the rest of a `size` byte message: 1 done, 0 blocked, -1 connection lost. */
int put(struct conn *c, size_t size);

/* server.c: never returns.  client.c: prints the result. */
void serve(struct target *target) __attribute__((noreturn));
void load(struct target *target, struct hello hello, double seconds);

#endif

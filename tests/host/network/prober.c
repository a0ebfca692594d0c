// SPDX-License-Identifier: Apache-2.0
/*
 * One end of the truth table's packets: a process that lives in a network namespace of its own (or in a given one, or
 * in a cgroup), listens, and sends a probe whenever its standard input says so.
 *
 *   prober [-n | -j NAMESPACE] [-c CGROUP_DIRECTORY]
 *
 * Commands, one a line:
 *   listen tcp|udp ADDRESS PORT      answer on this port
 *   listen sctp|icmp ADDRESS 0       raw packets to this address: SCTP's INIT is answered here, ICMP by the kernel
 *   probe ID PROTOCOL SOURCE SOURCE_PORT DESTINATION PORT    PORT is the type for ICMP, SOURCE_PORT its identifier
 *   keep ID                          do not close this probe's socket with the others
 *   send ID                          one more byte over a probe that was answered
 *   clear                            close what probes have opened
 *   release                          close what was kept, too
 *   sync NUMBER                      repeat the number when nothing is left to read
 *
 * Told on standard output: "answered ID", "failed ID ERRNO", "more ID" (the answer to "send"), "got PROTOCOL SOURCE
 * SOURCE_PORT DESTINATION PORT" for what arrived, "sync NUMBER", "error TEXT" before it ends.
 *
 * SCTP goes over raw sockets, with the checksum that connection tracking verifies: many kernels have no SCTP sockets,
 * and rules are about packets.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <unistd.h>

enum kind { INPUT, TCP_LISTENER, TCP_SERVED, UDP_LISTENER, RAW_SCTP, RAW_ICMP, TCP_PROBE, UDP_PROBE, RAW_PROBE };

struct end {
	enum kind kind;
	int fd;
	int family;
	long id;
	int port; /* of a listener; a probe's destination port or ICMP type */
	int source_port;
	bool done; /* a probe that has its answer, or never will */
	bool keep, dead;
	struct sockaddr_storage peer, own;
	struct end *next;
};

static struct end *ends;
static int epoll_fd;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	va_list arguments;

	fputs("error ", stdout);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf(": %s\n", strerror(errno));
	fflush(stdout);
	exit(1);
}

static socklen_t parse(const char *text, int port, struct sockaddr_storage *address)
{
	struct sockaddr_in *four = (void *)address;
	struct sockaddr_in6 *six = (void *)address;

	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(port);
		return sizeof(*four);
	}
	if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		return sizeof(*six);
	}
	errno = EINVAL;
	fail("address %s", text);
}

static const char *text_of(const struct sockaddr_storage *address)
{
	static char buffers[4][INET6_ADDRSTRLEN];
	static int turn;
	char *buffer = buffers[turn++ % 4];
	const void *bytes = address->ss_family == AF_INET ? (const void *)&((const struct sockaddr_in *)address)->sin_addr :
							    (const void *)&((const struct sockaddr_in6 *)address)->sin6_addr;

	return inet_ntop(address->ss_family, bytes, buffer, INET6_ADDRSTRLEN);
}

static int port_of(const struct sockaddr_storage *address)
{
	return ntohs(address->ss_family == AF_INET ? ((const struct sockaddr_in *)address)->sin_port :
						     ((const struct sockaddr_in6 *)address)->sin6_port);
}

static bool same_address(const struct sockaddr_storage *one, const struct sockaddr_storage *other)
{
	if (one->ss_family != other->ss_family)
		return false;
	if (one->ss_family == AF_INET)
		return ((const struct sockaddr_in *)one)->sin_addr.s_addr ==
		       ((const struct sockaddr_in *)other)->sin_addr.s_addr;
	return !memcmp(&((const struct sockaddr_in6 *)one)->sin6_addr, &((const struct sockaddr_in6 *)other)->sin6_addr, 16);
}

static struct end *add(enum kind kind, int fd, uint32_t events)
{
	struct end *end = calloc(1, sizeof(*end));
	struct epoll_event event = { .events = events, .data.ptr = end };

	if (!end)
		fail("memory");
	end->kind = kind;
	end->fd = fd;
	end->next = ends;
	ends = end;
	if (fd >= 0 && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
		fail("epoll");
	return end;
}

static void drop(struct end *end)
{
	if (end->fd >= 0)
		close(end->fd);
	end->fd = -1;
	end->dead = true;
}

static void sweep(void)
{
	for (struct end **link = &ends; *link;) {
		struct end *end = *link;

		if (end->dead) {
			*link = end->next;
			free(end);
		} else {
			link = &end->next;
		}
	}
}

static uint32_t crc32c(const uint8_t *bytes, size_t length)
{
	uint32_t crc = 0xffffffff;

	while (length--) {
		crc ^= *bytes++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
	}
	return ~crc;
}

static uint16_t sum16(const uint8_t *bytes, size_t length)
{
	uint32_t sum = 0;

	for (size_t index = 0; index + 1 < length; index += 2)
		sum += bytes[index] << 8 | bytes[index + 1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

static void put16(uint8_t *place, unsigned value)
{
	place[0] = value >> 8;
	place[1] = value;
}

static unsigned get16(const uint8_t *place)
{
	return place[0] << 8 | place[1];
}

/* An SCTP packet of one chunk: INIT (1) or INIT ACK (2); the tag of the one is the verification tag of the other. */
static int send_sctp(int fd, const struct sockaddr_storage *to, int from_port, int to_port, int chunk, const uint8_t *tag)
{
	uint8_t packet[32] = { 0 };
	struct sockaddr_storage address = *to;
	uint32_t crc;

	put16(packet, from_port);
	put16(packet + 2, to_port);
	if (chunk == 2)
		memcpy(packet + 4, tag, 4);
	packet[12] = chunk;
	put16(packet + 14, 20);
	memcpy(packet + 16, "HbTg", 4); /* initiate tag */
	put16(packet + 20, 1); /* receiver window */
	put16(packet + 24, 1); /* streams out, in */
	put16(packet + 26, 1);
	put16(packet + 30, 1); /* first sequence number */
	crc = crc32c(packet, sizeof(packet));
	for (int index = 0; index < 4; index++)
		packet[8 + index] = crc >> 8 * index;
	if (address.ss_family == AF_INET6)
		((struct sockaddr_in6 *)&address)->sin6_port = 0; /* a raw socket takes a protocol or nothing here */
	return sendto(fd, packet, sizeof(packet), 0, (void *)&address,
		      to->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
}

static int send_icmp(int fd, const struct sockaddr_storage *to, int type, int identifier)
{
	uint8_t packet[32] = { [0] = type };
	struct sockaddr_storage address = *to;
	bool four = to->ss_family == AF_INET;

	put16(packet + 4, identifier);
	put16(packet + 6, 1);
	if (four)
		memcpy(packet + 2, &(uint16_t){ sum16(packet, 20) }, 2);
	else
		((struct sockaddr_in6 *)&address)->sin6_port = 0;
	return sendto(fd, packet, 20, 0, (void *)&address,
		      four ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
}

static void on(int fd, int level, int name)
{
	if (setsockopt(fd, level, name, &(int){ 1 }, sizeof(int)))
		fail("setsockopt %d", name);
}

static int open_bound(int type, int protocol, const struct sockaddr_storage *address, socklen_t length)
{
	int fd = socket(address->ss_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);

	if (fd < 0)
		fail("socket %d", protocol);
	on(fd, SOL_SOCKET, SO_REUSEADDR);
	if (address->ss_family == AF_INET6 && type != SOCK_RAW)
		on(fd, IPPROTO_IPV6, IPV6_V6ONLY);
	if (bind(fd, (const void *)address, length))
		fail("bind %s %d", text_of(address), port_of(address));
	return fd;
}

static void listen_on(const char *protocol, const char *text, int port)
{
	struct sockaddr_storage address;
	socklen_t length = parse(text, port, &address);
	bool four = address.ss_family == AF_INET;
	struct end *end;
	int fd;

	if (!strcmp(protocol, "tcp")) {
		fd = open_bound(SOCK_STREAM, 0, &address, length);
		if (listen(fd, 4096))
			fail("listen");
		end = add(TCP_LISTENER, fd, EPOLLIN);
	} else if (!strcmp(protocol, "udp")) {
		fd = open_bound(SOCK_DGRAM, 0, &address, length);
		if (four)
			on(fd, IPPROTO_IP, IP_PKTINFO);
		end = add(UDP_LISTENER, fd, EPOLLIN);
	} else if (!strcmp(protocol, "sctp")) {
		end = add(RAW_SCTP, open_bound(SOCK_RAW, IPPROTO_SCTP, &address, length), EPOLLIN);
	} else {
		end = add(RAW_ICMP, open_bound(SOCK_RAW, four ? IPPROTO_ICMP : IPPROTO_ICMPV6, &address, length), EPOLLIN);
	}
	setsockopt(end->fd, SOL_SOCKET, SO_RCVBUFFORCE, &(int){ 4 << 20 }, sizeof(int));
	end->family = address.ss_family;
	end->port = port;
	end->own = address;
}

static struct end *raw_of(enum kind kind, const struct sockaddr_storage *own)
{
	for (struct end *end = ends; end; end = end->next)
		if (end->kind == kind && same_address(&end->own, own))
			return end;
	errno = ENOENT;
	fail("no raw socket for %s", text_of(own));
}

static void probe(long id, const char *protocol, const char *source, int source_port, const char *target, int port)
{
	struct sockaddr_storage own, peer;
	socklen_t length = parse(source, source_port, &own);
	struct end *end;
	int result;

	parse(target, port, &peer);
	if (!strcmp(protocol, "tcp") || !strcmp(protocol, "udp")) {
		bool tcp = protocol[0] == 't';
		int fd = open_bound(tcp ? SOCK_STREAM : SOCK_DGRAM, 0, &own, length);

		if (tcp) /* what is closed leaves nothing waiting behind */
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
		end = add(tcp ? TCP_PROBE : UDP_PROBE, fd, tcp ? EPOLLOUT : EPOLLIN);
		result = connect(fd, (void *)&peer, length);
		if (!result && !tcp)
			result = send(fd, "?", 1, 0) == 1 ? 0 : -1;
		else if (result && errno == EINPROGRESS)
			result = 0;
	} else {
		bool sctp = protocol[0] == 's';
		int fd = raw_of(sctp ? RAW_SCTP : RAW_ICMP, &own)->fd;

		end = add(RAW_PROBE, -1, 0);
		end->family = sctp ? IPPROTO_SCTP : IPPROTO_ICMP;
		result = sctp ? send_sctp(fd, &peer, source_port, port, 1, NULL) : send_icmp(fd, &peer, port, source_port);
	}
	end->id = id;
	end->port = port;
	end->source_port = source_port;
	end->own = own;
	end->peer = peer;
	if (result < 0) {
		printf("failed %ld %d\n", id, errno);
		end->done = true;
	}
}

static struct end *probe_with(long id)
{
	for (struct end *end = ends; end; end = end->next)
		if (end->id == id && end->kind >= TCP_PROBE)
			return end;
	errno = ENOENT;
	fail("no probe %ld", id);
}

static void answered(int protocol, const struct sockaddr_storage *from, int port, int own_port)
{
	for (struct end *end = ends; end; end = end->next)
		if (end->kind == RAW_PROBE && !end->done && !end->dead && end->family == protocol && end->source_port == own_port &&
		    end->port == port && same_address(&end->peer, from)) {
			end->done = true;
			printf("answered %ld\n", end->id);
			return;
		}
}

static void raw_arrived(struct end *end)
{
	uint8_t buffer[2048];
	struct sockaddr_storage from;
	socklen_t length = sizeof(from);
	ssize_t got;

	while ((got = recvfrom(end->fd, buffer, sizeof(buffer), 0, (void *)&from, &length)) >= 0) {
		size_t header = end->family == AF_INET ? (buffer[0] & 15) * 4u : 0; /* IPv6 gives none */
		const uint8_t *packet = buffer + header;

		length = sizeof(from);
		if (got < (ssize_t)header + 8)
			continue;
		if (end->kind == RAW_ICMP) {
			int to = end->family == AF_INET ? (packet[0] == 0 ? 8 : packet[0] == 14 ? 13 : 0) :
							  (packet[0] == 129 ? 128 : 0); /* what it is the reply to */
			bool asked = end->family == AF_INET ? packet[0] == 8 || packet[0] == 13 :
							      packet[0] == 128 || packet[0] == 139;

			if (to)
				answered(IPPROTO_ICMP, &from, to, get16(packet + 4));
			else if (asked)
				printf("got icmp %s %u %s %u\n", text_of(&from), get16(packet + 4), text_of(&end->own), packet[0]);
		} else if (got >= (ssize_t)header + 20 && packet[12] == 1) {
			printf("got sctp %s %u %s %u\n", text_of(&from), get16(packet), text_of(&end->own), get16(packet + 2));
			send_sctp(end->fd, &from, get16(packet + 2), get16(packet), 2, packet + 16);
		} else if (got >= (ssize_t)header + 20 && packet[12] == 2) {
			answered(IPPROTO_SCTP, &from, get16(packet), get16(packet + 2));
		}
	}
}

static void udp_arrived(struct end *end)
{
	char byte[16];
	struct sockaddr_storage from;
	socklen_t length = sizeof(from);
	ssize_t got;

	while ((got = recvfrom(end->fd, byte, sizeof(byte), 0, (void *)&from, &length)) >= 0) {
		printf("got udp %s %d %s %d\n", text_of(&from), port_of(&from), text_of(&end->own), end->port);
		sendto(end->fd, byte, got, 0, (void *)&from, length);
		length = sizeof(from);
	}
	if (errno != EAGAIN)
		fail("the listener %s %d is gone", text_of(&end->own), end->port);
}

static void tcp_arrived(struct end *end)
{
	struct sockaddr_storage from;
	socklen_t length = sizeof(from);
	int fd;

	while ((fd = accept4(end->fd, (void *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		printf("got tcp %s %d %s %d\n", text_of(&from), port_of(&from), text_of(&end->own), end->port);
		add(TCP_SERVED, fd, EPOLLIN);
		length = sizeof(from);
	}
	if (errno != EAGAIN) /* flows can be ended by others, but nobody may close a service */
		fail("the listener %s %d is gone", text_of(&end->own), end->port);
}

static void echo(struct end *end)
{
	char bytes[64];
	ssize_t got = recv(end->fd, bytes, sizeof(bytes), 0);

	if (got > 0)
		send(end->fd, bytes, got, MSG_NOSIGNAL);
	else if (got == 0 || (errno != EAGAIN && errno != EINTR))
		drop(end);
}

static void probe_moved(struct end *end)
{
	char bytes[64];
	int error = 0;
	socklen_t length = sizeof(error);
	ssize_t got;

	if (end->kind == TCP_PROBE && !end->done) {
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = end };

		getsockopt(end->fd, SOL_SOCKET, SO_ERROR, &error, &length);
		if (error)
			printf("failed %ld %d\n", end->id, error);
		else
			printf("answered %ld\n", end->id);
		end->done = true;
		epoll_ctl(epoll_fd, error ? EPOLL_CTL_DEL : EPOLL_CTL_MOD, end->fd, &event);
		return;
	}
	got = recv(end->fd, bytes, sizeof(bytes), 0);
	if (got > 0) {
		printf("%s %ld\n", end->done ? "more" : "answered", end->id);
		end->done = true;
	} else if (got == 0 || errno != EAGAIN) {
		if (!end->done)
			printf("failed %ld %d\n", end->id, errno);
		end->done = true;
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, end->fd, NULL);
	}
}

static bool turn(int timeout);

static void obey(char *line)
{
	char protocol[8], one[64], other[64];
	int port, other_port;
	long id;

	if (sscanf(line, "probe %ld %7s %63s %d %63s %d", &id, protocol, one, &port, other, &other_port) == 6) {
		probe(id, protocol, one, port, other, other_port);
	} else if (sscanf(line, "listen %7s %63s %d", protocol, one, &port) == 3) {
		listen_on(protocol, one, port);
	} else if (sscanf(line, "keep %ld", &id) == 1) {
		probe_with(id)->keep = true;
	} else if (sscanf(line, "send %ld", &id) == 1) {
		if (send(probe_with(id)->fd, "!", 1, MSG_NOSIGNAL) != 1)
			printf("failed %ld %d\n", id, errno);
	} else if (!strcmp(line, "clear") || !strcmp(line, "release")) {
		for (struct end *end = ends; end; end = end->next)
			if (end->kind >= TCP_PROBE && (!end->keep || line[0] == 'r'))
				drop(end);
	} else if (sscanf(line, "sync %ld", &id) == 1) {
		while (turn(0))
			;
		printf("sync %ld\n", id);
	} else {
		errno = EINVAL;
		fail("command %s", line);
	}
}

static void input(void)
{
	static char buffer[1 << 16];
	static size_t filled;
	ssize_t got = read(0, buffer + filled, sizeof(buffer) - filled - 1);
	char *line = buffer, *end;

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0)
		exit(0);
	filled += got;
	buffer[filled] = 0;
	while ((end = memchr(line, '\n', buffer + filled - line))) {
		*end = 0;
		obey(line);
		line = end + 1;
	}
	filled -= line - buffer;
	memmove(buffer, line, filled);
}

/* Everything but input, which is read last: "sync" asks for a turn while it is read. */
static bool turn(int timeout)
{
	static int depth;
	struct epoll_event events[256];
	int count = epoll_wait(epoll_fd, events, 256, timeout);
	bool asked = false, moved = false;

	for (int index = 0; index < count; index++) {
		struct end *end = events[index].data.ptr;

		if (end->kind == INPUT) {
			asked = true;
			continue;
		}
		if (end->dead)
			continue;
		moved = true;
		switch (end->kind) {
		case TCP_LISTENER:
			tcp_arrived(end);
			break;
		case TCP_SERVED:
			echo(end);
			break;
		case UDP_LISTENER:
			udp_arrived(end);
			break;
		case RAW_SCTP:
		case RAW_ICMP:
			raw_arrived(end);
			break;
		default:
			probe_moved(end);
		}
	}
	if (!depth && asked) {
		depth = 1;
		input();
		depth = 0;
	}
	if (!depth)
		sweep();
	return moved;
}

int main(int count, char **arguments)
{
	int option, fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setvbuf(stdout, NULL, _IOFBF, 1 << 18);
	while ((option = getopt(count, arguments, "nj:c:")) != -1) {
		switch (option) {
		case 'n':
			if (unshare(CLONE_NEWNET))
				fail("unshare");
			break;
		case 'j':
			fd = open(optarg, O_RDONLY | O_CLOEXEC);
			if (fd < 0 || setns(fd, CLONE_NEWNET))
				fail("namespace %s", optarg);
			close(fd);
			break;
		case 'c':
			fd = open(optarg, O_WRONLY | O_CLOEXEC);
			if (fd < 0 || write(fd, "0", 1) != 1)
				fail("cgroup %s", optarg);
			close(fd);
			break;
		default:
			return 2;
		}
	}
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	fcntl(0, F_SETFL, O_NONBLOCK);
	add(INPUT, 0, EPOLLIN);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		turn(-1);
		fflush(stdout);
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Traffic for the benchmark of network policies: one way, it costs as little as it can beside the packets.
 *
 *   flood SOURCE/16 DESTINATION PORT COUNT    UDP packets of 64 bytes, each a flow of its own
 *   trips NAMESPACE DESTINATION/16 PORT COUNT UDP there and back, each a flow of its own
 *   flow NAMESPACE DESTINATION PORT COUNT     UDP there and back, all of one flow
 *   connect NAMESPACE DESTINATION PORT COUNT  make TCP connections and end them
 *   stream NAMESPACE DESTINATION PORT COUNT   64 KiB, so often, through one TCP connection
 *
 * Each writes the nanoseconds that one took, of the clock and of the processor: "4100 3900". One thread has both ends, the
 * other one in the network namespace that a path names, and a virtual Ethernet pair hands a packet on within the call that
 * sends it: so nobody waits for anybody, and the processor's time is that of both ends and of all that is between them.
 * Sources of a flood are made up, so it needs a raw socket.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PACKET = 64, BATCH = 64, SOCKETS = 64, CHUNK = 1 << 16, ROOM = 1 << 20, WARMING = 500 };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t nanoseconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* xorshift: the same numbers each time. */
static uint32_t some(void)
{
	static uint64_t state = 88172645463325252;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

static struct sockaddr_in place(const char *address, const char *port)
{
	struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

	if (inet_pton(AF_INET, address, &found.sin_addr) != 1) {
		fprintf(stderr, "found %s, expected an IPv4 address\n", address);
		exit(2);
	}
	return found;
}

/* A socket of another network namespace, bound to a port. */
static int in_namespace(const char *path, int kind, const char *port)
{
	struct sockaddr_in any = place("0.0.0.0", port);
	int one = 1, made, here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), there = open(path, O_RDONLY | O_CLOEXEC);

	if (here < 0 || there < 0 || setns(there, CLONE_NEWNET))
		fail(path);
	made = socket(AF_INET, kind, 0);
	setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(made, (struct sockaddr *)&any, sizeof any))
		fail("bind");
	if (kind == SOCK_STREAM && listen(made, 16))
		fail("listen");
	if (setns(here, CLONE_NEWNET))
		fail("setns");
	return made;
}

static struct {
	int64_t clock, processor;
} began;

static void begin(void)
{
	began.clock = nanoseconds(CLOCK_MONOTONIC);
	began.processor = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
}

static int told(long count)
{
	long clock = (nanoseconds(CLOCK_MONOTONIC) - began.clock) / count;

	printf("%ld %ld\n", clock, (long)((nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - began.processor) / count));
	return 0;
}

static int flood(const char *sources, const char *destination, const char *port, long count)
{
	static unsigned char packets[BATCH][PACKET];
	struct sockaddr_in to = place(destination, port);
	uint32_t network = ntohl(place(sources, "0").sin_addr.s_addr);
	struct mmsghdr messages[BATCH] = {0};
	struct iovec parts[BATCH];
	int out = socket(AF_INET, SOCK_RAW, IPPROTO_RAW), room = 8 << 20;
	long sent = 0;

	if (out < 0)
		fail("socket");
	setsockopt(out, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	for (int i = 0; i < BATCH; i++) {
		struct iphdr *ip = (struct iphdr *)packets[i];
		struct udphdr *udp = (struct udphdr *)(packets[i] + sizeof *ip);

		*ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP};
		ip->tot_len = htons(PACKET);
		ip->daddr = to.sin_addr.s_addr;
		udp->dest = to.sin_port;
		udp->len = htons(PACKET - sizeof *ip);
		parts[i] = (struct iovec){packets[i], PACKET};
		messages[i].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &parts[i], .msg_iovlen = 1};
	}
	begin();
	while (sent < count) {
		int wanted = count - sent < BATCH ? count - sent : BATCH, done;

		for (int i = 0; i < wanted; i++) {
			struct iphdr *ip = (struct iphdr *)packets[i];
			struct udphdr *udp = (struct udphdr *)(packets[i] + sizeof *ip);
			uint32_t number = some();

			ip->saddr = htonl(network | (number & 0xffff));
			ip->check = 0; /* the kernel writes it */
			udp->source = htons(1024 + (number >> 16) % 60000);
		}
		done = sendmmsg(out, messages, wanted, 0);
		if (done < 0 && errno != ENOBUFS)
			fail("sendmmsg");
		sent += done > 0 ? done : 0;
	}
	return told(sent);
}

/* Send back what has come, from the address it came to. */
static int echo(int here)
{
	char buffer[2048], control[256];
	struct sockaddr_in from;
	struct iovec part = {buffer, sizeof buffer};
	struct msghdr message = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &part, .msg_iovlen = 1,
				 .msg_control = control, .msg_controllen = sizeof control};
	ssize_t size = recvmsg(here, &message, 0);

	if (size < 0)
		return -1;
	part.iov_len = size;
	for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); one; one = CMSG_NXTHDR(&message, one)) {
		struct in_pktinfo *came = (struct in_pktinfo *)CMSG_DATA(one);

		if (one->cmsg_level != IPPROTO_IP || one->cmsg_type != IP_PKTINFO)
			continue;
		came->ipi_spec_dst = came->ipi_addr;
		came->ipi_ifindex = 0;
	}
	return sendmsg(here, &message, 0) < 0 ? -1 : 0;
}

static int trips(const char *namespace, const char *destinations, const char *port, long count, int flows)
{
	int one = 1, there = in_namespace(namespace, SOCK_DGRAM, port), ends[SOCKETS];
	uint32_t network = ntohl(place(destinations, "0").sin_addr.s_addr);
	struct sockaddr_in to = place(destinations, port);
	struct timeval patience = {.tv_sec = 1};
	char buffer[PACKET - 28] = {0};

	setsockopt(there, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
	setsockopt(there, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	for (int i = 0; i < SOCKETS; i++) {
		ends[i] = socket(AF_INET, SOCK_DGRAM, 0);
		setsockopt(ends[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	}
	begin();
	for (long i = 0; i < count; i++) {
		int end = ends[flows ? i % SOCKETS : 0];

		if (flows)
			to.sin_addr.s_addr = htonl(network | (1 + some() % 65533));
		if (sendto(end, buffer, sizeof buffer, 0, (struct sockaddr *)&to, sizeof to) < 0 || echo(there) ||
		    recv(end, buffer, sizeof buffer, 0) < 0)
			fail("a round trip");
	}
	return told(count);
}

static int connecting(const char *namespace, const char *destination, const char *port, long count)
{
	int there = in_namespace(namespace, SOCK_STREAM, port);
	struct sockaddr_in to = place(destination, port);
	struct linger at_once = {.l_onoff = 1}; /* no TIME_WAIT: ports would run out */

	begin();
	for (long i = 0; i < count; i++) {
		int one = socket(AF_INET, SOCK_STREAM, 0), other;

		setsockopt(one, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
		if (connect(one, (struct sockaddr *)&to, sizeof to) || (other = accept(there, NULL, NULL)) < 0)
			fail("a connection");
		close(one);
		close(other);
	}
	return told(count);
}

static int streaming(const char *namespace, const char *destination, const char *port, long count)
{
	static char chunk[CHUNK];
	int there = in_namespace(namespace, SOCK_STREAM, port), one = socket(AF_INET, SOCK_STREAM, 0), other, room = ROOM;
	struct sockaddr_in to = place(destination, port);

	/* Buffers of one size: else the kernel makes them larger as it goes. */
	setsockopt(one, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	setsockopt(there, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
	if (connect(one, (struct sockaddr *)&to, sizeof to) || (other = accept(there, NULL, NULL)) < 0)
		fail("a connection");
	for (long i = -WARMING; i < count; i++) {
		size_t sent = 0, received = 0;

		if (!i)
			begin();
		while (received < CHUNK) {
			ssize_t size = sent < CHUNK ? send(one, chunk, CHUNK - sent, MSG_DONTWAIT) : 0;

			if (size < 0 && errno != EAGAIN)
				fail("send");
			sent += size > 0 ? size : 0;
			size = recv(other, chunk, CHUNK, MSG_DONTWAIT);
			if (size == 0 || (size < 0 && errno != EAGAIN))
				fail("recv");
			received += size > 0 ? size : 0;
		}
	}
	return told(count);
}

int main(int count, char **words)
{
	const char *mode = count == 6 ? words[1] : "";

	if (!strcmp(mode, "flood"))
		return flood(words[2], words[3], words[4], atol(words[5]));
	if (!strcmp(mode, "trips") || !strcmp(mode, "flow"))
		return trips(words[2], words[3], words[4], atol(words[5]), *mode == 't');
	if (!strcmp(mode, "connect"))
		return connecting(words[2], words[3], words[4], atol(words[5]));
	if (!strcmp(mode, "stream"))
		return streaming(words[2], words[3], words[4], atol(words[5]));
	fprintf(stderr, "usage: %s flood|trips|flow|connect|stream …; see the head of its source\n", words[0]);
	return 2;
}

// SPDX-License-Identifier: Apache-2.0
// Ways round a packet filter that knows a workload by the cgroup and the network namespace of its sockets, and what must go on working beside them.
//
//   network ATTEMPT...                              prints "ATTEMPT ERRNO" for each, 0 where it got what it wanted; each in a process of its own
//   network -r (tcp|udp|sctp ADDRESS PORT SECONDS)...   for each prints "0" when there was an answer, else an errno (ETIMEDOUT where nothing came)
//   network -s PORT                                 answers everybody over TCP, both families, until it is ended
//   network -k ADDRESS PORT                         holds a TCP connection; for each line read, prints what -r would after one more byte over it
//
// Settings come from the environment: OUTSIDE, a cgroup directory that is not the workload's; NAMESPACE, another network namespace's file;
// HANDOVER, a Unix socket whose other end sends one descriptor. Status 2: an attempt could not be made (a step of preparation failed).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/io_uring.h>
#include <linux/mount.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define BROKEN 254 // no errno

static long prepared(const char *step, long result)
{
	if (result >= 0)
		return result;
	fprintf(stderr, "network: %s: %s\n", step, strerror(errno));
	_exit(BROKEN);
}

static const char *setting(const char *name)
{
	const char *value = getenv(name);
	if (value == NULL) {
		fprintf(stderr, "network: %s is not set\n", name);
		_exit(BROKEN);
	}
	return value;
}

// An attempt gives 0 or an errno.
static int answer(long result)
{
	return result < 0 ? errno : 0;
}

static int make(int family, int type, int protocol)
{
	return answer(socket(family, type | SOCK_CLOEXEC, protocol));
}

// --- sockets that a packet filter does not see, or not as the workload's -----------------------------------------------------------------------

static int raw(void) { return make(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static int raw6(void) { return make(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6); }
static int raw_header(void) { return make(AF_INET, SOCK_RAW, IPPROTO_RAW); }
static int packet(void) { return make(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)); }
static int packet_datagram(void) { return make(AF_PACKET, SOCK_DGRAM, htons(ETH_P_IP)); }
static int express(void) { return make(AF_XDP, SOCK_RAW, 0); }
static int vsock(void) { return make(AF_VSOCK, SOCK_STREAM, 0); }

static int tcp(void) { return make(AF_INET, SOCK_STREAM, 0); }
static int udp6(void) { return make(AF_INET6, SOCK_DGRAM, 0); }
static int local(void) { return make(AF_UNIX, SOCK_DGRAM, 0); }
static int netlink(void) { return make(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE); }

// By the kernel's worker thread, where the system call's own checks are not made.
static int ring(void)
{
	struct io_uring_params setup = { 0 };
	int descriptor = (int)prepared("io_uring_setup", syscall(SYS_io_uring_setup, 4, &setup));
	size_t ring_size = setup.sq_off.array + setup.sq_entries * sizeof(unsigned);
	size_t completion_size = setup.cq_off.cqes + setup.cq_entries * sizeof(struct io_uring_cqe);
	unsigned char *submission = mmap(NULL, ring_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, IORING_OFF_SQ_RING);
	unsigned char *completion = mmap(NULL, completion_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, IORING_OFF_CQ_RING);
	struct io_uring_sqe *entries =
		mmap(NULL, setup.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, IORING_OFF_SQES);
	prepared("map-ring", submission == MAP_FAILED || completion == MAP_FAILED || entries == MAP_FAILED ? -1 : 0);
	entries[0] = (struct io_uring_sqe){ .opcode = IORING_OP_SOCKET, .fd = AF_PACKET, .off = SOCK_RAW, .len = htons(ETH_P_ALL), .flags = IOSQE_ASYNC };
	((unsigned *)(submission + setup.sq_off.array))[0] = 0;
	*(volatile unsigned *)(submission + setup.sq_off.tail) += 1;
	prepared("io_uring_enter", syscall(SYS_io_uring_enter, descriptor, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
	int result = ((struct io_uring_cqe *)(completion + setup.cq_off.cqes))->res;
	return result < 0 ? -result : 0;
}

// --- changing the network ----------------------------------------------------------------------------------------------------------------------

static int asked(int protocol, const void *messages, size_t length)
{
	int descriptor = (int)prepared("netlink", socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
	struct timeval patience = { .tv_sec = 5 };
	char reply[8192];
	prepared("timeout", setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience));
	if (send(descriptor, messages, length, 0) < 0)
		return errno;
	long received = prepared("netlink-answer", recv(descriptor, reply, sizeof reply, 0));
	struct nlmsghdr *header = (struct nlmsghdr *)reply;
	if (!NLMSG_OK(header, (unsigned)received) || header->nlmsg_type != NLMSG_ERROR)
		return 0;
	return -((struct nlmsgerr *)NLMSG_DATA(header))->error;
}

// Every table of the namespace, as `nft flush ruleset` asks for it.
static int flush_ruleset(void)
{
	struct {
		struct nlmsghdr header;
		struct nfgenmsg body;
	} messages[3] = {
		{ { sizeof messages[0], NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, 0 }, { AF_UNSPEC, NFNETLINK_V0, htons(NFNL_SUBSYS_NFTABLES) } },
		{ { sizeof messages[0], NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE, NLM_F_REQUEST | NLM_F_ACK, 1, 0 }, { AF_UNSPEC, NFNETLINK_V0, 0 } },
		{ { sizeof messages[0], NFNL_MSG_BATCH_END, NLM_F_REQUEST, 2, 0 }, { AF_UNSPEC, NFNETLINK_V0, htons(NFNL_SUBSYS_NFTABLES) } },
	};
	return asked(NETLINK_NETFILTER, messages, sizeof messages);
}

// The loopback set to be up, as it is: nothing changes, and it needs the right to change.
static int link_up(void)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg body;
	} message = { { sizeof message, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0 },
		      { .ifi_family = AF_UNSPEC, .ifi_index = 1, .ifi_flags = IFF_UP, .ifi_change = IFF_UP } };
	return asked(NETLINK_ROUTE, &message, sizeof message);
}

static int interface_flags(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int descriptor = (int)prepared("socket", socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	prepared("flags", ioctl(descriptor, SIOCGIFFLAGS, &request));
	return answer(ioctl(descriptor, SIOCSIFFLAGS, &request));
}

static int marked(void)
{
	int descriptor = (int)prepared("socket", socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)), mark = 1;
	return answer(setsockopt(descriptor, SOL_SOCKET, SO_MARK, &mark, sizeof mark));
}

static int transparent(void)
{
	int descriptor = (int)prepared("socket", socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)), yes = 1;
	return answer(setsockopt(descriptor, IPPROTO_IP, 19 /* IP_TRANSPARENT */, &yes, sizeof yes));
}

// Reading is nobody's secret: every link is listed.
static int listing(void)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg body;
	} message = { { sizeof message, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 }, { .ifi_family = AF_UNSPEC } };
	return asked(NETLINK_ROUTE, &message, sizeof message);
}

// --- sockets made elsewhere --------------------------------------------------------------------------------------------------------------------

static int write_own_pid(const char *directory)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/cgroup.procs", directory);
	int descriptor = (int)prepared(path, open(path, O_WRONLY | O_CLOEXEC));
	return (int)write(descriptor, "0", 1);
}

static int other_cgroup(void)
{
	prepared("move", write_own_pid(setting("OUTSIDE")));
	return tcp();
}

static int other_cgroup_local(void)
{
	prepared("move", write_own_pid(setting("OUTSIDE")));
	return local();
}

static int born_in_other_cgroup(void)
{
	struct clone_args arguments = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	int status = 0;
	arguments.cgroup = (uint64_t)prepared("cgroup", open(setting("OUTSIDE"), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	long child = prepared("clone3", syscall(SYS_clone3, &arguments, sizeof arguments));
	if (child == 0)
		_exit(tcp());
	prepared("wait", waitpid((pid_t)child, &status, 0));
	return WIFEXITED(status) ? WEXITSTATUS(status) : BROKEN;
}

// Of its own making, below its own: still its sockets. INSIDE is the workload's directory.
static int cgroup_below(void)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/below", setting("INSIDE"));
	prepared("mkdir", mkdir(path, 0755) < 0 && errno != EEXIST ? -1 : 0);
	prepared("move", write_own_pid(path));
	return tcp();
}

static int other_namespace(void)
{
	int descriptor = (int)prepared("namespace", open(setting("NAMESPACE"), O_RDONLY | O_CLOEXEC));
	prepared("setns", setns(descriptor, CLONE_NEWNET));
	return tcp();
}

static int new_namespace(void)
{
	prepared("unshare", unshare(CLONE_NEWNET));
	return tcp();
}

static int own_user_namespace(void)
{
	prepared("unshare", unshare(CLONE_NEWUSER | CLONE_NEWNET));
	return link_up();
}

static int received_over(int channel)
{
	char byte, room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	prepared("recvmsg", recvmsg(channel, &message, MSG_CMSG_CLOEXEC));
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	return header != NULL && header->cmsg_type == SCM_RIGHTS ? 0 : EPERM; // what is refused is left out
}

static int received(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int channel = (int)prepared("socket", socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	snprintf(address.sun_path, sizeof address.sun_path, "%s", setting("HANDOVER"));
	prepared("connect", connect(channel, (struct sockaddr *)&address, sizeof address));
	return received_over(channel);
}

static int received_own(void)
{
	int pair[2], sent = (int)prepared("socket", socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	char byte = 0, room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	prepared("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	*header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(header), &sent, sizeof sent);
	prepared("sendmsg", sendmsg(pair[0], &message, 0));
	return received_over(pair[1]);
}

// --- file systems ------------------------------------------------------------------------------------------------------------------------------

static int file_system(const char *type)
{
	int context = (int)prepared("fsopen", syscall(SYS_fsopen, type, 1 /* FSOPEN_CLOEXEC */));
	return answer(syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "source", "192.0.2.1:/export", 0));
}

static int network_file_system(void) { return file_system("9p"); }

static int old_mount(void)
{
	errno = 0;
	(void)!mount("192.0.2.1", "/tmp", "9p", 0, "trans=nothing-of-that-name");
	return errno == EPERM ? EPERM : 0; // without enforcement the file system itself says what is wrong
}

static int local_file_system(void)
{
	prepared("unshare", unshare(CLONE_NEWNS));
	prepared("private", mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	return answer(mount("tmpfs", "/tmp", "tmpfs", 0, "size=64k"));
}

static const struct attempt {
	const char *name;
	int (*run)(void);
} attempts[] = {
	{ "raw", raw },
	{ "raw6", raw6 },
	{ "raw-header", raw_header },
	{ "packet", packet },
	{ "packet-datagram", packet_datagram },
	{ "express", express },
	{ "vsock", vsock },
	{ "ring", ring },
	{ "flush-ruleset", flush_ruleset },
	{ "link-up", link_up },
	{ "interface-flags", interface_flags },
	{ "mark", marked },
	{ "transparent", transparent },
	{ "other-cgroup", other_cgroup },
	{ "born-in-other-cgroup", born_in_other_cgroup },
	{ "other-namespace", other_namespace },
	{ "new-namespace", new_namespace },
	{ "own-user-namespace", own_user_namespace },
	{ "received", received },
	{ "network-file-system", network_file_system },
	{ "old-mount", old_mount },
	// and what is nobody's way round
	{ "tcp", tcp },
	{ "udp6", udp6 },
	{ "local", local },
	{ "netlink", netlink },
	{ "listing", listing },
	{ "other-cgroup-local", other_cgroup_local },
	{ "cgroup-below", cgroup_below },
	{ "received-own", received_own },
	{ "local-file-system", local_file_system },
};

static int run(const char *name)
{
	for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
		int status = 0;
		if (strcmp(attempts[i].name, name) != 0)
			continue;
		fflush(stdout);
		pid_t child = fork();
		if (child == 0)
			_exit(attempts[i].run());
		if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status))
			return BROKEN;
		return WEXITSTATUS(status);
	}
	fprintf(stderr, "network: no such attempt: %s\n", name);
	return BROKEN;
}

// --- packets -----------------------------------------------------------------------------------------------------------------------------------

static socklen_t address_of(const char *text, const char *port, struct sockaddr_storage *address)
{
	struct sockaddr_in *four = (struct sockaddr_in *)address;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)address;
	memset(address, 0, sizeof *address);
	if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons((uint16_t)atoi(port));
		return sizeof *four;
	}
	prepared("address", inet_pton(AF_INET6, text, &six->sin6_addr) == 1 ? 0 : -1);
	six->sin6_family = AF_INET6;
	six->sin6_port = htons((uint16_t)atoi(port));
	return sizeof *six;
}

static int waited(int descriptor, short what, double seconds)
{
	struct pollfd wanted = { .fd = descriptor, .events = what };
	int error = 0;
	socklen_t size = sizeof error;
	if (prepared("poll", poll(&wanted, 1, (int)(seconds * 1000))) == 0)
		return ETIMEDOUT;
	return getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
}

static int exchanged(int descriptor, double seconds)
{
	char byte = '.';
	if (send(descriptor, &byte, 1, MSG_NOSIGNAL) < 0)
		return errno;
	int error = waited(descriptor, POLLIN, seconds);
	if (error != 0)
		return error;
	long length = recv(descriptor, &byte, 1, 0);
	return length < 0 ? errno : length == 0 ? ECONNRESET : 0;
}

static int connected(const char *protocol, const char *address, const char *port, double seconds, int *error)
{
	struct sockaddr_storage place;
	socklen_t size = address_of(address, port, &place);
	int type = strcmp(protocol, "udp") == 0 ? SOCK_DGRAM : SOCK_STREAM;
	int descriptor = (int)prepared("socket", socket(place.ss_family, type | SOCK_NONBLOCK, strcmp(protocol, "sctp") == 0 ? IPPROTO_SCTP : 0));
	*error = connect(descriptor, (struct sockaddr *)&place, size) < 0 ? errno : 0;
	if (*error == EINPROGRESS)
		*error = waited(descriptor, POLLOUT, seconds);
	return descriptor;
}

static int reach(int count, char **arguments)
{
	for (; count >= 4; count -= 4, arguments += 4) {
		double seconds = atof(arguments[3]);
		int error, descriptor = connected(arguments[0], arguments[1], arguments[2], seconds, &error);
		printf("%d\n", error != 0 ? error : exchanged(descriptor, seconds));
		close(descriptor);
	}
	return count == 0 ? 0 : 2;
}

static int hold(char **arguments)
{
	char line[64];
	int error, descriptor = connected("tcp", arguments[0], arguments[1], 60, &error);
	for (printf("%d\n", error), fflush(stdout); fgets(line, sizeof line, stdin) != NULL; fflush(stdout))
		printf("%d\n", exchanged(descriptor, atof(line)));
	return 0;
}

static int serve(const char *port)
{
	struct sockaddr_storage place;
	socklen_t size = address_of("::", port, &place);
	int descriptor = (int)prepared("socket", socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0)), yes = 1;
	prepared("reuse", setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes));
	prepared("bind", bind(descriptor, (struct sockaddr *)&place, size));
	prepared("listen", listen(descriptor, 16));
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		char byte;
		int other = accept(descriptor, NULL, NULL);
		if (other >= 0 && fork() == 0) {
			while (read(other, &byte, 1) == 1 && send(other, &byte, 1, MSG_NOSIGNAL) == 1)
				;
			_exit(0);
		}
		close(other);
	}
}

int main(int count, char **arguments)
{
	if (count > 2 && strcmp(arguments[1], "-r") == 0)
		return reach(count - 2, arguments + 2);
	if (count == 4 && strcmp(arguments[1], "-k") == 0)
		return hold(arguments + 2);
	if (count == 3 && strcmp(arguments[1], "-s") == 0)
		return serve(arguments[2]);
	int worst = count < 2 ? 2 : 0;
	for (int i = 1; i < count; i++) {
		int result = run(arguments[i]);
		if (result == BROKEN)
			worst = 2;
		else
			printf("%s %d\n", arguments[i], result);
	}
	return worst;
}

// SPDX-License-Identifier: Apache-2.0
//
// What an honest program does all day and a policy must not break. Usage: everyday DIRECTORY [FILE-TO-APPEND]
//
// Each thing is tried in a child of its own and told as "ok NAME" or "FAILED NAME step=STEP errno=E"; exit status 0 if all are ok.
// DIRECTORY is writable and stays as it was; a line is appended to the file, which may be of a lower layer.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *name, *directory, *appended;
static char **self_arguments;

static _Noreturn void failed(const char *step)
{
	printf("FAILED %s step=%s errno=%d (%s)\n", name, step, errno, strerror(errno));
	fflush(stdout);
	_exit(1);
}

#define DO(step, call)                                                                                                                         \
	({                                                                                                                                     \
		long result_ = (long)(call);                                                                                                   \
		if (result_ < 0)                                                                                                               \
			failed(step);                                                                                                          \
		result_;                                                                                                                       \
	})

static __attribute__((format(printf, 1, 2))) const char *at(const char *format, ...)
{
	char *result = NULL, *whole = NULL;
	va_list arguments;
	va_start(arguments, format);
	if (vasprintf(&result, format, arguments) < 0 || asprintf(&whole, "%s/%s", directory, result) < 0)
		abort();
	va_end(arguments);
	return whole;
}

static int make(const char *path)
{
	int fd = (int)DO("create", open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
	DO("write", write(fd, "something\n", 10));
	return fd;
}

static void run_child(char *const arguments[])
{
	int status = 0;
	pid_t child = (pid_t)DO("fork", fork());
	if (child == 0) {
		execv(arguments[0], arguments);
		_exit(errno);
	}
	DO("wait", waitpid(child, &status, 0));
	errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
	if (status != 0)
		failed("exec");
}

static void append(void)
{
	int fd = (int)DO("open", open(appended, O_WRONLY | O_APPEND | O_CLOEXEC));
	DO("write", write(fd, "appended\n", 9));
	DO("read-back", open(appended, O_RDONLY | O_CLOEXEC));
}

static void files(void)
{
	const char *file = at("file"), *other = at("other");
	struct stat now;
	int fd = make(file);
	DO("chmod", chmod(file, 0600));
	DO("fchmod", fchmod(fd, 0640));
	DO("stat", stat(file, &now));
	DO("chown", chown(file, now.st_uid, now.st_gid));
	DO("truncate", truncate(file, 4));
	DO("ftruncate", ftruncate(fd, 2));
	DO("reopen", open(at("../%s/file", strrchr(directory, '/') + 1), O_RDWR | O_CLOEXEC));
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	DO("reopen-by-proc", open(link, O_RDWR | O_CLOEXEC));
	DO("link", linkat(AT_FDCWD, file, AT_FDCWD, other, 0));
	DO("unlink", unlink(file));
	DO("rename", rename(other, file));
	DO("symlink", symlink("file", other));
	DO("open-symlink", open(other, O_RDONLY | O_CLOEXEC));
	DO("unlink-symlink", unlink(other));
	DO("fifo", mkfifo(other, 0600));
	DO("open-fifo", open(other, O_RDWR | O_NONBLOCK | O_CLOEXEC));
	DO("unlink-fifo", unlink(other));
	DO("unlink-open", unlink(file));
	DO("use-unlinked", pwrite(fd, "x", 1, 0));
	DO("stat-unlinked", fstat(fd, &now));
}

static void directories(void)
{
	DO("mkdir", mkdir(at("one"), 0755));
	close(make(at("one/file")));
	DO("rename-directory", rename(at("one"), at("two")));
	DO("open-renamed", open(at("two/file"), O_RDWR | O_CLOEXEC));
	DO("mkdir-inside", mkdir(at("two/inner"), 0755));
	DO("mkdir-other", mkdir(at("three"), 0755));
	DO("move-directory", rename(at("two/inner"), at("three/inner")));
	DO("exchange", syscall(SYS_renameat2, AT_FDCWD, at("two"), AT_FDCWD, at("three"), 2));
	DO("unlink", unlink(at("three/file")));
	DO("rmdir", rmdir(at("two/inner")));
	DO("rmdir", rmdir(at("two")));
	DO("rmdir", rmdir(at("three")));
}

static void temporary(void)
{
	int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && errno == EOPNOTSUPP) // overlayfs before 6.3
		return;
	DO("tmpfile", fd);
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	DO("link-tmpfile", linkat(AT_FDCWD, link, AT_FDCWD, at("linked"), AT_SYMLINK_FOLLOW));
	DO("unlink", unlink(at("linked")));
}

static void standard_streams(void)
{
	DO("stdin", open("/dev/stdin", O_RDONLY | O_CLOEXEC));
	DO("stdout", open("/dev/stdout", O_WRONLY | O_CLOEXEC));
	DO("stderr", open("/dev/stderr", O_WRONLY | O_CLOEXEC));
	DO("null", open("/dev/null", O_RDWR | O_CLOEXEC));
	DO("zero", open("/dev/zero", O_RDONLY | O_CLOEXEC));
	DO("urandom", open("/dev/urandom", O_RDONLY | O_CLOEXEC));
}

static void pipes(void)
{
	int ends[2];
	char byte, link[64];
	DO("pipe", pipe(ends));
	pid_t child = (pid_t)DO("fork", fork());
	if (child == 0) {
		snprintf(link, sizeof link, "/proc/self/fd/%d", ends[1]);
		int again = (int)DO("reopen-pipe", open(link, O_WRONLY | O_CLOEXEC));
		_exit(write(again, "x", 1) == 1 ? 0 : 1);
	}
	DO("read", read(ends[0], &byte, 1));
	int status = 0;
	DO("wait", waitpid(child, &status, 0));
	if (status != 0)
		failed("pipe-child");
}

static void sockets(void)
{
	int pair[2], other;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	DO("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	DO("chdir", chdir(directory));
	strcpy(address.sun_path, "socket");
	int listener = (int)DO("socket", socket(AF_UNIX, SOCK_STREAM, 0));
	DO("bind", bind(listener, (struct sockaddr *)&address, sizeof address));
	DO("listen", listen(listener, 1));
	other = (int)DO("socket", socket(AF_UNIX, SOCK_STREAM, 0));
	DO("connect", connect(other, (struct sockaddr *)&address, sizeof address));
	DO("unlink", unlink("socket"));
	// a descriptor of a file that both may read
	char room[CMSG_SPACE(sizeof(int))] = "", byte = 'x';
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	int file = (int)DO("open", open("/etc/hosts", O_RDONLY | O_CLOEXEC));
	*head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof file) };
	memcpy(CMSG_DATA(head), &file, sizeof file);
	DO("send-descriptor", sendmsg(pair[0], &message, 0));
	message.msg_controllen = sizeof room;
	DO("receive-descriptor", recvmsg(pair[1], &message, 0));
	head = CMSG_FIRSTHDR(&message);
	errno = EACCES;
	if (head == NULL || head->cmsg_len < CMSG_LEN(sizeof file))
		failed("descriptor-left-out");
}

static void memory(void)
{
	int fd = (int)DO("memfd_create", memfd_create("data", MFD_CLOEXEC));
	char link[64];
	DO("ftruncate", ftruncate(fd, 8192));
	void *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		failed("mmap-memfd");
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	DO("reopen-memfd", open(link, O_RDWR | O_CLOEXEC));
	int shm = (int)DO("shm_open", shm_open("/everyday", O_RDWR | O_CREAT | O_EXCL, 0600));
	DO("ftruncate", ftruncate(shm, 4096));
	if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shm, 0) == MAP_FAILED)
		failed("mmap-shm");
	DO("shm_unlink", shm_unlink("/everyday"));
	unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (code == MAP_FAILED)
		failed("mmap-anonymous");
	code[0] = 0xc3; // ret
	DO("mprotect-exec", mprotect(code, 4096, PROT_READ | PROT_EXEC));
	((void (*)(void))(void *)code)();
	int data = make(at("mapped"));
	DO("ftruncate", ftruncate(data, 4096));
	if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, data, 0) == MAP_FAILED)
		failed("mmap-file");
	DO("unlink", unlink(at("mapped")));
}

static void events(void)
{
	int epoll = (int)DO("epoll", epoll_create1(EPOLL_CLOEXEC)), event = (int)DO("eventfd", eventfd(0, EFD_CLOEXEC));
	struct epoll_event wanted = { .events = EPOLLIN };
	DO("epoll_ctl", epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted));
}

static void *thread(void *unused)
{
	(void)unused;
	return open("/etc/hosts", O_RDONLY | O_CLOEXEC) < 0 ? (void *)1 : NULL;
}

static void threads(void)
{
	pthread_t started[32];
	void *result;
	for (int i = 0; i < 32; i++) {
		errno = pthread_create(&started[i], NULL, thread, NULL);
		if (errno != 0)
			failed("pthread_create");
	}
	for (int i = 0; i < 32; i++) {
		pthread_join(started[i], &result);
		errno = EACCES;
		if (result != NULL)
			failed("open-in-thread");
	}
}

static void many_children(void)
{
	for (int round = 0; round < 8; round++) {
		for (int i = 0; i < 32; i++)
			if (DO("fork", fork()) == 0) {
				int fd = open("/etc/hosts", O_RDONLY | O_CLOEXEC);
				_exit(fd < 0);
			}
		for (int i = 0; i < 32; i++) {
			int status = 0;
			DO("wait", wait(&status));
			errno = EACCES;
			if (status != 0)
				failed("open-in-child");
		}
	}
}

static void programs(void)
{
	for (int i = 0; i < 4; i++)
		run_child((char *[]){ "/bin/true", NULL });
	run_child((char *[]){ "/bin/sh", "-c", "set -e; echo x | cat >/dev/null; : $(ls /)", NULL });
	run_child((char *[]){ self_arguments[0], "child", NULL });
	run_child((char *[]){ "/proc/self/exe", "child", NULL });
}

static void children(void)
{
	int status;
	pid_t child = (pid_t)DO("fork", fork());
	if (child == 0)
		for (;;)
			pause();
	DO("signal", kill(child, SIGCONT));
	DO("trace", ptrace(PTRACE_SEIZE, child, 0, 0));
	DO("interrupt", ptrace(PTRACE_INTERRUPT, child, 0, 0));
	DO("wait", waitpid(child, &status, 0));
	DO("detach", ptrace(PTRACE_DETACH, child, 0, 0));
	DO("kill", kill(child, SIGKILL));
	DO("wait", waitpid(child, &status, 0));
	DO("group", setpgid(0, 0));
	DO("session", fork() == 0 ? (long)(setsid() < 0 ? -1 : (_exit(0), 0)) : 0);
}

static void proc(void)
{
	DO("maps", open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
	DO("status", open("/proc/1/status", O_RDONLY | O_CLOEXEC));
	DO("mem", open("/proc/self/mem", O_RDWR | O_CLOEXEC));
	DO("exe", open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
	DO("oom", open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC));
}

static const struct {
	const char *name;
	void (*run)(void);
} things[] = {
	{ "append", append }, { "files", files }, { "directories", directories }, { "temporary", temporary }, { "streams", standard_streams },
	{ "pipes", pipes },   { "sockets", sockets }, { "memory", memory }, { "events", events }, { "threads", threads },
	{ "many-children", many_children }, { "programs", programs }, { "children", children }, { "proc", proc },
};

int main(int count, char **arguments)
{
	int broken = 0;
	self_arguments = arguments;
	if (count == 2 && strcmp(arguments[1], "child") == 0)
		return 0;
	if (count < 2) {
		fputs("usage: everyday DIRECTORY [FILE-TO-APPEND]\n", stderr);
		return 2;
	}
	directory = arguments[1];
	appended = count > 2 ? arguments[2] : NULL;
	for (size_t i = 0; i < sizeof things / sizeof *things; i++) {
		int status = 0;
		if (things[i].run == append && appended == NULL)
			continue;
		name = things[i].name;
		fflush(stdout);
		pid_t child = fork();
		if (child == 0) {
			things[i].run();
			printf("ok %s\n", name);
			fflush(stdout);
			_exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0)
			broken = 1;
		if (WIFSIGNALED(status))
			printf("FAILED %s signal=%d\n", name, WTERMSIG(status));
	}
	return broken;
}

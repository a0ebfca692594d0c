// SPDX-License-Identifier: Apache-2.0
//
// Ways round path rules, each in its own code, for Hauberk's tests. Usage: see README.md beside the folder of this file.
//
//   attacks NAME SECRET [key=value …]     one attack; exit status 0 refused, 1 got through, 2 could not be tried
//   attacks batch < lines                 NAME<TAB>SECRET[<TAB>key=value …] per line, each followed by "RESULT NAME STATUS"
//   attacks list | make-deep | make-pin | churn | helper-…
//
// An attack runs in a child of its own. Set-up steps that fail end in status 2 whatever the reason: only a step that belongs to the attack may be
// "refused", and only by EPERM or EACCES or by an errno that the attack declares as the kernel's own answer. What is to be undone is listed in shared memory
// and undone by the parent, which has changed neither root nor namespace.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MNT_DETACH 2
#define MARKER "HAUBERK-SECRET"
#define DECOY "decoy\n"
#define LONGEST 8192

enum { REFUSED = 0, OPEN = 1, BROKEN = 2 };
enum undo_kind { UNDO_UNLINK = 1, UNDO_RMDIR, UNDO_RENAME, UNDO_EXCHANGE, UNDO_SECRET };

struct undo {
	int kind;
	char a[1024], b[1024];
};
static struct undo_list {
	int count;
	struct undo items[16];
} *undos;

struct attack {
	const char *name;
	void (*run)(void);
	int natural[6]; // errnos that are the kernel's own refusal, besides EPERM and EACCES
};
static const struct attack *current;
static char *secret, *parent, *grandparent, *base; // /base/app/prod/key: key, prod, app, base
static const char *file_name;
static char *self_path;
static int parameters;
static char **parameter;

// --- telling ---------------------------------------------------------------------------------------------------------------------------------

static _Noreturn void finish(int status)
{
	fflush(stdout);
	_exit(status);
}

static _Noreturn void refused(const char *step, int error)
{
	printf("%s refused errno=%d (%s) step=%s\n", current->name, error, strerrorname_np(error) ? strerrorname_np(error) : "?", step);
	finish(REFUSED);
}

static _Noreturn void broken(const char *step, int error)
{
	printf("%s BROKEN: step=%s errno=%d (%s)\n", current->name, step, error, strerror(error));
	finish(BROKEN);
}

static _Noreturn __attribute__((format(printf, 1, 2))) void through(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	printf("%s OPEN: ", current->name);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	finish(OPEN);
}

static bool is_refusal(int error)
{
	if (error == EPERM || error == EACCES)
		return true;
	for (size_t i = 0; i < sizeof current->natural / sizeof *current->natural; i++)
		if (current->natural[i] != 0 && current->natural[i] == error)
			return true;
	return false;
}

static _Noreturn void step_failed(const char *step, int error)
{
	if (is_refusal(error))
		refused(step, error);
	broken(step, error);
}

// A step of the attack itself: may be refused. A step of preparation: may not fail at all.
#define ATTEMPT(step, call)                                                                                                                    \
	({                                                                                                                                     \
		long result_ = (long)(call);                                                                                                   \
		if (result_ < 0)                                                                                                               \
			step_failed(step, errno);                                                                                              \
		result_;                                                                                                                       \
	})
#define PREPARE(step, call)                                                                                                                    \
	({                                                                                                                                     \
		long result_ = (long)(call);                                                                                                   \
		if (result_ < 0)                                                                                                               \
			broken("prepare:" step, errno);                                                                                        \
		result_;                                                                                                                       \
	})

// --- small tools -----------------------------------------------------------------------------------------------------------------------------

static __attribute__((format(printf, 1, 2))) char *text(const char *format, ...)
{
	char *result = NULL;
	va_list arguments;
	va_start(arguments, format);
	int length = vasprintf(&result, format, arguments);
	va_end(arguments);
	if (length < 0)
		abort();
	return result;
}

static const char *option(const char *key, const char *otherwise)
{
	size_t length = strlen(key);
	for (int i = 0; i < parameters; i++)
		if (strncmp(parameter[i], key, length) == 0 && parameter[i][length] == '=')
			return parameter[i] + length + 1;
	return otherwise;
}

static const char *needed(const char *key)
{
	const char *value = option(key, NULL);
	if (value == NULL) {
		printf("%s BROKEN: the attack needs %s=VALUE\n", current->name, key);
		finish(BROKEN);
	}
	return value;
}

static char *above(const char *path)
{
	char *copy = text("%s", path), *slash = strrchr(copy, '/');
	if (slash == NULL || slash == copy)
		return text("/");
	*slash = 0;
	return copy;
}

static const char *work(void)
{
	static char *chosen;
	if (chosen == NULL)
		chosen = text("%s", option("work", text("%s/public", base)));
	return chosen;
}

static const char *scratch(void) // a directory in the root file system where anyone may write
{
	return option("scratch", "/tmp");
}

static char *fresh(const char *directory, const char *word)
{
	static int number;
	return text("%s/attack-%s-%d-%d", directory, word, (int)getpid(), ++number);
}

static void undo(int kind, const char *a, const char *b)
{
	if (undos->count >= 16 || strlen(a) >= 1024 || strlen(b) >= 1024)
		broken("prepare:undo", E2BIG);
	struct undo *item = &undos->items[undos->count];
	item->kind = kind;
	strcpy(item->a, a);
	strcpy(item->b, b);
	undos->count++;
}

static int rename2(const char *a, const char *b, unsigned flags)
{
	return (int)syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, flags);
}

static void write_marker(const char *path)
{
	struct stat now;
	if (stat(path, &now) == 0 && now.st_size > 0)
		return;
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, MARKER "-restored\n", sizeof MARKER + 9) < 0)
		fprintf(stderr, "attacks: cannot restore %s: %s\n", path, strerror(errno));
	if (fd >= 0) {
		(void)!fchmod(fd, 0666);
		close(fd);
	}
}

static void undo_all(void)
{
	while (undos->count > 0) {
		struct undo *item = &undos->items[--undos->count];
		int result = 0;
		switch (item->kind) {
		case UNDO_UNLINK: result = unlink(item->a); break;
		case UNDO_RMDIR: result = rmdir(item->a); break;
		case UNDO_RENAME: result = access(item->b, F_OK) == 0 ? rename(item->b, item->a) : 0; break;
		case UNDO_EXCHANGE: result = rename2(item->a, item->b, 2); break;
		case UNDO_SECRET: write_marker(item->a); break;
		}
		if (result < 0 && errno != ENOENT)
			fprintf(stderr, "attacks: cannot undo step %d on %s: %s\n", item->kind, item->a, strerror(errno));
	}
}

static char *make_directory(const char *where, const char *word)
{
	char *path = fresh(where, word);
	PREPARE("mkdir", mkdir(path, 0777));
	PREPARE("chmod", chmod(path, 0777));
	undo(UNDO_RMDIR, path, "");
	return path;
}

static char *make_file(const char *where, const char *word, const char *content)
{
	char *path = fresh(where, word);
	int fd = (int)PREPARE("create", open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0777));
	undo(UNDO_UNLINK, path, "");
	PREPARE("write", write(fd, content, strlen(content)));
	close(fd);
	return path;
}

// Reads what was opened: the attack got through only if it is the secret and not something else of that name.
static _Noreturn void evidence(int fd, const char *by)
{
	char content[256] = "";
	ssize_t length = read(fd, content, sizeof content - 1);
	if (length < 0)
		step_failed("read", errno);
	if (strncmp(content, MARKER, strlen(MARKER)) != 0) {
		printf("%s BROKEN: %s gave %zd bytes that are not the secret\n", current->name, by, length);
		finish(BROKEN);
	}
	content[strcspn(content, "\n")] = 0;
	through("%s gave \"%s\"", by, content);
}

static _Noreturn void open_and_tell(int directory, const char *path)
{
	evidence((int)ATTEMPT("open", openat(directory, path, O_RDONLY | O_CLOEXEC)), path);
}

static void copy_file(const char *from, int to)
{
	int fd = (int)ATTEMPT("read-original", open(from, O_RDONLY | O_CLOEXEC));
	char block[65536];
	ssize_t length;
	while ((length = ATTEMPT("read-original", read(fd, block, sizeof block))) > 0)
		PREPARE("write-copy", write(to, block, (size_t)length));
	close(fd);
}

static char *copy_program(const char *from, const char *where, const char *word)
{
	char *path = fresh(where, word);
	int fd = (int)ATTEMPT("create-copy", open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755));
	undo(UNDO_UNLINK, path, "");
	copy_file(from, fd);
	PREPARE("fchmod", fchmod(fd, 0755));
	close(fd);
	return path;
}

static void put(const char *path, const char *content)
{
	int fd = (int)ATTEMPT("write-map", open(path, O_WRONLY | O_CLOEXEC));
	ATTEMPT("write-map", write(fd, content, strlen(content)));
	close(fd);
}

static void enter_user_namespace(int more)
{
	unsigned user = getuid(), group = getgid();
	ATTEMPT("unshare", unshare(CLONE_NEWUSER | more));
	put("/proc/self/setgroups", "deny");
	put("/proc/self/uid_map", text("0 %u 1\n", user));
	put("/proc/self/gid_map", text("0 %u 1\n", group));
}

static void privatise(void)
{
	ATTEMPT("make-private", syscall(SYS_mount, "none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
}

// --- running programs ------------------------------------------------------------------------------------------------------------------------

struct ran {
	int status; // wait status
	int error;  // errno of the exec, 0 if it happened
	char output[512];
};

typedef void launch(void *data); // returns only if its exec failed, errno set

static struct ran run_program(launch *start, void *data)
{
	struct ran result = { 0 };
	int output[2], failure[2];
	PREPARE("pipe", pipe(output));
	PREPARE("pipe2", pipe2(failure, O_CLOEXEC));
	fflush(stdout);
	pid_t child = (pid_t)PREPARE("fork", fork());
	if (child == 0) {
		dup2(output[1], 1);
		dup2(output[1], 2);
		close(output[0]);
		close(output[1]);
		start(data);
		int error = errno;
		(void)!write(failure[1], &error, sizeof error);
		_exit(127);
	}
	close(output[1]);
	close(failure[1]);
	if (read(failure[0], &result.error, sizeof result.error) != sizeof result.error)
		result.error = 0;
	size_t have = 0;
	ssize_t length;
	while (have < sizeof result.output - 1 && (length = read(output[0], result.output + have, sizeof result.output - 1 - have)) > 0)
		have += (size_t)length;
	close(output[0]);
	close(failure[0]);
	PREPARE("wait", waitpid(child, &result.status, 0));
	return result;
}

struct command {
	int fd;
	const char *path;
	char *const *arguments, *const *environment;
};

static void launch_command(void *data)
{
	const struct command *command = data;
	syscall(SYS_execveat, command->fd, command->path, command->arguments, command->environment, command->path[0] == 0 ? AT_EMPTY_PATH : 0);
}

static char *const no_environment[] = { NULL };

// What the loader says when the kernel will not let it open or map a file. That it exits with 127 alone could be anything.
static bool loader_was_refused(const struct ran *result)
{
	static const char *const said[] = { "Operation not permitted", "Permission denied", "failed to map segment", "cannot apply additional memory protection",
					    "cannot be preloaded", "cannot change memory protections" };
	for (size_t i = 0; i < sizeof said / sizeof *said; i++)
		if (strstr(result->output, said[i]) != NULL)
			return true;
	return false;
}

static _Noreturn void tell_denied(struct ran result, const char *by)
{
	if (result.error != 0)
		step_failed("exec", result.error);
	if (strstr(result.output, "DENIED-RAN") != NULL && WIFEXITED(result.status) && WEXITSTATUS(result.status) == 42)
		through("%s ran the denied program", by);
	if (WIFEXITED(result.status) && WEXITSTATUS(result.status) == 127 && loader_was_refused(&result))
		refused("loader", EACCES);
	// The kernel kills a task whose program cannot be mapped after the point of no return.
	if (WIFSIGNALED(result.status) && (WTERMSIG(result.status) == SIGKILL || WTERMSIG(result.status) == SIGSEGV))
		refused("map-after-exec", EACCES);
	printf("%s BROKEN: %s: wait status %#x, output \"%.60s\"\n", current->name, by, (unsigned)result.status, result.output);
	finish(BROKEN);
}

static _Noreturn void run_denied(int fd, const char *path, const char *by)
{
	char *arguments[] = { "denied", NULL };
	struct command command = { fd, path, arguments, no_environment };
	tell_denied(run_program(launch_command, &command), by);
}

// A helper (a copy of this program at another path) tells by status: 42 with the secret on fd 1; 200 + errno when refused.
static _Noreturn void tell_helper(struct ran result, const char *by)
{
	if (result.error != 0)
		step_failed("exec", result.error);
	if (WIFEXITED(result.status) && WEXITSTATUS(result.status) == 42 && strncmp(result.output, MARKER, strlen(MARKER)) == 0) {
		result.output[strcspn(result.output, "\n")] = 0;
		through("%s gave \"%s\"", by, result.output);
	}
	if (WIFEXITED(result.status) && WEXITSTATUS(result.status) > 200 && WEXITSTATUS(result.status) < 250)
		step_failed("open-by-helper", WEXITSTATUS(result.status) - 200);
	printf("%s BROKEN: %s: wait status %#x\n", current->name, by, (unsigned)result.status);
	finish(BROKEN);
}

static _Noreturn void helper_give(int fd)
{
	char content[256];
	if (fd < 0)
		_exit(errno < 50 ? 200 + errno : 255);
	ssize_t length = read(fd, content, sizeof content);
	if (length < 0)
		_exit(errno < 50 ? 200 + errno : 255);
	_exit(write(1, content, (size_t)length) == length ? 42 : 255);
}

// --- reading by another name -----------------------------------------------------------------------------------------------------------------

static void attack_open(void)
{
	open_and_tell(AT_FDCWD, secret);
}

static void attack_openat2(void)
{
	struct open_how how = { .flags = O_RDONLY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT };
	int root = (int)PREPARE("open-root", open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
	evidence((int)ATTEMPT("openat2", syscall(SYS_openat2, root, secret, &how, sizeof how)), "openat2");
}

static void attack_fork_exec(void)
{
	char *arguments[] = { "attacks", "helper-open", secret, NULL };
	struct command command = { AT_FDCWD, self_path, arguments, no_environment };
	tell_helper(run_program(launch_command, &command), "a child of the same program");
}

static void attack_chroot(void)
{
	ATTEMPT("chroot", chroot(grandparent));
	open_and_tell(AT_FDCWD, text("%s/%s", strrchr(parent, '/'), file_name));
}

static void attack_hardlink(void)
{
	char *name = fresh(work(), "link");
	ATTEMPT("link", link(secret, name));
	undo(UNDO_UNLINK, name, "");
	open_and_tell(AT_FDCWD, name);
}

static void attack_hardlink_fd(void)
{
	char *name = fresh(work(), "link");
	int fd = (int)PREPARE("open-path", open(secret, O_PATH | O_CLOEXEC));
	ATTEMPT("linkat", linkat(AT_FDCWD, text("/proc/self/fd/%d", fd), AT_FDCWD, name, AT_SYMLINK_FOLLOW));
	undo(UNDO_UNLINK, name, "");
	open_and_tell(AT_FDCWD, name);
}

static void attack_hardlink_existing(void)
{
	open_and_tell(AT_FDCWD, needed("link"));
}

static void attack_rename_file(void)
{
	char *name = fresh(work(), "renamed");
	undo(UNDO_RENAME, secret, name);
	ATTEMPT("rename", rename(secret, name));
	open_and_tell(AT_FDCWD, name);
}

static void rename_directory(const char *directory, const char *name, const char *rest)
{
	undo(UNDO_RENAME, directory, name);
	ATTEMPT("rename", rename(directory, name));
	open_and_tell(AT_FDCWD, text("%s/%s", name, rest));
}

static void attack_rename_parent(void)
{
	rename_directory(parent, fresh(work(), "parent"), file_name);
}

static void attack_rename_parent_beside(void)
{
	rename_directory(parent, fresh(grandparent, "parent"), file_name);
}

static void attack_rename_grandparent(void)
{
	rename_directory(grandparent, fresh(base, "grandparent"), text("%s/%s", strrchr(parent, '/') + 1, file_name));
}

static void attack_exchange_file(void)
{
	char *decoy = make_file(work(), "decoy", DECOY);
	ATTEMPT("renameat2", rename2(secret, decoy, RENAME_EXCHANGE));
	undo(UNDO_EXCHANGE, secret, decoy);
	open_and_tell(AT_FDCWD, decoy);
}

static void attack_exchange_parent(void)
{
	char *decoy = make_directory(work(), "decoy");
	ATTEMPT("renameat2", rename2(parent, decoy, RENAME_EXCHANGE));
	undo(UNDO_EXCHANGE, parent, decoy);
	open_and_tell(AT_FDCWD, text("%s/%s", decoy, file_name));
}

static void attack_symlink(void)
{
	char *name = fresh(work(), "symlink");
	ATTEMPT("symlink", symlink(secret, name));
	undo(UNDO_UNLINK, name, "");
	open_and_tell(AT_FDCWD, name);
}

static void attack_symlink_directory(void)
{
	char *name = fresh(work(), "symlink");
	ATTEMPT("symlink", symlink(parent, name));
	undo(UNDO_UNLINK, name, "");
	open_and_tell(AT_FDCWD, text("%s/%s", name, file_name));
}

static void attack_proc_self_root(void)
{
	open_and_tell(AT_FDCWD, text("/proc/self/root%s", secret));
}

static void attack_proc_self_cwd(void)
{
	PREPARE("chdir", chdir(parent));
	open_and_tell(AT_FDCWD, text("/proc/self/cwd/%s", file_name));
}

static void attack_proc_self_fd(void)
{
	int fd = (int)ATTEMPT("open-path", open(secret, O_PATH | O_CLOEXEC));
	open_and_tell(AT_FDCWD, text("/proc/self/fd/%d", fd));
}

static void attack_dirfd(void)
{
	open_and_tell((int)ATTEMPT("open-path", open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC)), file_name);
}

static void attack_dotdot(void)
{
	PREPARE("chdir", chdir(parent));
	open_and_tell(AT_FDCWD, text("../.%s/%s", strrchr(parent, '/'), file_name));
}

static void attack_proc_pid_root(void)
{
	pid_t child = (pid_t)PREPARE("fork", fork());
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	int fd = open(text("/proc/%d/root%s", (int)child, secret), O_RDONLY | O_CLOEXEC), error = errno;
	kill(child, SIGKILL);
	if (fd < 0)
		step_failed("open", error);
	evidence(fd, "/proc/PID/root of a child");
}

static void attack_proc_neighbour_root(void)
{
	open_and_tell(AT_FDCWD, text("/proc/%s/root%s", needed("pid"), option("there", secret)));
}

static void attack_proc_neighbour_cwd(void)
{
	open_and_tell(AT_FDCWD, text("/proc/%s/cwd/%s", needed("pid"), option("there", secret)));
}

static void attack_handle(void)
{
	struct {
		struct file_handle head;
		unsigned char bytes[128];
	} handle = { .head.handle_bytes = 128 };
	int mount_id, directory = (int)PREPARE("open-work", open(work(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)); // any on that file system will do
	ATTEMPT("name_to_handle_at", name_to_handle_at(AT_FDCWD, secret, &handle.head, &mount_id, 0));
	evidence((int)ATTEMPT("open_by_handle_at", open_by_handle_at(directory, &handle.head, O_RDONLY | O_CLOEXEC)), "open_by_handle_at");
}

static void attack_io_uring(void)
{
	struct io_uring_params setup = { 0 };
	int ring = (int)ATTEMPT("io_uring_setup (not offered)", syscall(SYS_io_uring_setup, 4, &setup));
	size_t ring_size = setup.sq_off.array + setup.sq_entries * sizeof(unsigned);
	size_t completion_size = setup.cq_off.cqes + setup.cq_entries * sizeof(struct io_uring_cqe);
	unsigned char *submission = mmap(NULL, ring_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	unsigned char *completion = mmap(NULL, completion_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *entries = mmap(NULL, setup.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	if (submission == MAP_FAILED || completion == MAP_FAILED || entries == MAP_FAILED)
		broken("prepare:map-ring", errno);
	entries[0] = (struct io_uring_sqe){ .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)secret, .open_flags = O_RDONLY };
	if (strcmp(option("async", "no"), "yes") == 0)
		entries[0].flags = IOSQE_ASYNC;
	((unsigned *)(submission + setup.sq_off.array))[0] = 0;
	atomic_fetch_add((_Atomic unsigned *)(submission + setup.sq_off.tail), 1);
	ATTEMPT("io_uring_enter", syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
	struct io_uring_cqe *answer = (struct io_uring_cqe *)(completion + setup.cq_off.cqes);
	if (answer->res < 0)
		step_failed("io_uring openat", -answer->res);
	evidence(answer->res, "IORING_OP_OPENAT");
}

static void attack_io_uring_async(void)
{
	static char wanted[] = "async=yes";
	static char *list[64];
	for (int i = 0; i < parameters && i < 62; i++)
		list[i + 1] = parameter[i];
	list[0] = wanted;
	parameter = list;
	parameters++;
	attack_io_uring();
}

static void attack_unlinked_fd(void)
{
	int fd = (int)ATTEMPT("open-path", open(secret, O_PATH | O_CLOEXEC));
	undo(UNDO_SECRET, secret, "");
	ATTEMPT("unlink", unlink(secret));
	open_and_tell(AT_FDCWD, text("/proc/self/fd/%d", fd));
}

// --- namespaces, mounts ----------------------------------------------------------------------------------------------------------------------

static void attack_userns(void)
{
	ATTEMPT("unshare", unshare(CLONE_NEWUSER));
	through("a user namespace was made");
}

static void attack_userns_clone(void)
{
	pid_t child = (pid_t)ATTEMPT("clone", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
	if (child == 0)
		_exit(0);
	waitpid(child, NULL, 0);
	through("a child in a user namespace was made");
}

static void attack_mountns(void)
{
	ATTEMPT("unshare", unshare(CLONE_NEWNS)); // no security module is asked
	open_and_tell(AT_FDCWD, secret);
}

static void bind_and_open(void)
{
	char *point = make_directory(scratch(), "mount");
	ATTEMPT("mount", syscall(SYS_mount, parent, point, NULL, MS_BIND, NULL));
	int fd = open(text("%s/%s", point, file_name), O_RDONLY | O_CLOEXEC), error = errno;
	syscall(SYS_umount2, point, MNT_DETACH);
	if (fd < 0)
		step_failed("open", error);
	evidence(fd, "a bind mount");
}

static void attack_bind(void)
{
	bind_and_open();
}

static void attack_userns_bind(void)
{
	char *point = make_directory(scratch(), "mount");
	enter_user_namespace(CLONE_NEWNS);
	privatise();
	ATTEMPT("mount", syscall(SYS_mount, parent, point, NULL, MS_BIND | MS_REC, NULL));
	open_and_tell(AT_FDCWD, text("%s/%s", point, file_name));
}

static void tree_and_open(void)
{
	int tree = (int)ATTEMPT("open_tree", syscall(SYS_open_tree, AT_FDCWD, parent, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
	open_and_tell(tree, file_name);
}

static void attack_open_tree(void)
{
	tree_and_open();
}

static void attack_userns_open_tree(void)
{
	enter_user_namespace(CLONE_NEWNS);
	tree_and_open();
}

static void attack_userns_chroot(void)
{
	enter_user_namespace(0);
	attack_chroot();
}

static void move_and_open(void)
{
	char *point = make_directory(scratch(), "mount");
	ATTEMPT("unshare", unshare(CLONE_NEWNS));
	privatise();
	int tree = (int)ATTEMPT("open_tree", syscall(SYS_open_tree, AT_FDCWD, parent, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	ATTEMPT("move_mount", syscall(SYS_move_mount, tree, "", AT_FDCWD, point, MOVE_MOUNT_F_EMPTY_PATH));
	open_and_tell(AT_FDCWD, text("%s/%s", point, file_name));
}

static void attack_move_mount(void)
{
	move_and_open();
}

static void pivot_and_open(int namespaces)
{
	char *point = make_directory(scratch(), "root");
	if (namespaces & CLONE_NEWUSER)
		enter_user_namespace(CLONE_NEWNS);
	else
		ATTEMPT("unshare", unshare(CLONE_NEWNS));
	privatise();
	ATTEMPT("mount", syscall(SYS_mount, grandparent, point, NULL, MS_BIND | MS_REC, NULL));
	ATTEMPT("chdir", chdir(point));
	ATTEMPT("pivot_root", syscall(SYS_pivot_root, ".", "."));
	ATTEMPT("umount", syscall(SYS_umount2, ".", MNT_DETACH));
	open_and_tell(AT_FDCWD, text("%s/%s", strrchr(parent, '/'), file_name));
}

static void attack_pivot_root(void)
{
	pivot_and_open(0);
}

static void attack_userns_pivot_root(void)
{
	pivot_and_open(CLONE_NEWUSER);
}

static void overlay_and_open(void)
{
	char *point = make_directory(scratch(), "mount"), *empty = make_directory(scratch(), "empty");
	if (strcmp(current->name, "userns-mount-overlay") == 0) {
		enter_user_namespace(CLONE_NEWNS);
		privatise();
	}
	ATTEMPT("mount", syscall(SYS_mount, "overlay", point, "overlay", 0, text("lowerdir=%s:%s", parent, empty)));
	int fd = open(text("%s/%s", point, file_name), O_RDONLY | O_CLOEXEC), error = errno;
	syscall(SYS_umount2, point, MNT_DETACH);
	if (fd < 0)
		step_failed("open", error);
	evidence(fd, "an overlay with the secret's directory as a layer");
}

static void mount_type(const char *type)
{
	char *point = make_directory(scratch(), "mount");
	ATTEMPT("mount", syscall(SYS_mount, "none", point, type, 0, NULL));
	syscall(SYS_umount2, point, MNT_DETACH);
	through("a %s was mounted", type);
}

static void attack_mount_proc(void) { mount_type("proc"); }
static void attack_mount_sysfs(void) { mount_type("sysfs"); }
static void attack_mount_bpffs(void) { mount_type("bpf"); }
static void attack_mount_tmpfs(void) { mount_type("tmpfs"); }
static void attack_mount_cgroup(void) { mount_type("cgroup2"); }

static void attack_userns_mount_tmpfs(void)
{
	char *point = make_directory(scratch(), "mount");
	enter_user_namespace(CLONE_NEWNS);
	ATTEMPT("mount", syscall(SYS_mount, "none", point, "tmpfs", 0, NULL));
	through("a tmpfs was mounted in a user namespace");
}

static void attack_fsopen(void)
{
	int context = (int)ATTEMPT("fsopen", syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
	ATTEMPT("fsconfig", syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	int mount = (int)ATTEMPT("fsmount", syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0));
	ATTEMPT("create", openat(mount, "x", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	through("a detached tmpfs was mounted and written to");
}

static void attack_userns_fsopen(void)
{
	enter_user_namespace(CLONE_NEWNS);
	attack_fsopen();
}

static void attack_remount(void)
{
	const char *target = needed("target");
	ATTEMPT("mount", syscall(SYS_mount, "none", target, NULL, MS_REMOUNT | MS_BIND, NULL));
	through("%s was remounted", target);
}

static void attack_umount(void)
{
	const char *target = needed("target");
	ATTEMPT("umount2", syscall(SYS_umount2, target, MNT_DETACH));
	through("%s was unmounted", target);
}

static void attack_setns(void)
{
	const char *path = option("ns", NULL);
	int fd = path != NULL ? (int)ATTEMPT("open-namespace", open(path, O_RDONLY | O_CLOEXEC)) : atoi(needed("fd"));
	ATTEMPT("setns", setns(fd, CLONE_NEWNS));
	open_and_tell(AT_FDCWD, option("there", secret));
}

// A device node for what the container was not given: by default the disk under the secret, else device=MAJOR:MINOR (and kind=c). Only opens it.
static void attack_mknod_device(void)
{
	struct stat where;
	unsigned major_number, minor_number;
	const char *device = option("device", NULL);
	PREPARE("stat", stat(parent, &where));
	if (device != NULL) {
		if (sscanf(device, "%u:%u", &major_number, &minor_number) != 2)
			broken("prepare:device=MAJOR:MINOR", EINVAL);
		where.st_dev = makedev(major_number, minor_number);
	}
	char *name = fresh(scratch(), "device");
	ATTEMPT("mknod", mknod(name, (strcmp(option("kind", "b"), "c") == 0 ? S_IFCHR : S_IFBLK) | 0600, where.st_dev));
	undo(UNDO_UNLINK, name, "");
	ATTEMPT("open-device", open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	through("a device that the container was not given was opened");
}

static void attack_cgroup_move(void)
{
	int fd = (int)ATTEMPT("open-cgroup", open(text("%s/cgroup.procs", needed("cgroup")), O_WRONLY | O_CLOEXEC));
	ATTEMPT("move", write(fd, "0", 1));
	open_and_tell(AT_FDCWD, secret);
}

// --- being another source --------------------------------------------------------------------------------------------------------------------

struct helper {
	pid_t pid;
	unsigned long address;
	int fd;
	int pipe;
};

// A process of the trusted program that holds the secret in memory and open as a descriptor.
static struct helper start_helper(bool traced)
{
	struct helper helper = { 0 };
	int channel[2];
	PREPARE("pipe", pipe(channel));
	const char *source = needed("source");
	helper.pid = (pid_t)PREPARE("fork", fork());
	if (helper.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		char number[16];
		snprintf(number, sizeof number, "%d", channel[1]);
		if (traced && ptrace(PTRACE_TRACEME, 0, 0, 0) < 0)
			_exit(errno);
		execl(source, "source", "helper-hold", secret, number, NULL);
		_exit(errno);
	}
	close(channel[1]);
	helper.pipe = channel[0];
	return helper;
}

static void read_helper(struct helper *helper, bool prepared)
{
	char line[128];
	ssize_t length = read(helper->pipe, line, sizeof line - 1);
	if (length > 0) {
		line[length] = 0;
		if (sscanf(line, "%lx %d", &helper->address, &helper->fd) == 2)
			return;
	}
	int status = 0;
	waitpid(helper->pid, &status, 0);
	int error = WIFEXITED(status) ? WEXITSTATUS(status) % 200 : EIO;
	if (prepared) // only the trusted program itself opens the secret here: it must be allowed to
		broken("prepare:helper", error);
	step_failed("helper", error);
}

static struct helper holding(void)
{
	struct helper helper = start_helper(false);
	read_helper(&helper, true);
	return helper;
}

static _Noreturn void give_up_helper(struct helper helper, const char *step, int error)
{
	kill(helper.pid, SIGKILL);
	step_failed(step, error);
}

static _Noreturn void judge_memory(struct helper helper, const char *content, const char *by)
{
	kill(helper.pid, SIGKILL);
	if (strncmp(content, MARKER, strlen(MARKER)) != 0)
		broken("memory-content", EINVAL);
	through("%s gave \"%.14s\"", by, content);
}

static void peek(struct helper helper, char *content)
{
	for (size_t i = 0; i < 2; i++) {
		errno = 0;
		long word = ptrace(PTRACE_PEEKDATA, helper.pid, helper.address + i * sizeof(long), 0);
		if (errno != 0)
			give_up_helper(helper, "peek", errno);
		memcpy(content + i * sizeof word, &word, sizeof word);
	}
}

static void attack_ptrace_attach(void)
{
	struct helper helper = holding();
	char content[32] = "";
	if (ptrace(PTRACE_ATTACH, helper.pid, 0, 0) < 0)
		give_up_helper(helper, "PTRACE_ATTACH", errno);
	waitpid(helper.pid, NULL, 0);
	peek(helper, content);
	judge_memory(helper, content, "PTRACE_PEEKDATA");
}

static void attack_ptrace_seize(void)
{
	struct helper helper = holding();
	char content[32] = "";
	if (ptrace(PTRACE_SEIZE, helper.pid, 0, 0) < 0)
		give_up_helper(helper, "PTRACE_SEIZE", errno);
	if (ptrace(PTRACE_INTERRUPT, helper.pid, 0, 0) < 0)
		give_up_helper(helper, "PTRACE_INTERRUPT", errno);
	waitpid(helper.pid, NULL, 0);
	peek(helper, content);
	judge_memory(helper, content, "PTRACE_SEIZE");
}

// Traced before it becomes the trusted program: the check at PTRACE_TRACEME sees one source, the exec comes later.
static void attack_ptrace_traceme_exec(void)
{
	struct helper helper = start_helper(true);
	int status;
	char content[32] = "";
	ATTEMPT("wait", waitpid(helper.pid, &status, 0));
	if (WIFEXITED(status))
		step_failed("traced-exec", WEXITSTATUS(status));
	if (!WIFSTOPPED(status))
		refused("traced-exec (killed)", EPERM);
	ATTEMPT("PTRACE_CONT", ptrace(PTRACE_CONT, helper.pid, 0, 0));
	read_helper(&helper, false);
	kill(helper.pid, SIGSTOP);
	ATTEMPT("wait", waitpid(helper.pid, &status, 0));
	peek(helper, content);
	judge_memory(helper, content, "a tracer from before the exec");
}

static void attack_vm_readv(void)
{
	struct helper helper = holding();
	char content[32] = "";
	struct iovec here = { content, 16 }, there = { (void *)helper.address, 16 };
	if (process_vm_readv(helper.pid, &here, 1, &there, 1, 0) < 0)
		give_up_helper(helper, "process_vm_readv", errno);
	judge_memory(helper, content, "process_vm_readv");
}

static void attack_proc_mem(void)
{
	struct helper helper = holding();
	char content[32] = "";
	int fd = open(text("/proc/%d/mem", (int)helper.pid), O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		give_up_helper(helper, "open /proc/PID/mem", errno);
	if (pread(fd, content, 16, (off_t)helper.address) < 0)
		give_up_helper(helper, "read /proc/PID/mem", errno);
	judge_memory(helper, content, "/proc/PID/mem");
}

static void attack_proc_pid_fd(void)
{
	struct helper helper = holding();
	int fd = open(text("/proc/%d/fd/%d", (int)helper.pid, helper.fd), O_RDONLY | O_CLOEXEC), error = errno;
	kill(helper.pid, SIGKILL);
	if (fd < 0)
		step_failed("open /proc/PID/fd", error);
	evidence(fd, "/proc/PID/fd of a trusted process");
}

static void attack_pidfd_getfd(void)
{
	struct helper helper = holding();
	int pidfd = (int)syscall(SYS_pidfd_open, helper.pid, 0);
	if (pidfd < 0)
		give_up_helper(helper, "pidfd_open", errno);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, helper.fd, 0), error = errno;
	kill(helper.pid, SIGKILL);
	if (fd < 0)
		step_failed("pidfd_getfd", error);
	lseek(fd, 0, SEEK_SET);
	evidence(fd, "pidfd_getfd");
}

static void attack_scm_rights(void)
{
	int pair[2];
	PREPARE("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	const char *source = needed("source");
	pid_t child = (pid_t)PREPARE("fork", fork());
	if (child == 0) {
		close(pair[0]);
		char number[16];
		snprintf(number, sizeof number, "%d", pair[1]);
		execl(source, "source", "helper-send", secret, number, NULL);
		_exit(errno);
	}
	close(pair[1]);
	char byte, room[CMSG_SPACE(sizeof(int))] = "";
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	ssize_t length = recvmsg(pair[0], &message, MSG_CMSG_CLOEXEC);
	int error = errno, status = 0;
	PREPARE("wait", waitpid(child, &status, 0));
	if (length < 0)
		step_failed("recvmsg", error);
	if (length == 0) // the trusted program never sent: it could not open the secret itself
		broken("prepare:helper", WIFEXITED(status) ? WEXITSTATUS(status) % 200 : EIO);
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	if (head == NULL || head->cmsg_type != SCM_RIGHTS || head->cmsg_len < CMSG_LEN(sizeof(int)))
		refused("receive (the descriptor was left out)", EACCES);
	int fd;
	memcpy(&fd, CMSG_DATA(head), sizeof fd);
	evidence(fd, "a passed descriptor");
}

static void attack_ld_preload(void)
{
	char *arguments[] = { "source", NULL };
	char *environment[] = { text("LD_PRELOAD=%s", needed("preload")), text("ATTACK_SECRET=%s", secret), NULL };
	struct command command = { AT_FDCWD, needed("dynamic"), arguments, environment };
	struct stat there;
	PREPARE("stat-library", stat(needed("preload"), &there));
	struct ran result = run_program(launch_command, &command);
	if (result.error == 0 && WIFEXITED(result.status) && WEXITSTATUS(result.status) == 0 && loader_was_refused(&result))
		refused("preload (the loader left it out)", EACCES);
	tell_helper(result, "LD_PRELOAD into a trusted program");
}

static void attack_loader_preload(void)
{
	char *arguments[] = { "ld.so", "--preload", text("%s", needed("preload")), text("%s", needed("dynamic")), NULL };
	char *environment[] = { text("ATTACK_SECRET=%s", secret), NULL };
	struct command command = { AT_FDCWD, option("loader", "/lib64/ld-linux-x86-64.so.2"), arguments, environment };
	struct stat there;
	PREPARE("stat-library", stat(needed("preload"), &there));
	struct ran result = run_program(launch_command, &command);
	if (result.error == 0 && WIFEXITED(result.status) && (WEXITSTATUS(result.status) == 0 || WEXITSTATUS(result.status) == 127) && loader_was_refused(&result))
		refused("loader", EACCES);
	tell_helper(result, "ld.so --preload");
}

static void attack_replace_source(void)
{
	const char *source = needed("source");
	char *copy = copy_program(self_path, option("beside", above(source)), "copy");
	ATTEMPT("renameat2", rename2(copy, source, RENAME_EXCHANGE));
	undo(UNDO_EXCHANGE, copy, source);
	char *arguments[] = { "source", "helper-open", secret, NULL };
	struct command command = { AT_FDCWD, source, arguments, no_environment };
	tell_helper(run_program(launch_command, &command), "another program under the trusted name");
}

static void attack_write_source(void)
{
	ATTEMPT("open-for-writing", open(needed("source"), O_WRONLY | O_CLOEXEC));
	through("the trusted program can be written to");
}

static void attack_userns_bind_source(void)
{
	const char *source = needed("source");
	enter_user_namespace(CLONE_NEWNS);
	privatise();
	ATTEMPT("mount", syscall(SYS_mount, self_path, source, NULL, MS_BIND, NULL));
	char *arguments[] = { "source", "helper-open", secret, NULL };
	struct command command = { AT_FDCWD, source, arguments, no_environment };
	tell_helper(run_program(launch_command, &command), "a bind mount over the trusted name");
}

static void chroot_as_source(void)
{
	const char *source = needed("source");
	int directory = (int)PREPARE("open-parent", open(parent, O_PATH | O_DIRECTORY));
	char *root = make_directory(scratch(), "root"), *at = root, *rest = text("%s", source + 1), *part;
	while ((part = strchr(rest, '/')) != NULL) {
		*part = 0;
		at = text("%s/%s", at, rest);
		PREPARE("mkdir", mkdir(at, 0755));
		undo(UNDO_RMDIR, at, "");
		rest = part + 1;
	}
	char *program = text("%s/%s", at, rest);
	int fd = (int)ATTEMPT("create-copy", open(program, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755));
	undo(UNDO_UNLINK, program, "");
	copy_file(self_path, fd);
	close(fd);
	if (strcmp(current->name, "userns-chroot-source") == 0)
		enter_user_namespace(0);
	ATTEMPT("chroot", chroot(root));
	char *arguments[] = { "source", "helper-openat", text("%d", directory), text("%s", file_name), NULL };
	struct command command = { AT_FDCWD, source, arguments, no_environment };
	tell_helper(run_program(launch_command, &command), "a program of the trusted name in another root");
}

// PR_SET_MM_MAP refuses a new exe while the old one is mapped: so the rest runs from anonymous memory, with the program unmapped. No library calls here.
struct exe_change {
	unsigned long ranges[16][2];
	int count, exe, result, secret_error;
	struct prctl_mm_map map;
	char secret[1024], link[256], content[64];
};

static inline __attribute__((always_inline)) long raw(long number, long a, long b, long c, long d, long e)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return result;
}

__attribute__((section("change_code"), noinline, used, optimize("no-stack-protector,no-tree-loop-distribute-patterns"))) static void change_exe(struct exe_change *change, int out)
{
	for (int i = 0; i < change->count; i++)
		raw(SYS_munmap, (long)change->ranges[i][0], (long)(change->ranges[i][1] - change->ranges[i][0]), 0, 0, 0);
	change->result = (int)raw(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, (long)&change->map, sizeof change->map, 0);
	if (change->result == 0) {
		long fd = raw(SYS_open, (long)change->secret, O_RDONLY, 0, 0, 0);
		change->secret_error = fd < 0 ? (int)-fd : 0;
		if (fd >= 0)
			raw(SYS_read, fd, (long)change->content, sizeof change->content - 1, 0, 0);
		char name[] = { '/', 'p', 'r', 'o', 'c', '/', 's', 'e', 'l', 'f', '/', 'e', 'x', 'e', 0 };
		raw(SYS_readlink, (long)name, (long)change->link, sizeof change->link - 1, 0, 0);
	}
	raw(SYS_write, out, (long)change, sizeof *change, 0, 0);
	raw(SYS_exit_group, 0, 0, 0, 0, 0);
	__builtin_unreachable();
}
extern char __start_change_code[], __stop_change_code[];

static void attack_exe_file(void)
{
	const char *source = needed("source");
	struct exe_change *change = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), answer = { 0 };
	void *code = mmap(NULL, 65536, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (change == MAP_FAILED || code == MAP_FAILED)
		broken("prepare:map", errno);
	int channel[2];
	PREPARE("pipe", pipe(channel));
	pid_t child = (pid_t)PREPARE("fork", fork());
	if (child == 0) {
		char line[4096], own[1024] = "";
		enter_user_namespace(0);
		PREPARE("readlink", readlink("/proc/self/exe", own, sizeof own - 1));
		FILE *maps = fopen("/proc/self/maps", "re");
		while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
			unsigned long from, to;
			line[strcspn(line, "\n")] = 0;
			char *path = strchr(line, '/');
			if (path != NULL && strcmp(path, own) == 0 && sscanf(line, "%lx-%lx", &from, &to) == 2 && change->count < 16) {
				change->ranges[change->count][0] = from;
				change->ranges[change->count++][1] = to;
			}
		}
		FILE *status = fopen("/proc/self/stat", "re");
		if (maps == NULL || status == NULL || fgets(line, sizeof line, status) == NULL)
			broken("prepare:proc", errno);
		unsigned long field[60] = { 0 };
		int number = 3;
		for (char *word = strtok(strrchr(line, ')') + 4, " "); word != NULL && ++number < 60; word = strtok(NULL, " "))
			field[number] = strtoul(word, NULL, 10);
		change->exe = (int)ATTEMPT("open-source", open(source, O_RDONLY));
		change->map = (struct prctl_mm_map){
			.start_code = field[26], .end_code = field[27], .start_stack = field[28], .start_data = field[45], .end_data = field[46],
			.start_brk = field[47], .brk = (unsigned long)sbrk(0), .arg_start = field[48], .arg_end = field[49], .env_start = field[50],
			.env_end = field[51], .auxv = NULL, .auxv_size = 0, .exe_fd = (unsigned)change->exe,
		};
		strncpy(change->secret, secret, sizeof change->secret - 1);
		memcpy(code, __start_change_code, (size_t)(__stop_change_code - __start_change_code));
		((void (*)(struct exe_change *, int))((char *)code + ((char *)change_exe - __start_change_code)))(change, channel[1]);
	}
	close(channel[1]);
	ssize_t length = read(channel[0], &answer, sizeof answer);
	int status;
	PREPARE("wait", waitpid(child, &status, 0));
	if (length == 0 && WIFEXITED(status))
		finish(WEXITSTATUS(status)); // it told already
	if (length != (ssize_t)sizeof answer)
		broken("exe-change", EIO);
	if (answer.result < 0)
		step_failed("PR_SET_MM_MAP", -answer.result);
	if (answer.secret_error != 0)
		step_failed("open", answer.secret_error);
	answer.content[strcspn(answer.content, "\n")] = 0;
	if (strncmp(answer.content, MARKER, strlen(MARKER)) != 0 || strcmp(answer.link, source) != 0)
		broken("content-or-exe", EINVAL);
	through("as %s, gave \"%s\"", answer.link, answer.content);
}

// --- running what may not run ----------------------------------------------------------------------------------------------------------------

static void attack_exec(void)
{
	run_denied(AT_FDCWD, needed("denied"), "execve");
}

static void attack_exec_fd(void)
{
	run_denied((int)ATTEMPT("open-path", open(needed("denied"), O_PATH | O_CLOEXEC)), "", "execveat by descriptor");
}

static void attack_exec_proc_fd(void)
{
	int fd = (int)ATTEMPT("open-path", open(needed("denied"), O_PATH));
	run_denied(AT_FDCWD, text("/proc/self/fd/%d", fd), "execve of /proc/self/fd/N");
}

static void attack_exec_memfd(void)
{
	int fd = (int)PREPARE("memfd_create", memfd_create("copy", MFD_CLOEXEC));
	copy_file(needed("denied"), fd);
	run_denied(fd, "", "execveat of a memfd copy");
}

static void attack_exec_copy(void)
{
	run_denied(AT_FDCWD, copy_program(needed("denied"), work(), "copy"), "a copy");
}

static void attack_exec_deleted(void)
{
	char *copy = copy_program(needed("denied"), work(), "copy");
	int fd = (int)PREPARE("open-path", open(copy, O_PATH | O_CLOEXEC));
	PREPARE("unlink", unlink(copy));
	run_denied(fd, "", "execveat of a deleted copy");
}

static void attack_exec_loader(void)
{
	char *arguments[] = { "ld.so", text("%s", needed("denied")), NULL };
	struct command command = { AT_FDCWD, option("loader", "/lib64/ld-linux-x86-64.so.2"), arguments, no_environment };
	tell_denied(run_program(launch_command, &command), "the loader");
}

static void attack_exec_loader_fd(void)
{
	int fd = (int)ATTEMPT("open", open(needed("denied"), O_RDONLY));
	char *arguments[] = { "ld.so", text("/proc/self/fd/%d", fd), NULL };
	struct command command = { AT_FDCWD, option("loader", "/lib64/ld-linux-x86-64.so.2"), arguments, no_environment };
	tell_denied(run_program(launch_command, &command), "the loader, by descriptor");
}

static void attack_exec_hardlink(void)
{
	char *name = fresh(scratch(), "link");
	ATTEMPT("link", link(needed("denied"), name));
	undo(UNDO_UNLINK, name, "");
	run_denied(AT_FDCWD, name, "a hard link");
}

static void attack_exec_symlink(void)
{
	char *name = fresh(scratch(), "symlink");
	ATTEMPT("symlink", symlink(needed("denied"), name));
	undo(UNDO_UNLINK, name, "");
	run_denied(AT_FDCWD, name, "a symbolic link");
}

static void attack_exec_rename(void)
{
	char *name = fresh(scratch(), "renamed");
	undo(UNDO_RENAME, needed("denied"), name);
	ATTEMPT("rename", rename(needed("denied"), name));
	run_denied(AT_FDCWD, name, "the program under another name");
}

static void attack_exec_script(void)
{
	char *script = make_file(scratch(), "script", text("#!%s\n", needed("denied")));
	PREPARE("chmod", chmod(script, 0755));
	run_denied(AT_FDCWD, script, "a script with the program as interpreter");
}

static bool executable_mapping(const void *address)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[4096], rights[8];
	unsigned long from, to;
	while (maps != NULL && fgets(line, sizeof line, maps) != NULL)
		if (sscanf(line, "%lx-%lx %7s", &from, &to, rights) == 3 && from <= (unsigned long)address && (unsigned long)address < to)
			return rights[2] == 'x';
	return false;
}

static _Noreturn void map_and_tell(int protection, bool then_protect)
{
	int fd = (int)ATTEMPT("open", open(needed("denied"), O_RDONLY | O_CLOEXEC));
	void *memory = mmap(NULL, 4096, protection, MAP_PRIVATE, fd, 0);
	if (memory == MAP_FAILED)
		step_failed("mmap", errno);
	if (then_protect)
		ATTEMPT("mprotect", mprotect(memory, 4096, PROT_READ | PROT_EXEC));
	if (!executable_mapping(memory))
		broken("mapping-not-executable", EINVAL);
	through("the denied program is mapped executable");
}

static void attack_map_exec(void)
{
	map_and_tell(PROT_READ | PROT_EXEC, false);
}

static void attack_map_mprotect(void)
{
	map_and_tell(PROT_READ, true);
}

static void attack_map_implied(void)
{
	ATTEMPT("personality", personality(READ_IMPLIES_EXEC));
	map_and_tell(PROT_READ, false);
}

static void attack_map_implied_mprotect(void)
{
	int fd = (int)ATTEMPT("open", open(needed("denied"), O_RDONLY | O_CLOEXEC));
	void *memory = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE, fd, 0);
	if (memory == MAP_FAILED)
		step_failed("mmap", errno);
	ATTEMPT("personality", personality(READ_IMPLIES_EXEC));
	ATTEMPT("mprotect", mprotect(memory, 4096, PROT_READ));
	if (!executable_mapping(memory))
		broken("mapping-not-executable", EINVAL);
	through("the denied program is mapped executable");
}

// --- changing the secret ---------------------------------------------------------------------------------------------------------------------

static void attack_write(void)
{
	ATTEMPT("open-for-writing", open(secret, O_WRONLY | O_CLOEXEC));
	through("the secret can be written to");
}

static void attack_copy_up(void)
{
	evidence((int)ATTEMPT("open-read-write", open(secret, O_RDWR | O_APPEND | O_CLOEXEC)), "an open that copies the file up");
}

static void attack_truncate(void)
{
	struct stat now;
	PREPARE("stat", stat(secret, &now));
	ATTEMPT("truncate", truncate(secret, now.st_size));
	through("truncate was allowed (to the same length)");
}

static void attack_open_truncate(void)
{
	undo(UNDO_SECRET, secret, "");
	ATTEMPT("open-truncate", open(secret, O_RDONLY | O_TRUNC | O_CLOEXEC));
	through("O_RDONLY|O_TRUNC emptied the secret");
}

static void attack_unlink(void)
{
	undo(UNDO_SECRET, secret, "");
	ATTEMPT("unlink", unlink(secret));
	through("the secret was removed");
}

static void attack_replace(void)
{
	char *decoy = make_file(work(), "decoy", DECOY);
	ATTEMPT("renameat2", rename2(decoy, secret, RENAME_EXCHANGE));
	undo(UNDO_EXCHANGE, decoy, secret);
	through("the secret was replaced");
}

static void attack_chmod(void)
{
	ATTEMPT("chmod", chmod(secret, 0666));
	through("chmod was allowed");
}

static void attack_chown(void)
{
	struct stat now;
	PREPARE("stat", stat(secret, &now));
	ATTEMPT("chown", chown(secret, now.st_uid, now.st_gid));
	through("chown was allowed");
}

// --- races -----------------------------------------------------------------------------------------------------------------------------------

static _Atomic int race_stop;
static _Atomic unsigned long race_moves, race_errors;
static char *race_a, *race_b;
static int race_kind; // 0 rename there and back, 1 exchange, 2 swap what a symlink names

static void *race_mover(void *unused)
{
	(void)unused;
	while (!race_stop) {
		int result;
		if (race_kind == 0) {
			result = rename(race_a, race_b);
			if (result == 0)
				result = rename(race_b, race_a);
		} else {
			result = rename2(race_a, race_b, RENAME_EXCHANGE);
		}
		if (result < 0) {
			race_errors++;
			if (race_errors > 100000)
				sched_yield();
		} else {
			race_moves++;
		}
	}
	return NULL;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void race(char *const *names, int count)
{
	double end = now() + atof(option("seconds", "2"));
	unsigned long tries = 0;
	int got = -1, which = 0, last = 0;
	pthread_t mover;
	errno = pthread_create(&mover, NULL, race_mover, NULL);
	if (errno != 0)
		broken("prepare:thread", errno);
	while (race_moves + race_errors == 0 && now() < end)
		sched_yield(); // not before somebody moves
	while (got < 0 && now() < end)
		for (int i = 0; i < count && got < 0; i++, tries++) {
			int fd = open(names[i], O_RDONLY | O_CLOEXEC);
			char content[64] = "";
			if (fd < 0) {
				if (errno != ENOENT)
					last = errno;
				continue;
			}
			if (read(fd, content, sizeof content - 1) > 0 && strncmp(content, MARKER, strlen(MARKER)) == 0) {
				got = fd;
				which = i;
			}
			close(fd);
		}
	race_stop = 1;
	pthread_join(mover, NULL);
	if (race_kind == 1 && race_moves % 2 != 0)
		undo(UNDO_EXCHANGE, race_a, race_b);
	if (got >= 0)
		through("%s after %lu tries, %lu moves", names[which], tries, (unsigned long)race_moves);
	printf("%s note: %lu tries, %lu moves, %lu refused moves\n", current->name, tries, (unsigned long)race_moves, (unsigned long)race_errors);
	if (last == 0)
		broken("race-never-refused", ENOENT);
	step_failed("open-in-race", last);
}

static void attack_race_rename(void)
{
	race_a = grandparent;
	race_b = fresh(base, "race");
	undo(UNDO_RENAME, race_a, race_b);
	char *names[] = { text("%s%s/%s", race_b, strrchr(parent, '/'), file_name), secret };
	race(names, 2);
}

static void attack_race_exchange(void)
{
	race_kind = 1;
	race_a = parent;
	race_b = make_directory(work(), "race");
	char *names[] = { text("%s/%s", race_b, file_name), secret };
	race(names, 2);
}

static void attack_race_symlink(void)
{
	race_kind = 1;
	char *decoy = make_file(work(), "decoy", DECOY);
	race_a = fresh(work(), "swap");
	race_b = fresh(work(), "swap");
	PREPARE("symlink", symlink(decoy, race_a));
	undo(UNDO_UNLINK, race_a, "");
	PREPARE("symlink", symlink(secret, race_b));
	undo(UNDO_UNLINK, race_b, "");
	char *names[] = { race_a };
	race(names, 1);
}

// The names of allowed directories move all the time while the secret is opened through them: the walk must still see where the file is.
static void attack_race_neighbours(void)
{
	race_kind = 1;
	race_a = make_directory(work(), "race");
	race_b = make_directory(work(), "race");
	char *link = text("%s/in", race_a), *other = text("%s/in", race_b);
	PREPARE("symlink", symlink(parent, link));
	undo(UNDO_UNLINK, link, "");
	PREPARE("symlink", symlink(work(), other));
	undo(UNDO_UNLINK, other, "");
	char *names[] = { text("%s/%s", link, file_name), text("%s/%s", other, file_name) };
	race(names, 2);
}

// Somebody else (the host) moves directories: this only opens, by the name given and by its other name.
static void attack_open_loop(void)
{
	double end = now() + atof(option("seconds", "2"));
	const char *names[] = { secret, option("there", secret) };
	unsigned long tries = 0;
	int last = ENOENT;
	while (now() < end)
		for (int i = 0; i < 2; i++, tries++) {
			int fd = open(names[i], O_RDONLY | O_CLOEXEC);
			if (fd >= 0)
				evidence(fd, names[i]);
			if (errno != ENOENT)
				last = errno;
		}
	printf("%s note: %lu tries\n", current->name, tries);
	step_failed("open-in-loop", last);
}

// --- depth -----------------------------------------------------------------------------------------------------------------------------------

static int descend(const char *top, unsigned long *depth, size_t *length)
{
	int fd = (int)PREPARE("open-top", open(top, O_PATH | O_DIRECTORY | O_CLOEXEC));
	*length = strlen(top);
	for (*depth = 0;; ++*depth) {
		int next = -1;
		int readable = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		DIR *listing = readable < 0 ? NULL : fdopendir(readable);
		struct dirent *entry;
		// Names are known by construction; listing is only how the chain of long names is followed, and may itself be refused.
		if (listing == NULL) {
			next = openat(fd, "d", O_PATH | O_DIRECTORY | O_CLOEXEC);
			for (size_t size = 250; next < 0 && size > 1; size -= 1) {
				char name[256];
				memset(name, 'n', size);
				name[size] = 0;
				next = openat(fd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
				if (next >= 0)
					*length += size - 1;
			}
			if (next >= 0)
				*length += 2;
		} else {
			while ((entry = readdir(listing)) != NULL)
				if ((entry->d_name[0] == 'd' || entry->d_name[0] == 'n') && next < 0) {
					next = (int)ATTEMPT("step", openat(fd, entry->d_name, O_PATH | O_DIRECTORY | O_CLOEXEC));
					*length += 1 + strlen(entry->d_name);
				}
			closedir(listing);
		}
		if (next < 0)
			return fd;
		close(fd);
		fd = next;
	}
}

static _Noreturn void deep_and_tell(const char *top, unsigned long least, size_t shortest)
{
	unsigned long depth;
	size_t length;
	int fd = descend(top, &depth, &length);
	if (depth < least || length < shortest) {
		printf("%s BROKEN: prepare: %s has %lu levels and %zu bytes, not %lu and %zu (make-deep was not run, or steps were refused)\n", current->name,
		       top, depth, length, least, shortest);
		finish(BROKEN);
	}
	int opened = (int)ATTEMPT("open", openat(fd, "key", O_RDONLY | O_CLOEXEC));
	evidence(opened, text("%lu levels and %zu bytes below", depth, length));
}

static void attack_deep_path(void)
{
	deep_and_tell(option("deep", text("%s/deep", parent)), 1000, 2000);
}

static void attack_long_path(void)
{
	deep_and_tell(option("long", text("%s/long", parent)), 10, 4000);
}

static void attack_longer_path(void)
{
	deep_and_tell(option("longer", text("%s/longer", parent)), 30, 8000);
}

static void attack_deep_hardlink(void)
{
	deep_and_tell(text("%s/deep", work()), 1000, 2000);
}

static void attack_long_hardlink(void)
{
	deep_and_tell(text("%s/long", work()), 10, 4000);
}

static void attack_deep_hardlink_new(void)
{
	unsigned long depth;
	size_t length;
	int fd = descend(text("%s/deep", work()), &depth, &length);
	if (depth < 1000)
		broken("prepare:make-deep", ENOENT);
	char *name = text("new-%d", (int)getpid());
	ATTEMPT("linkat", linkat(AT_FDCWD, secret, fd, name, 0));
	int opened = openat(fd, name, O_RDONLY | O_CLOEXEC), error = errno;
	unlinkat(fd, name, 0);
	if (opened < 0)
		step_failed("open", error);
	evidence(opened, "a new hard link 1,000 levels down");
}

// --- the enforcer itself ---------------------------------------------------------------------------------------------------------------------

static int bpf_call(int command, union bpf_attr *attribute)
{
	return (int)syscall(SYS_bpf, command, attribute, sizeof *attribute);
}

static void attack_bpf_map(void)
{
	union bpf_attr attribute = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1 };
	ATTEMPT("BPF_MAP_CREATE", bpf_call(BPF_MAP_CREATE, &attribute));
	through("a map was made");
}

static void attack_bpf_program(void)
{
	struct bpf_insn code[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K }, { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr attribute = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2, .insns = (uintptr_t)code, .license = (uintptr_t) "GPL" };
	ATTEMPT("BPF_PROG_LOAD", bpf_call(BPF_PROG_LOAD, &attribute));
	through("a program was loaded");
}

static void attack_bpf_next_map(void)
{
	union bpf_attr attribute = { .start_id = 0 };
	if (bpf_call(BPF_MAP_GET_NEXT_ID, &attribute) < 0 && errno != ENOENT)
		step_failed("BPF_MAP_GET_NEXT_ID", errno);
	through("map ids can be listed");
}

static void attack_bpf_obj_get(void)
{
	union bpf_attr attribute = { .pathname = (uintptr_t)needed("pin") };
	ATTEMPT("BPF_OBJ_GET", bpf_call(BPF_OBJ_GET, &attribute));
	through("the pinned object was opened");
}

static void attack_unpin(void)
{
	ATTEMPT("unlink", unlink(needed("pin")));
	through("the pin was removed");
}

static void attack_kill(void)
{
	ATTEMPT("kill", kill(atoi(needed("pid")), SIGKILL));
	through("the process was sent SIGKILL");
}

static void attack_pidfd_kill(void)
{
	int fd = (int)ATTEMPT("pidfd_open", syscall(SYS_pidfd_open, atoi(needed("pid")), 0));
	ATTEMPT("pidfd_send_signal", syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0));
	through("the process was sent SIGKILL");
}

static void attack_ptrace_pid(void)
{
	ATTEMPT("PTRACE_SEIZE", ptrace(PTRACE_SEIZE, atoi(needed("pid")), 0, 0));
	through("the process is traced");
}

static void attack_connect(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strncpy(address.sun_path, needed("socket"), sizeof address.sun_path - 1);
	int fd = (int)PREPARE("socket", socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	ATTEMPT("connect", connect(fd, (struct sockaddr *)&address, sizeof address));
	through("connected");
}

static void attack_core_pattern(void)
{
	ATTEMPT("open-for-writing", open("/proc/sys/kernel/core_pattern", O_WRONLY | O_CLOEXEC));
	through("core_pattern can be written to"); // never is: it belongs to the machine, not to the container
}

#define ATTACK(label, function, ...) { label, function, { __VA_ARGS__ } }
static const struct attack attacks[] = {
	ATTACK("open", attack_open),
	ATTACK("openat2", attack_openat2),
	ATTACK("fork-exec", attack_fork_exec),
	ATTACK("chroot", attack_chroot),
	ATTACK("hardlink", attack_hardlink, EXDEV),
	ATTACK("hardlink-fd", attack_hardlink_fd, EXDEV),
	ATTACK("hardlink-existing", attack_hardlink_existing),
	ATTACK("rename-file", attack_rename_file, EXDEV, EBUSY),
	ATTACK("rename-parent", attack_rename_parent, EXDEV, EBUSY),
	ATTACK("rename-parent-beside", attack_rename_parent_beside, EXDEV, EBUSY),
	ATTACK("rename-grandparent", attack_rename_grandparent, EXDEV, EBUSY),
	ATTACK("exchange-file", attack_exchange_file, EXDEV, EBUSY),
	ATTACK("exchange-parent", attack_exchange_parent, EXDEV, EBUSY),
	ATTACK("symlink", attack_symlink),
	ATTACK("symlink-directory", attack_symlink_directory),
	ATTACK("proc-self-root", attack_proc_self_root),
	ATTACK("proc-self-cwd", attack_proc_self_cwd),
	ATTACK("proc-self-fd", attack_proc_self_fd),
	ATTACK("dirfd", attack_dirfd),
	ATTACK("dotdot", attack_dotdot),
	ATTACK("proc-pid-root", attack_proc_pid_root),
	ATTACK("proc-neighbour-root", attack_proc_neighbour_root),
	ATTACK("proc-neighbour-cwd", attack_proc_neighbour_cwd),
	ATTACK("handle", attack_handle, EOPNOTSUPP),
	ATTACK("io-uring", attack_io_uring, ENOSYS),
	ATTACK("io-uring-async", attack_io_uring_async, ENOSYS),
	ATTACK("unlinked-fd", attack_unlinked_fd, ENOENT),
	ATTACK("userns", attack_userns, ENOSPC),
	ATTACK("userns-clone", attack_userns_clone, ENOSPC),
	ATTACK("mountns", attack_mountns),
	ATTACK("bind", attack_bind),
	ATTACK("userns-bind", attack_userns_bind, ENOSPC),
	ATTACK("open-tree", attack_open_tree),
	ATTACK("userns-open-tree", attack_userns_open_tree, ENOSPC),
	ATTACK("userns-chroot", attack_userns_chroot, ENOSPC),
	ATTACK("move-mount", attack_move_mount),
	ATTACK("pivot-root", attack_pivot_root),
	ATTACK("userns-pivot-root", attack_userns_pivot_root, ENOSPC),
	ATTACK("mount-overlay", overlay_and_open),
	ATTACK("userns-mount-overlay", overlay_and_open, ENOSPC),
	ATTACK("mount-proc", attack_mount_proc),
	ATTACK("mount-sysfs", attack_mount_sysfs),
	ATTACK("mount-bpffs", attack_mount_bpffs, ENODEV),
	ATTACK("mount-tmpfs", attack_mount_tmpfs),
	ATTACK("mount-cgroup", attack_mount_cgroup),
	ATTACK("userns-mount-tmpfs", attack_userns_mount_tmpfs, ENOSPC),
	ATTACK("fsopen", attack_fsopen),
	ATTACK("userns-fsopen", attack_userns_fsopen, ENOSPC),
	ATTACK("remount", attack_remount),
	ATTACK("umount", attack_umount),
	ATTACK("setns", attack_setns),
	ATTACK("mknod-device", attack_mknod_device, ENXIO, ENODEV),
	ATTACK("cgroup-move", attack_cgroup_move, EROFS),
	ATTACK("ptrace-attach", attack_ptrace_attach),
	ATTACK("ptrace-seize", attack_ptrace_seize),
	ATTACK("ptrace-traceme-exec", attack_ptrace_traceme_exec),
	ATTACK("vm-readv", attack_vm_readv),
	ATTACK("proc-mem", attack_proc_mem),
	ATTACK("proc-pid-fd", attack_proc_pid_fd),
	ATTACK("pidfd-getfd", attack_pidfd_getfd),
	ATTACK("scm-rights", attack_scm_rights),
	ATTACK("ld-preload", attack_ld_preload),
	ATTACK("loader-preload", attack_loader_preload),
	ATTACK("replace-source", attack_replace_source),
	ATTACK("write-source", attack_write_source, ETXTBSY),
	ATTACK("userns-bind-source", attack_userns_bind_source, ENOSPC),
	ATTACK("chroot-source", chroot_as_source),
	ATTACK("userns-chroot-source", chroot_as_source, ENOSPC),
	ATTACK("exe-file", attack_exe_file, ENOSPC, EBUSY),
	ATTACK("exec", attack_exec),
	ATTACK("exec-fd", attack_exec_fd),
	ATTACK("exec-proc-fd", attack_exec_proc_fd),
	ATTACK("exec-memfd", attack_exec_memfd),
	ATTACK("exec-copy", attack_exec_copy),
	ATTACK("exec-deleted", attack_exec_deleted),
	ATTACK("exec-loader", attack_exec_loader),
	ATTACK("exec-loader-fd", attack_exec_loader_fd),
	ATTACK("exec-hardlink", attack_exec_hardlink, EXDEV),
	ATTACK("exec-symlink", attack_exec_symlink),
	ATTACK("exec-rename", attack_exec_rename, EXDEV),
	ATTACK("exec-script", attack_exec_script),
	ATTACK("map-exec", attack_map_exec),
	ATTACK("map-mprotect", attack_map_mprotect),
	ATTACK("map-implied", attack_map_implied),
	ATTACK("map-implied-mprotect", attack_map_implied_mprotect),
	ATTACK("write", attack_write),
	ATTACK("copy-up", attack_copy_up),
	ATTACK("truncate", attack_truncate),
	ATTACK("open-truncate", attack_open_truncate),
	ATTACK("unlink", attack_unlink),
	ATTACK("replace", attack_replace, EXDEV),
	ATTACK("chmod", attack_chmod),
	ATTACK("chown", attack_chown),
	ATTACK("race-rename", attack_race_rename),
	ATTACK("race-exchange", attack_race_exchange),
	ATTACK("race-symlink", attack_race_symlink),
	ATTACK("race-neighbours", attack_race_neighbours),
	ATTACK("open-loop", attack_open_loop),
	ATTACK("deep-path", attack_deep_path),
	ATTACK("long-path", attack_long_path),
	ATTACK("longer-path", attack_longer_path),
	ATTACK("deep-hardlink", attack_deep_hardlink),
	ATTACK("long-hardlink", attack_long_hardlink),
	ATTACK("deep-hardlink-new", attack_deep_hardlink_new, EXDEV),
	ATTACK("bpf-map", attack_bpf_map),
	ATTACK("bpf-program", attack_bpf_program),
	ATTACK("bpf-next-map", attack_bpf_next_map),
	ATTACK("bpf-obj-get", attack_bpf_obj_get),
	ATTACK("unpin", attack_unpin, EROFS),
	ATTACK("kill", attack_kill),
	ATTACK("pidfd-kill", attack_pidfd_kill),
	ATTACK("ptrace-pid", attack_ptrace_pid),
	ATTACK("connect", attack_connect),
	ATTACK("core-pattern", attack_core_pattern, EROFS),
};

// --- helpers run by their own name -----------------------------------------------------------------------------------------------------------

static int helper_hold(const char *path, int out)
{
	static char content[256];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, content, sizeof content - 1) < 0)
		return errno < 50 ? 200 + errno : 255;
	dprintf(out, "%lx %d\n", (unsigned long)content, fd);
	for (;;)
		pause();
}

static int helper_send(const char *path, int socket)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno < 50 ? 200 + errno : 255;
	char room[CMSG_SPACE(sizeof fd)] = "";
	struct iovec data = { "x", 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(head), &fd, sizeof fd);
	return sendmsg(socket, &message, 0) == 1 ? 0 : 255;
}

// make-deep DIR [SECRET]: DIR/deep (1,000 levels), DIR/long (over 4,000 bytes), DIR/longer (over 8,000), each ending in `key`: a secret, or a link to SECRET.
static int make_chain(const char *top, int levels, int size, const char *original)
{
	char name[256];
	memset(name, size == 1 ? 'd' : 'n', (size_t)size);
	name[size] = 0;
	if (mkdir(top, 0777) < 0)
		return -1;
	int fd = open(top, O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; fd >= 0 && i < levels; i++) {
		if (mkdirat(fd, name, 0777) < 0)
			return -1;
		int next = openat(fd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		close(fd);
		fd = next;
	}
	if (fd < 0)
		return -1;
	if (original != NULL)
		return linkat(AT_FDCWD, original, fd, "key", 0);
	int key = openat(fd, "key", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	return key < 0 || write(key, MARKER "-deep\n", sizeof MARKER + 5) < 0 ? -1 : 0;
}

static int make_deep(const char *directory, const char *original)
{
	umask(0);
	if (make_chain(text("%s/deep", directory), 1000, 1, original) < 0 || make_chain(text("%s/long", directory), 16, 250, original) < 0 ||
	    make_chain(text("%s/longer", directory), 32, 250, original) < 0) {
		perror("attacks make-deep");
		return 2;
	}
	return 0;
}

// make-pin PATH: a map pinned in a bpffs, for somebody who may, so that there is something to open and to unpin.
static int make_pin(const char *path)
{
	union bpf_attr attribute = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1 };
	int map = bpf_call(BPF_MAP_CREATE, &attribute);
	attribute = (union bpf_attr){ .pathname = (uintptr_t)path, .bpf_fd = (unsigned)map };
	if (map < 0 || bpf_call(BPF_OBJ_PIN, &attribute) < 0) {
		perror("attacks make-pin");
		return 2;
	}
	return 0;
}

// churn A B SECONDS: exchanges two directories all the time, for someone outside the container to run. Leaves them as they were.
static int churn(const char *a, const char *b, double seconds)
{
	unsigned long moves = 0;
	for (double end = now() + seconds; now() < end || moves % 2 != 0; moves++)
		if (rename2(a, b, RENAME_EXCHANGE) < 0) {
			perror("attacks churn");
			return 2;
		}
	printf("%lu moves\n", moves);
	return 0;
}

static int run_attack(const char *name, const char *path, int count, char **values)
{
	current = NULL;
	for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++)
		if (strcmp(attacks[i].name, name) == 0)
			current = &attacks[i];
	if (current == NULL || path[0] != '/') {
		printf("%s BROKEN: no such attack, or SECRET is not an absolute path\n", name);
		return BROKEN;
	}
	secret = text("%s", path);
	parent = above(secret);
	grandparent = above(parent);
	base = above(grandparent);
	file_name = strrchr(secret, '/') + 1;
	parameter = values;
	parameters = count;
	undos->count = 0;
	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		umask(0);
		signal(SIGPIPE, SIG_IGN);
		current->run();
		broken("ended-without-an-answer", 0);
	}
	if (child < 0) {
		printf("%s BROKEN: fork: %s\n", name, strerror(errno));
		return BROKEN;
	}
	double end = now() + atof(option("limit", "120"));
	int status = 0;
	pid_t done;
	while ((done = waitpid(child, &status, WNOHANG)) == 0 && now() < end)
		usleep(500);
	if (done == 0) {
		kill(child, SIGKILL);
		waitpid(child, &status, 0);
		printf("%s BROKEN: no answer within the limit\n", name);
	} else if (!WIFEXITED(status)) {
		printf("%s BROKEN: wait status %#x\n", name, (unsigned)status);
	}
	undo_all();
	return done > 0 && WIFEXITED(status) && WEXITSTATUS(status) <= BROKEN ? WEXITSTATUS(status) : BROKEN;
}

static int batch(void)
{
	char *line = NULL;
	size_t room = 0;
	ssize_t length;
	while ((length = getline(&line, &room, stdin)) > 0) {
		char *field[64], *rest = line;
		int count = 0;
		line[strcspn(line, "\n")] = 0;
		if (line[0] == 0)
			continue;
		while (count < 64 && (field[count] = strsep(&rest, "\t")) != NULL)
			count++;
		int status = count < 2 ? BROKEN : run_attack(field[0], field[1], count - 2, field + 2);
		printf("RESULT %s %d\n", field[0], status);
		fflush(stdout);
	}
	return 0;
}

int main(int count, char **arguments)
{
	char own[4096] = "";
	if (readlink("/proc/self/exe", own, sizeof own - 1) < 0)
		own[0] = 0; // a helper in a root without /proc does not need it
	self_path = own;
	undos = mmap(NULL, sizeof *undos, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (undos == MAP_FAILED)
		return BROKEN;
	const char *verb = count > 1 ? arguments[1] : "";
	if (strcmp(verb, "list") == 0) {
		for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++)
			puts(attacks[i].name);
		return 0;
	}
	if (strcmp(verb, "batch") == 0)
		return batch();
	if (strcmp(verb, "make-deep") == 0 && count >= 3)
		return make_deep(arguments[2], count > 3 ? arguments[3] : NULL);
	if (strcmp(verb, "make-pin") == 0 && count == 3)
		return make_pin(arguments[2]);
	if (strcmp(verb, "churn") == 0 && count == 5)
		return churn(arguments[2], arguments[3], atof(arguments[4]));
	if (strcmp(verb, "helper-open") == 0 && count == 3)
		helper_give(open(arguments[2], O_RDONLY | O_CLOEXEC));
	if (strcmp(verb, "helper-openat") == 0 && count == 4)
		helper_give(openat(atoi(arguments[2]), arguments[3], O_RDONLY | O_CLOEXEC));
	if (strcmp(verb, "helper-hold") == 0 && count == 4)
		return helper_hold(arguments[2], atoi(arguments[3]));
	if (strcmp(verb, "helper-send") == 0 && count == 4)
		return helper_send(arguments[2], atoi(arguments[3]));
	if (count < 3) {
		fputs("usage: attacks NAME SECRET [key=value ...] | batch | list | make-deep DIR [SECRET] | churn A B SECONDS\n", stderr);
		return BROKEN;
	}
	return run_attack(verb, arguments[2], count - 3, arguments + 3);
}

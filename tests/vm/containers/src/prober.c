// SPDX-License-Identifier: Apache-2.0
//
// Asks the kernel many questions about paths from one process. The process' own executable is the source the kernel sees: copy this program under
// the names wanted.
//
//   prober [-u UID] [-g GID] [-f] [-i FILE] < questions > answers
//
// A question is a line: OPERATION<TAB>PATH[<TAB>PATH2]. In paths, backslash, tab and newline are written \\ \t \n, any byte may be \xHH. An answer is a
// line: the errno of the first system call that failed, 0 if all worked; "! STEP ERRNO" if the question itself could not be asked or undone (an answer
// that must fail the caller). -f forks for each question.
//
// Undone: what is made is removed, what is renamed goes back, what is removed is made again, empty, with its mode and owner. Not undone: the open-trunc
// questions empty the file. truncate, ftruncate, chmod, fchmod and chown set what is there already. exec and execveat run the program with no arguments, no input and no
// output, and kill it as soon as the exec is past its point of no return: the answer is about the exec itself, not about what it maps afterwards.
// ENOEXEC (8) means that the policy let it pass.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *trouble; // the step that made the question unanswerable

static int fail(const char *step)
{
	trouble = step;
	return errno;
}

static int try_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0644);
	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static int try_create(const char *path, int flags)
{
	int error = try_open(path, flags | O_CREAT);
	return error == 0 && unlink(path) < 0 ? fail("undo-create") : error;
}

static int try_unlink(const char *path)
{
	struct stat before;
	if (lstat(path, &before) < 0 || unlink(path) < 0)
		return errno;
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail("undo-unlink");
	bool same = fchmod(fd, before.st_mode & 07777) == 0;
	if (before.st_uid != geteuid() || before.st_gid != getegid())
		same = fchown(fd, before.st_uid, before.st_gid) == 0 && same;
	close(fd);
	return same ? 0 : fail("undo-unlink-mode");
}

static int try_rmdir(const char *path)
{
	struct stat before;
	if (lstat(path, &before) < 0 || rmdir(path) < 0)
		return errno;
	return mkdir(path, before.st_mode & 07777) < 0 || chmod(path, before.st_mode & 07777) < 0 ? fail("undo-rmdir") : 0;
}

static int try_rename(const char *path, const char *other, unsigned flags)
{
	if (syscall(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, other, flags) < 0)
		return errno;
	if (syscall(SYS_renameat2, AT_FDCWD, other, AT_FDCWD, path, flags) < 0)
		return fail("undo-rename");
	return 0;
}

static int try_truncate(const char *path, bool by_descriptor)
{
	struct stat before;
	if (stat(path, &before) < 0)
		return errno;
	if (!by_descriptor)
		return truncate(path, before.st_size) < 0 ? errno : 0;
	int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return errno;
	int error = ftruncate(fd, before.st_size) < 0 ? errno : 0;
	close(fd);
	return error;
}

static int try_attribute(const char *path, const char *what)
{
	struct stat before;
	if (stat(path, &before) < 0)
		return errno;
	if (strcmp(what, "chmod") == 0)
		return chmod(path, before.st_mode & 07777) < 0 ? errno : 0;
	if (strcmp(what, "chown") == 0)
		return chown(path, before.st_uid, before.st_gid) < 0 ? errno : 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return errno;
	int error = fchmod(fd, before.st_mode & 07777) < 0 ? errno : 0;
	close(fd);
	return error;
}

static int try_map(const char *path, bool later)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), error = 0;
	if (fd < 0)
		return errno;
	void *memory = mmap(NULL, 4096, later ? PROT_READ : PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
	if (memory == MAP_FAILED)
		error = errno;
	else if (later && mprotect(memory, 4096, PROT_READ | PROT_EXEC) < 0)
		error = errno;
	if (memory != MAP_FAILED)
		munmap(memory, 4096);
	close(fd);
	return error;
}

static int try_exec(const char *path, bool by_descriptor)
{
	int pipe_ends[2], error = 0, status;
	int fd = by_descriptor ? open(path, O_PATH | O_CLOEXEC) : AT_FDCWD;
	if (by_descriptor && fd < 0)
		return errno;
	if (pipe2(pipe_ends, O_CLOEXEC) < 0)
		return fail("pipe");
	pid_t child = fork();
	if (child < 0)
		return fail("fork");
	if (child == 0) {
		char *const arguments[] = { (char *)path, NULL }, *const environment[] = { NULL };
		for (int i = 0; i < 3; i++)
			close(i);
		syscall(SYS_execveat, fd, by_descriptor ? "" : path, arguments, environment, by_descriptor ? AT_EMPTY_PATH : 0);
		error = errno;
		(void)!write(pipe_ends[1], &error, sizeof error);
		_exit(127);
	}
	close(pipe_ends[1]);
	if (by_descriptor)
		close(fd);
	ssize_t length = read(pipe_ends[0], &error, sizeof error);
	close(pipe_ends[0]);
	kill(child, SIGKILL);
	if (waitpid(child, &status, 0) < 0)
		return fail("wait");
	return length == (ssize_t)sizeof error ? error : 0;
}

static int try_list(const char *path)
{
	DIR *listing = opendir(path);
	if (listing == NULL)
		return errno;
	errno = 0;
	int error = readdir(listing) == NULL ? errno : 0;
	closedir(listing);
	return error;
}

static int removed(int result, const char *path, bool directory)
{
	if (result < 0)
		return errno;
	return (directory ? rmdir(path) : unlink(path)) < 0 ? fail("undo") : 0;
}

static int ask(const char *operation, const char *path, const char *other)
{
	struct stat ignored;
#define IS(word) (strcmp(operation, word) == 0)
	if (IS("open-read"))
		return try_open(path, O_RDONLY);
	if (IS("open-write"))
		return try_open(path, O_WRONLY);
	if (IS("open-read-write"))
		return try_open(path, O_RDWR);
	if (IS("open-append"))
		return try_open(path, O_WRONLY | O_APPEND);
	if (IS("open-trunc-read"))
		return try_open(path, O_RDONLY | O_TRUNC);
	if (IS("open-trunc-write"))
		return try_open(path, O_WRONLY | O_TRUNC);
	if (IS("creat"))
		return try_create(path, O_WRONLY | O_EXCL);
	if (IS("creat-read"))
		return try_create(path, O_RDONLY | O_EXCL);
	if (IS("unlink"))
		return try_unlink(path);
	if (IS("rmdir"))
		return try_rmdir(path);
	if (IS("mkdir"))
		return removed(mkdir(path, 0755), path, true);
	if (IS("mknod"))
		return removed(mknod(path, S_IFIFO | 0600, 0), path, false);
	if (IS("symlink"))
		return removed(symlink(other[0] != 0 ? other : "target", path), path, false);
	if (IS("truncate"))
		return try_truncate(path, false);
	if (IS("ftruncate"))
		return try_truncate(path, true);
	if (IS("chmod") || IS("fchmod") || IS("chown"))
		return try_attribute(path, operation);
	if (IS("map-exec"))
		return try_map(path, false);
	if (IS("mprotect-exec"))
		return try_map(path, true);
	if (IS("exec"))
		return try_exec(path, false);
	if (IS("execveat"))
		return try_exec(path, true);
	if (IS("trace-parent")) // the prober itself when it forks for each question: the same program; the path is not looked at
		return ptrace(PTRACE_SEIZE, getppid(), 0, 0) < 0 ? errno : 0;
	if (IS("stat"))
		return stat(path, &ignored) < 0 ? errno : 0;
	if (IS("opendir"))
		return try_list(path);
	if (IS("link") && other[0] != 0)
		return removed(link(path, other), other, false);
	if (IS("rename") && other[0] != 0)
		return try_rename(path, other, RENAME_NOREPLACE);
	if (IS("exchange") && other[0] != 0)
		return try_rename(path, other, RENAME_EXCHANGE);
	errno = EINVAL;
	return fail("unknown-operation-or-missing-path");
}

// Decodes in place; false if an escape is none of ours or the result holds a NUL byte.
static bool decode(char *text)
{
	char *to = text;
	for (char *from = text; *from != 0; from++) {
		if (*from != '\\') {
			*to++ = *from;
			continue;
		}
		unsigned byte;
		switch (*++from) {
		case '\\': *to++ = '\\'; break;
		case 't': *to++ = '\t'; break;
		case 'n': *to++ = '\n'; break;
		case 'x':
			if (sscanf(from + 1, "%2x", &byte) != 1 || byte == 0 || from[1] == 0 || from[2] == 0)
				return false;
			*to++ = (char)byte;
			from += 2;
			break;
		default: return false;
		}
	}
	*to = 0;
	return true;
}

static void answer(char *line, FILE *out)
{
	char *rest = line, *operation = strsep(&rest, "\t"), *path = strsep(&rest, "\t"), *other = strsep(&rest, "\t");
	char none[] = "";
	trouble = NULL;
	if (other == NULL)
		other = none;
	int error = EINVAL;
	if (path == NULL || rest != NULL || !decode(path) || !decode(other))
		trouble = "question-not-understood";
	else
		error = ask(operation, path, other);
	if (trouble != NULL)
		fprintf(out, "! %s %d\n", trouble, error);
	else
		fprintf(out, "%d\n", error);
}

int main(int count, char **arguments)
{
	long user = -1, group = -1;
	bool forks = false;
	FILE *in = stdin;
	for (int letter; (letter = getopt(count, arguments, "u:g:fi:")) != -1;) {
		if (letter == 'u')
			user = atol(optarg);
		else if (letter == 'g')
			group = atol(optarg);
		else if (letter == 'f')
			forks = true;
		else if (letter == 'i')
			in = fopen(optarg, "re");
		else
			return 2;
		if (in == NULL) {
			perror(optarg);
			return 2;
		}
	}
	if ((group >= 0 && (setgroups(0, NULL) < 0 || setresgid((gid_t)group, (gid_t)group, (gid_t)group) < 0)) ||
	    (user >= 0 && setresuid((uid_t)user, (uid_t)user, (uid_t)user) < 0)) {
		perror("prober: cannot become that user (CAP_SETUID and CAP_SETGID are needed)");
		return 3;
	}
	umask(0);
	char *line = NULL;
	size_t room = 0;
	ssize_t length;
	while ((length = getline(&line, &room, in)) > 0) {
		if (line[length - 1] == '\n')
			line[length - 1] = 0;
		if (!forks) {
			answer(line, stdout);
			continue;
		}
		fflush(stdout);
		pid_t child = fork();
		if (child == 0) {
			answer(line, stdout);
			fflush(stdout);
			_exit(0);
		}
		int status;
		if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0)
			printf("! fork %d\n", errno);
	}
	return fflush(stdout) == 0 ? 0 : 2;
}

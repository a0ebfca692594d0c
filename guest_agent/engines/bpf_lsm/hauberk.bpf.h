/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel side and guest_agent/engines/bpf_lsm/layout.py agree on. A change here is a change there:
 * tests/unit/engines/bpf_lsm/test_layout.py compares the two.
 */
#ifndef HAUBERK_BPF_H
#define HAUBERK_BPF_H

#define MAX_WORKLOADS 1024
#define TABLE_WORDS 524288 /* 4 MiB: the largest value an array map takes on Linux 6.1 (KMALLOC_MAX_SIZE) */
#define TABLE_MAGIC 0x314b4248u
#define PATH_BUFFER 7424 /* bytes of path a check can see; a longer path is refused */
#define PATH_SLACK 256   /* one component (NAME_MAX) of room behind it */
#define SOURCE_BYTES 256
#define EVENT_DATA 4608
#define COMMAND_BYTES 16
#define NAME_BYTES 128
#define DIGEST_BYTES 32
#define MAX_ALIAS 4

/* struct workload.flags, also table header flags */
#define RULES_FILE 1u
#define RULES_PROCESS 2u
#define RULES_PATH 4u

enum mark_kind { MARK_NONE, MARK_WORKLOAD, MARK_MANAGER };

enum operation_index { OP_EXECUTE, OP_MAP, OP_READ, OP_WRITE };

enum event_operation {
	EVENT_EXECUTE = 1, EVENT_MAP, EVENT_READ, EVENT_WRITE, EVENT_GATE, EVENT_MOUNT, EVENT_NAMESPACE, EVENT_CHROOT,
	EVENT_PTRACE, EVENT_SIGNAL, EVENT_BPF, EVENT_PIN, EVENT_CONNECT, EVENT_MODULE,
	EVENT_NETWORK,
};

enum event_detail {
	DETAIL_NONE, DETAIL_EXEC, DETAIL_MMAP, DETAIL_MPROTECT, DETAIL_OPEN, DETAIL_RECEIVE, DETAIL_TRUNCATE, DETAIL_CREATE,
	DETAIL_MKDIR, DETAIL_RMDIR, DETAIL_SYMLINK, DETAIL_UNLINK, DETAIL_LINK, DETAIL_RENAME, DETAIL_CHMOD, DETAIL_CHOWN,
	DETAIL_MOUNT, DETAIL_UMOUNT, DETAIL_PIVOT_ROOT, DETAIL_MOVE_MOUNT, DETAIL_CHROOT, DETAIL_USER_NAMESPACE,
	DETAIL_PTRACE, DETAIL_KILL, DETAIL_BPF, DETAIL_UNPIN, DETAIL_CONNECT, DETAIL_LOAD,
	DETAIL_NET_ADMIN, DETAIL_NET_RAW, DETAIL_SOCKET, DETAIL_FILE_SYSTEM,
};

#define EVENT_OWNER 1
#define EVENT_PATH_KNOWN 2

enum gate_mode { GATE_OFF, GATE_SEALED };

/* values of the `executables` map */
#define EXECUTABLE_MANAGER 1
#define EXECUTABLE_HELPER 2
#define EXECUTABLE_KERNEL 4
#define MOUNT_POINT 8 /* not executed: where a manager may mount on the measured root */

struct gate {
	__u32 mode;
	__u32 root_device; /* kernel's dev_t of the measured root */
	__u64 root_inode;
	__u32 pin_device; /* bpffs that holds our pins */
	__u32 pad;
	__u64 pin_directory; /* inode of the directory of the pins */
};

struct agent {
	__u32 pid; /* thread group id in the initial pid namespace */
	__u32 pad;
};

struct workload {
	__u32 id; /* 0: the slot is free */
	__u32 flags;
	__u64 cgroup;
	__u32 mount_namespace;
	__u32 region; /* index into `tables` */
	__u32 table;  /* word offset of the table in its region */
	__u32 table_words;
	__u32 epoch; /* the one whose rules these are */
	__u32 network_namespace; /* the one whose packet filter holds the workload; 0: it has no network rules */
	__u8 digest[DIGEST_BYTES]; /* of the table */
	char container[NAME_BYTES];
};

struct executable {
	__u32 device;
	__u32 pad;
	__u64 inode;
};

struct seal {
	__u8 digest[DIGEST_BYTES]; /* SHA-256 of the sealed bundle */
	__u32 sealed;
	__u32 version;
	char name[NAME_BYTES];
};

/* The bundle of an epoch above 0; that of epoch 0 is the sealed one. */
struct successor {
	__u8 digest[DIGEST_BYTES]; /* SHA-256 of the bundle */
	__u32 epoch;
	__u32 version; /* of the bundle */
};

struct event {
	__u64 timestamp; /* CLOCK_BOOTTIME, ns */
	__u32 workload;
	__u32 pid;
	__u32 parent;
	__u32 uid;
	__u8 verdict;
	__u8 operation;
	__u8 detail;
	__u8 flags;
	__u16 path_length;
	__u16 other_length;
	char command[COMMAND_BYTES];
	char source[SOURCE_BYTES];
	char data[EVENT_DATA]; /* path, other path */
};

#endif

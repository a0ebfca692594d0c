// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The kernel's half of the bpf_lsm engine.
 *
 * One walk (`locate`) gives the absolute path of an object, up to the root of its mount namespace: never relative to
 * fs->root, so chroot changes nothing. It runs under the rename_lock sequence count, so a rename during the walk makes it
 * start again. One automaton per workload (`classify`) turns the path into a class; one table turns (class, source,
 * operation, owner) into a verdict. What cannot be told is refused.
 *
 * A task's identity (`mark`) is fixed when it execs and inherited at fork, in task storage. A task whose cgroup is
 * registered is armed by its first exec there; before that it is the container runtime, which must still mount and open.
 *
 * Every workload has room for two sets of rules; the epoch, one number for all, says which of the two counts. So a successor of the sealed
 * bundle comes into force for all workloads in one store of one byte, and no task ever sees a mixture.
 *
 * Every program is non-sleepable: on Linux 6.1 the trampoline of a sleepable program skips it while another task is
 * inside it on the same CPU, which would be an open door (kernel/bpf/trampoline.c, prog->active).
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "hauberk.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* ---- the few kernel types we look at; CO-RE finds the real offsets ---- */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	__u32 val;
} kuid_t;

struct ns_common {
	unsigned int inum;
};
struct mnt_namespace {
	struct ns_common ns;
};
struct super_block {
	__u32 s_dev;
	unsigned long s_flags;
};
struct inode {
	__u16 i_mode;
	kuid_t i_uid;
	__u32 i_rdev;
	unsigned long i_ino;
	struct super_block *i_sb;
};
struct qstr {
	union {
		struct {
			__u32 hash;
			__u32 len;
		};
	};
	const unsigned char *name;
};
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
};
struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
	int mnt_flags;
};
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct mnt_namespace *mnt_ns;
	int mnt_id;
};
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};
struct file {
	struct path f_path;
	struct inode *f_inode;
	unsigned int f_flags;
	unsigned int f_mode;
	void *private_data;
};
/* Linux 6.5 and later: what overlayfs maps; f_path is then the layer's, user_path the one the workload opened. */
struct backing_file {
	struct path user_path;
};
struct linux_binprm {
	struct file *file;
};
struct vm_area_struct {
	struct file *vm_file;
};
struct fs_struct {
	struct path root;
};
struct net {
	struct ns_common ns;
};
struct nsproxy {
	struct mnt_namespace *mnt_ns;
	struct net *net_ns;
};
struct file_system_type {
	int fs_flags;
};
enum fs_context_purpose {
	FS_CONTEXT_FOR_MOUNT,
};
struct fs_context {
	struct file_system_type *fs_type;
	enum fs_context_purpose purpose : 8;
};
struct kernfs_node {
	__u64 id;
};
struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};
struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};
struct sock_cgroup_data {
	struct cgroup *cgroup;
};
struct cred {
	kuid_t fsuid;
};
struct mm_struct;
struct user_namespace;
struct fs_parameter;
struct task_struct {
	int pid;
	int tgid;
	struct mm_struct *mm;
	unsigned int ptrace;
	struct task_struct *parent;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	const struct cred *cred;
	struct fs_struct *fs;
	struct nsproxy *nsproxy;
};
struct upid {
	int nr;
};
struct pid {
	struct upid numbers[1];
};
typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	unsigned short skc_family;
	possible_net_t skc_net;
};
struct sock {
	struct sock_common __sk_common;
	struct sock_cgroup_data sk_cgrp_data;
	__u16 sk_type;
	struct pid *sk_peer_pid;
};
struct socket {
	struct sock *sk;
};
struct bpf_map {
	__u32 id;
};

#pragma clang attribute pop

#define SB_KERNMOUNT (1ul << 22)
#define MODE_WRITE 0x2u         /* FMODE_WRITE */
#define MODE_READ 0x1u          /* FMODE_READ */
#define MODE_INTERNAL (1u << 29) /* FMODE_NOACCOUNT before 6.5: opened by the kernel for itself */
#define FLAG_EXEC 0x20u         /* __FMODE_EXEC in f_flags: never settable from user space */
#define FLAG_TRUNC 01000u       /* O_TRUNC */
#define PROTECT_EXEC 0x4ul
#define PTRACE_ATTACH_ACCESS 2u /* PTRACE_MODE_ATTACH */
#define READ_ONLY_AGAIN 0x1021ul     /* MS_REMOUNT | MS_BIND | MS_RDONLY */
#define EXCHANGE 2u /* RENAME_EXCHANGE */
#define MOVE 8192ul /* MS_MOVE */
#define REMOUNT 32ul /* MS_REMOUNT; without MS_BIND it changes the file system, not the mount */
#define BIND 4096ul  /* MS_BIND */
#define SHARED 0x1000 /* MNT_SHARED */
#define INODE_TYPE 0170000
#define INODE_FIFO 0010000
#define INODE_CHARACTER 0020000
#define INODE_DIRECTORY 0040000
#define INODE_BLOCK 0060000
#define INODE_SOCKET 0140000
#define NET_ADMIN 12 /* CAP_NET_ADMIN */
#define NET_RAW 13   /* CAP_NET_RAW */
#define ONLY_ASKING 2u /* CAP_OPT_NOAUDIT */
#define FAMILY_UNIX 1
#define FAMILY_INET 2
#define FAMILY_INET6 10
#define FAMILY_NETLINK 16
#define FAMILY_CRYPTO 38 /* AF_ALG */
#define TYPE_RAW 3
#define PROTOCOL_SMC 256 /* IPPROTO_SMC: after its handshake no packet filter sees the data */
#define ON_DEVICE 1      /* FS_REQUIRES_DEV */
#define BY_ANYBODY 8     /* FS_USERNS_MOUNT */

extern const void rename_lock __ksym;
extern const void init_task __ksym;

/* ---- maps ---- */
struct mark {
	__u32 kind;
	__u32 slot;
	__u32 workload;
	__u32 device; /* of the executable */
	__u32 self;   /* MARK_MANAGER: the executable is a manager itself, not one of its helpers */
	__u32 length; /* of the executable's path, also where `path` does not hold all of it; 0: not known */
	__u64 standing; /* epoch << 32 | source id in the workload's table of that epoch: one word, so that others read a pair that fits */
	__u64 inode;
	__u64 object; /* the inode itself: an overlay of several file systems may give two files one number */
	char path[SOURCE_BYTES];
};

/* What the exec in progress will make of the task; taken over by committing_creds. */
struct pending {
	__u64 program; /* the linux_binprm it belongs to */
	__u32 helper;  /* the first file of this exec is a helper, so its interpreter may follow */
	__u32 pad;
	struct mark mark;
	struct mark outside; /* stands for the runtime, which is none of the policy's sources */
};

/* An object as the kernel names it. Pointers as numbers: the functions that take it are verified on their own. */
struct where {
	__u64 mnt;
	__u64 dentry;
	__u32 mount_namespace;
	__u32 start;    /* out: of the path in scratch, for PLACE_KNOWN */
	__u64 reached;  /* what begin_walk has done already: up to this dentry of the same mount, 0: nothing */
	__u32 sequence; /* rename_lock when it began */
	__u32 pad;
};

/* One of the two names of a link or rename. */
struct name {
	struct where where;
	__u64 file;
	__u64 process;
	__u64 below_file;
	__u64 below_process;
	__u32 file_state;
	__u32 process_state;
	__u32 known;
	__u32 pad;
};

/* Room for one check of one task; too much for the BPF stack. */
struct scratch {
	__u8 path[PATH_BUFFER + PATH_SLACK];
	struct name old;
	struct name new;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct pending);
} pendings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct scratch);
} scratches SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct event);
} reports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WORKLOADS);
	__type(key, __u64);
	__type(value, __u32);
} cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * MAX_WORKLOADS); /* those of even epochs, then those of odd ones */
	__type(key, __u32);
	__type(value, struct workload);
} workloads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} epoch SEC(".maps");

/* What each epoch's bundle is, for the agent that comes after this one; no program reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct successor);
} successors SEC(".maps");

struct table {
	__u64 word[TABLE_WORDS];
};

/* max_entries is set at load time from the agent's configuration */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct table);
} tables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gate);
} gate SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct agent);
} agent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seal);
} seal SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct executable);
	__type(value, __u32);
} executables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u32);
} service_cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} guarded_mounts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} guarded_maps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

enum counter { COUNTER_EVENTS, COUNTER_LOST, COUNTER_RETRIES, COUNTER_UNTOLD, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* ---- small things ---- */
#define VERDICT_ALLOW 0u
#define VERDICT_AUDIT 1u
#define VERDICT_DENY 2u

static __always_inline __u32 worse(__u32 one, __u32 other)
{
	return one > other ? one : other;
}

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);

	if (value)
		__sync_fetch_and_add(value, 1);
}

static __always_inline struct task_struct *self(void)
{
	return (struct task_struct *)bpf_get_current_task_btf();
}

/* Whether the current task is in the mount namespace of the guest itself, where the pins' mounts are. */
static __always_inline int in_first_namespace(void)
{
	struct task_struct *task = self(), *first = (struct task_struct *)&init_task;

	return BPF_CORE_READ(task, nsproxy, mnt_ns) == BPF_CORE_READ(first, nsproxy, mnt_ns);
}

static __always_inline struct mark *mark_of(struct task_struct *task)
{
	return bpf_task_storage_get(&marks, task, 0, 0);
}

static __always_inline struct gate *the_gate(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&gate, &zero);
}

static __always_inline int sealed(void)
{
	struct gate *g = the_gate();

	return !g || g->mode == GATE_SEALED;
}

/* What a slot holds in the present epoch. */
static __always_inline struct workload *workload_at(__u32 slot)
{
	__u32 zero = 0;
	__u32 *now = bpf_map_lookup_elem(&epoch, &zero);

	if (!now || slot >= MAX_WORKLOADS)
		return 0;
	if (*now & 1)
		slot += MAX_WORKLOADS;
	return bpf_map_lookup_elem(&workloads, &slot);
}

/* The workload a mark belongs to; NULL once it has been let go: such a task may do nothing any more. */
static __always_inline struct workload *workload_of(struct mark *mark)
{
	struct workload *workload = workload_at(mark->slot);

	if (!workload || workload->id == 0 || workload->id != mark->workload)
		return 0;
	return workload;
}

#define NO_SOURCE (~0u) /* no table has it, so it gets nothing */

static __always_inline __u64 standing_in(struct workload *workload, __u32 source)
{
	return (__u64)workload->epoch << 32 | source;
}

static __always_inline struct table *table_of(struct workload *workload)
{
	__u32 region = workload->region;

	return bpf_map_lookup_elem(&tables, &region);
}

static __always_inline struct mount *mount_of(const struct vfsmount *mnt)
{
	return (struct mount *)((void *)mnt - bpf_core_field_offset(struct mount, mnt));
}

/* ---- the walk ---- */
enum place {
	PLACE_KNOWN,    /* a path in the workload's mount namespace, in scratch->path[start .. PATH_BUFFER) */
	PLACE_NAMELESS, /* pipe, socket, memfd, anonymous inode: the kernel's own mounts */
	PLACE_INTERNAL, /* a layer, opened by overlayfs itself; the workload's own open was judged before */
	PLACE_FOREIGN,  /* on a mount of another namespace, or of none */
	PLACE_UNKNOWN,  /* disconnected, too long, or renamed faster than it can be read */
};

struct walk {
	struct scratch *scratch;
	__u64 dentry;
	__u64 mount;
	__u64 root; /* mnt_root of that mount */
	__u32 start;
	__u32 done;
	__u32 failed;
};

static __always_inline int walk_step(struct walk *walk, struct scratch *scratch)
{
	struct dentry *dentry = (struct dentry *)walk->dentry;
	struct dentry *parent;
	struct qstr name;
	__u32 length, start;

	if (walk->dentry == walk->root) {
		struct mount *mount = (struct mount *)walk->mount;
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);

		if (above == mount || !above) {
			walk->done = 1;
			return 1;
		}
		walk->dentry = (__u64)BPF_CORE_READ(mount, mnt_mountpoint);
		walk->mount = (__u64)above;
		walk->root = (__u64)BPF_CORE_READ(above, mnt.mnt_root);
		return 0;
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	if (parent == dentry || !parent) {
		walk->failed = 1; /* open_by_handle_at of a disconnected dentry, or a file system torn off */
		return 1;
	}
	bpf_core_read(&name, sizeof(name), &dentry->d_name);
	length = name.len;
	start = walk->start;
	if (length == 0 || length > 255 || start > PATH_BUFFER || start < length + 1) {
		walk->failed = 1;
		return 1;
	}
	start -= length;
	if (start > PATH_BUFFER) {
		walk->failed = 1;
		return 1;
	}
	length &= 255;
	if (bpf_probe_read_kernel(&scratch->path[start], length, name.name)) {
		walk->failed = 1;
		return 1;
	}
	start -= 1;
	if (start > PATH_BUFFER) {
		walk->failed = 1;
		return 1;
	}
	scratch->path[start] = '/';
	walk->start = start;
	walk->dentry = (__u64)parent;
	return 0;
}

static long walk_steps(__u32 index, void *data)
{
	struct walk *walk = data;
	struct scratch *scratch = walk->scratch;

	for (int i = 0; i < 8; i++)
		if (walk_step(walk, scratch))
			return 1;
	return 0;
}

static __always_inline __u32 rename_sequence(void)
{
	__u32 sequence = 1;

	/* seqlock_t begins with its sequence count (include/linux/seqlock_types.h) */
	bpf_probe_read_kernel(&sequence, sizeof(sequence), &rename_lock);
	return sequence;
}

static long walk_try(__u32 index, void *data)
{
	struct walk *walk = data;
	__u64 dentry = walk->dentry, mount = walk->mount, root = walk->root;
	__u32 before = rename_sequence();

	if (!(before & 1)) {
		walk->start = PATH_BUFFER;
		walk->done = 0;
		walk->failed = 0;
		bpf_loop(PATH_BUFFER / 2 / 8 + 64, walk_steps, walk, 0);
		if (rename_sequence() == before)
			return 1;
	}
	count(COUNTER_RETRIES);
	walk->dentry = dentry;
	walk->mount = mount;
	walk->root = root;
	walk->done = 0;
	return 0;
}


/*
 * The part of the walk that is done with typed pointers, where a load costs a load and not a call: up to the root of the mount, as far
 * as FAST_COMPONENTS. locate() goes on from where this one stopped and throws it away if there was a rename meanwhile.
 */
#define FAST_COMPONENTS 16

static __noinline int begin_walk(struct scratch *scratch, struct where *where, struct dentry *dentry, struct dentry *root)
{
	__u32 start = PATH_BUFFER;

	where->reached = 0;
	where->sequence = rename_sequence();
	if (where->sequence & 1)
		return 0;
	for (int i = 0; i < FAST_COMPONENTS; i++) {
		struct dentry *parent;
		__u32 length;

		if (dentry == root)
			break;
		parent = dentry->d_parent;
		length = dentry->d_name.len;
		if (parent == dentry || length == 0 || length > 255 || start < length + 1)
			return 0; /* locate() says what is wrong with it */
		start -= length;
		barrier_var(start);
		if (start > PATH_BUFFER)
			return 0;
		length &= 255;
		if (bpf_probe_read_kernel(&scratch->path[start], length, dentry->d_name.name))
			return 0;
		start -= 1;
		barrier_var(start);
		if (start > PATH_BUFFER)
			return 0;
		scratch->path[start] = '/';
		dentry = parent;
	}
	where->start = start;
	where->reached = (__u64)dentry;
	return 0;
}

/* Where an object is, for a workload of that mount namespace. */
__noinline int locate(struct scratch *scratch, struct where *where)
{
	struct walk walk = {};
	struct vfsmount *mnt;
	struct mount *mount;
	struct mnt_namespace *namespace, *own;
	struct task_struct *task = self();
	__u32 number;

	if (!scratch || !where)
		return PLACE_UNKNOWN;
	mnt = (struct vfsmount *)where->mnt;
	mount = mount_of(mnt);
	namespace = BPF_CORE_READ(mount, mnt_ns);
	if (!namespace || (__u64)namespace >= (__u64)-4095) {
		if (BPF_CORE_READ(mnt, mnt_sb, s_flags) & SB_KERNMOUNT)
			return PLACE_NAMELESS;
		/* clone_private_mount() marks its mounts MNT_NS_INTERNAL, ERR_PTR(-EINVAL); a lazily unmounted one has none */
		return (__s64)namespace == -EINVAL ? PLACE_INTERNAL : PLACE_FOREIGN;
	}
	own = task->nsproxy->mnt_ns; /* almost always the same one, and then a load */
	number = own->ns.inum;
	barrier_var(number);
	if ((__u64)own != (__u64)namespace)
		number = BPF_CORE_READ(namespace, ns.inum);
	if (number != where->mount_namespace)
		return PLACE_FOREIGN;
	walk.scratch = scratch;
	walk.mount = (__u64)mount;
	walk.root = (__u64)BPF_CORE_READ(mnt, mnt_root);
	if (where->reached) {
		walk.dentry = where->reached;
		walk.start = where->start;
		where->reached = 0; /* good for one use: the buffer is shared */
		if (walk.start <= PATH_BUFFER) {
			/* the common end: the root of the one mount of the namespace's tree */
			if (walk.dentry != walk.root || BPF_CORE_READ(mount, mnt_parent) != mount)
				bpf_loop(PATH_BUFFER / 2 / 8 + 64, walk_steps, &walk, 0);
			else
				walk.done = 1;
			if (walk.done && !walk.failed && rename_sequence() == where->sequence)
				goto done;
		}
		count(COUNTER_RETRIES);
	}
	walk.dentry = where->dentry;
	walk.mount = (__u64)mount;
	walk.root = (__u64)BPF_CORE_READ(mnt, mnt_root);
	walk.done = 0;
	walk.failed = 0;
	bpf_loop(32, walk_try, &walk, 0);
	if (!walk.done || walk.failed)
		return PLACE_UNKNOWN;
done:
	if (walk.start == PATH_BUFFER) { /* the root itself */
		walk.start = PATH_BUFFER - 1;
		scratch->path[PATH_BUFFER - 1] = '/';
	}
	where->start = walk.start;
	return PLACE_KNOWN;
}

/* ---- the automaton ---- */
struct automaton {
	struct table *table;
	struct scratch *scratch;
	__u32 base; /* word offset of the table in its region */
	__u32 states;
	__u32 transitions;
	__u32 sinks;
	__u32 state;
	__u32 position;
	__u32 failed;
};

/* Header of the table as 16 u32, two to a word: see guest_agent/engines/bpf_lsm/plan.py. */
enum header_word { HEADER_MAGIC, HEADER_START, HEADER_SINKS, HEADER_STATES, HEADER_OUTPUTS, HEADER_TRANSITIONS, HEADER_VERDICTS };

static long automaton_steps(__u32 index, void *data)
{
	struct automaton *automaton = data;
	struct table *table = automaton->table;
	struct scratch *scratch = automaton->scratch;
	__u32 state = automaton->state, position = automaton->position, sinks = automaton->sinks;
	__u32 states = automaton->states, transitions = automaton->transitions;
	long stop = 0;

	for (int i = 0; i < 64; i++) {
		__u32 at, other, difference;
		__u64 entry, transition;

		barrier_var(position); /* keeps the bound and the use of it in one register, which the verifier wants */
		if (position >= PATH_BUFFER || state < sinks) {
			stop = 1;
			break;
		}
		at = states + state;
		barrier_var(at);
		if (at >= TABLE_WORDS) {
			automaton->failed = 1;
			return 1;
		}
		entry = table->word[at];
		/* the planner leaves room for every byte behind every base */
		at = transitions + (__u32)entry + scratch->path[position];
		barrier_var(at);
		if (at >= TABLE_WORDS) {
			automaton->failed = 1;
			return 1;
		}
		transition = table->word[at];
		/* next = check == state ? target : default, without a branch: 64 of them would be 2^64 paths to verify */
		difference = (__u32)transition ^ state;
		difference = (difference | -difference) >> 31;
		barrier_var(difference);
		other = difference - 1;
		state = ((__u32)(transition >> 32) & other) | ((__u32)(entry >> 32) & ~other);
		position++;
	}
	automaton->state = state;
	automaton->position = position;
	return stop;
}

#define OUTPUT_FAILED (~0ull)
#define MAX_SOURCES 257 /* 256 named ones, and any other */

static __always_inline __u64 word_at(struct table *table, __u32 at)
{
	barrier_var(at);
	return at < TABLE_WORDS ? table->word[at] : OUTPUT_FAILED;
}

/*
 * Output word of the state the path at scratch->path[start ..] leads to (u16 class, source, below, flags), OUTPUT_FAILED if the
 * table is not sound. With BELOW, of the path with "/" behind it. lookup->state is the state itself.
 */
struct lookup {
	__u32 base;  /* word offset of the table in its region */
	__u32 start; /* of the path in scratch */
	__u32 mode;
	__u32 state; /* out: where it led */
};

#define FILE_RULES 0u
#define PROCESS_RULES 1u
#define BELOW 2u

__noinline __u64 classify(struct table *table, struct scratch *scratch, struct lookup *lookup)
{
	struct automaton automaton = {};
	__u64 word;
	__u32 outputs, count_of_states, base, start, mode;

	if (!table || !scratch || !lookup)
		return OUTPUT_FAILED;
	base = lookup->base;
	start = lookup->start;
	mode = lookup->mode;
	if (base >= TABLE_WORDS - 8)
		return OUTPUT_FAILED;
	word = word_at(table, base + HEADER_MAGIC);
	if ((__u32)word != TABLE_MAGIC)
		return OUTPUT_FAILED;
	automaton.table = table;
	automaton.scratch = scratch;
	automaton.base = base;
	word = word_at(table, base + HEADER_START); /* file_start, exec_start */
	automaton.state = (mode & PROCESS_RULES) ? word >> 32 : (__u32)word;
	word = word_at(table, base + HEADER_SINKS); /* sinks, n_states */
	automaton.sinks = word;
	count_of_states = word >> 32;
	word = word_at(table, base + HEADER_STATES); /* off_states, off_outputs */
	automaton.states = base + (__u32)word;
	outputs = base + (word >> 32);
	word = word_at(table, base + HEADER_OUTPUTS); /* off_transitions, n_transitions */
	automaton.transitions = base + (__u32)word;
	automaton.position = start;
	bpf_loop(PATH_BUFFER / 64 + 1, automaton_steps, &automaton, 0);
	if (automaton.failed || (automaton.position < PATH_BUFFER && automaton.state >= automaton.sinks))
		return OUTPUT_FAILED;
	if (mode & BELOW) { /* "/" behind it; the root already ends with one */
		if (automaton.state >= automaton.sinks && start != PATH_BUFFER - 1) {
			word = word_at(table, automaton.states + automaton.state);
			if (word == OUTPUT_FAILED)
				return OUTPUT_FAILED;
			automaton.position = word >> 32;
			word = word_at(table, automaton.transitions + (__u32)word + '/');
			if ((__u32)word == automaton.state)
				automaton.position = word >> 32;
			automaton.state = automaton.position;
		}
	}
	lookup->state = automaton.state;
	if (automaton.state >= count_of_states)
		return OUTPUT_FAILED;
	return word_at(table, outputs + automaton.state);
}

static __always_inline __u32 class_of(__u64 output)
{
	return output & 0xffff;
}
static __always_inline __u32 source_of(__u64 output)
{
	return (output >> 16) & 0xffff;
}
static __always_inline __u32 below_of(__u64 output)
{
	return (output >> 32) & 0xffff;
}
/* Whether the automaton's own operations (1 file, 2 process) are denied to anyone somewhere below. */
static __always_inline __u32 guarded(__u64 output, __u32 automaton)
{
	return (output >> 48) & automaton;
}

/* All verdict bits of a class for a source; all ones (deny) if the table is not sound. */
static __always_inline __u64 row_of(struct table *table, __u32 base, __u32 class, __u32 source)
{
	__u64 word = word_at(table, base + 5); /* off_verdicts, n_classes */
	__u32 verdicts = word, classes = word >> 32;
	__u32 sources = (__u32)word_at(table, base + 6);

	if (class >= classes || source >= sources)
		return ~0ull;
	return word_at(table, base + verdicts + class * sources + source);
}

static __always_inline __u32 verdict_of(__u64 row, __u32 operation, __u32 owner)
{
	return (row >> ((operation * 2 + owner) * 2)) & 3;
}

/* ---- telling ---- */
struct report {
	__u32 workload;
	__u32 verdict;
	__u32 operation;
	__u32 detail;
	__u32 flags;
	__u32 start; /* of the path in scratch; PATH_BUFFER: none */
};

static __always_inline struct event *event_begin(struct task_struct *task)
{
	return bpf_task_storage_get(&reports, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline int event_fill(struct event *event, struct mark *mark, struct report *report)
{
	struct task_struct *task = self();

	if (!event || !report)
		return 0;
	event->timestamp = bpf_ktime_get_boot_ns();
	event->workload = report->workload;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->parent = BPF_CORE_READ(task, real_parent, tgid);
	event->uid = bpf_get_current_uid_gid();
	event->verdict = report->verdict;
	event->operation = report->operation;
	event->detail = report->detail;
	event->flags = report->flags;
	event->path_length = 0;
	event->other_length = 0;
	bpf_get_current_comm(event->command, sizeof(event->command));
	if (mark)
		bpf_probe_read_kernel(event->source, sizeof(event->source), mark->path);
	else
		event->source[0] = 0;
	return 0;
}

static __always_inline void event_path(struct event *event, struct scratch *scratch, __u32 start, int other)
{
	__u32 length, at = 0;

	if (!scratch || start >= PATH_BUFFER)
		return;
	length = PATH_BUFFER - start;
	if (other) {
		at = event->path_length;
		if (at > 3584)
			at = 3584;
		if (length > 1023)
			length = 1023;
		bpf_probe_read_kernel(&event->data[at], length & 1023, &scratch->path[start]);
		event->path_length = at;
		event->other_length = length;
		return;
	}
	if (length > 4095)
		length = 4095; /* the beginning is what names the rule */
	bpf_probe_read_kernel(event->data, length & 4095, &scratch->path[start]);
	event->path_length = length;
}

static __always_inline void event_send(struct event *event)
{
	__u32 size = event->path_length + event->other_length;

	if (size > EVENT_DATA)
		size = EVENT_DATA;
	size += __builtin_offsetof(struct event, data);
	if (size > sizeof(*event))
		return;
	if (bpf_ringbuf_output(&events, event, size, 0))
		count(COUNTER_LOST);
	else
		count(COUNTER_EVENTS);
}

__noinline int tell(struct mark *mark, struct scratch *scratch, struct report *report)
{
	struct event *event = event_begin(self());

	if (!event || !report) {
		count(COUNTER_LOST);
		return 0;
	}
	event_fill(event, mark, report);
	event_path(event, scratch, report->start, 0);
	event_send(event);
	return 0;
}

/* For what is refused whatever the path: mounts, namespaces, ptrace … */
static __always_inline int refuse(struct mark *mark, __u32 operation, __u32 detail)
{
	struct report report = {
		.workload = mark ? mark->workload : 0,
		.verdict = VERDICT_DENY,
		.operation = operation,
		.detail = detail,
		.start = PATH_BUFFER,
	};

	tell(mark, 0, &report);
	return -EPERM;
}

/* ---- judging one object ---- */
static __always_inline __u32 owner_of(__u64 number)
{
	const struct inode *inode = (const struct inode *)number;
	struct task_struct *task = self();

	if (!inode)
		return 1; /* being created: it will be the task's */
	return BPF_CORE_READ(inode, i_uid.val) == task->cred->fsuid.val;
}

static __always_inline struct scratch *scratch_of(struct task_struct *task)
{
	return bpf_task_storage_get(&scratches, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/* stdio handed in from outside: fifos, terminals and the harmless memory devices may be opened again */
static __always_inline int is_stdio(__u64 number)
{
	const struct inode *inode = (const struct inode *)number;
	__u16 mode;
	__u32 device, major;

	if (!inode)
		return 0;
	mode = BPF_CORE_READ(inode, i_mode);
	if ((mode & INODE_TYPE) == INODE_FIFO)
		return 1;
	if ((mode & INODE_TYPE) != INODE_CHARACTER)
		return 0;
	device = BPF_CORE_READ(inode, i_rdev);
	major = device >> 20;
	device &= 0xfffff;
	if (major == 1)
		return device == 3 || device == 5 || device == 7 || device == 8 || device == 9;
	return major == 5 || (major >= 136 && major <= 143);
}

/* Which of the two words each side of an access asks about, as bits. */
#define ASK_EXECUTE (1u << OP_EXECUTE)
#define ASK_MAP (1u << OP_MAP)
#define ASK_READ (1u << OP_READ)
#define ASK_WRITE (1u << OP_WRITE)

struct question {
	struct where where;
	__u64 inode; /* 0: the object is about to be created */
	__u32 ask;
	__u32 detail;
};

/* Name the object and do the typed part of the walk; locate() takes it up. */
static __always_inline void ask_about(struct question *question, struct vfsmount *mnt, struct dentry *dentry)
{
	struct scratch *scratch = scratch_of(self());

	question->where.mnt = (__u64)mnt;
	question->where.dentry = (__u64)dentry;
	question->where.start = PATH_BUFFER;
	question->where.reached = 0;
	if (scratch)
		begin_walk(scratch, &question->where, dentry, mnt->mnt_root);
}

static __always_inline __u32 event_operation(__u32 ask)
{
	if (ask & ASK_EXECUTE)
		return EVENT_EXECUTE;
	if (ask & ASK_MAP)
		return EVENT_MAP;
	return (ask & ASK_WRITE) ? EVENT_WRITE : EVENT_READ;
}

/*
 * 0 or -EACCES. `identity`, if given, gets the source id and the path that the object would have as an executable.
 * Rules that cannot be looked up because the object has no name: data of nameless objects is not the business of path rules,
 * executing them is refused.
 */
__noinline int judge(struct mark *mark, struct workload *workload, struct question *question, struct mark *identity)
{
	struct scratch *scratch;
	struct table *table;
	struct report report = {};
	struct lookup lookup = {};
	__u32 start, verdict, owner = 1, source, worst = VERDICT_ALLOW, told_operation = 0;
	__u32 process;
	__u64 output, row;
	int place;

	if (!mark || !workload || !question)
		return -EACCES;
	process = question->ask & (ASK_EXECUTE | ASK_MAP);
	if (!(workload->flags & RULES_PATH) && !identity)
		return 0;
	scratch = scratch_of(self());
	if (!scratch) {
		count(COUNTER_UNTOLD);
		return -EACCES;
	}
	question->where.mount_namespace = workload->mount_namespace;
	place = locate(scratch, &question->where);
	start = question->where.start;
	if (place == PLACE_INTERNAL && !process)
		return 0;
	source = (__u32)mark->standing;
	report.workload = workload->id;
	report.detail = question->detail;
	report.operation = event_operation(question->ask);
	report.start = PATH_BUFFER;
	report.verdict = VERDICT_DENY;
	report.flags = EVENT_OWNER;
	if (place != PLACE_KNOWN) {
		if (!(workload->flags & RULES_PATH))
			return 0;
		if (!process && (place == PLACE_NAMELESS || (place == PLACE_FOREIGN && is_stdio(question->inode))))
			return 0;
		tell(mark, 0, &report);
		return -EACCES;
	}
	report.start = start;
	report.flags |= EVENT_PATH_KNOWN;
	table = table_of(workload);
	if (!table)
		return -EACCES;
	lookup.base = workload->table;
	lookup.start = start;
	lookup.mode = process ? PROCESS_RULES : FILE_RULES;
	output = classify(table, scratch, &lookup);
	if (output == OUTPUT_FAILED) {
		tell(mark, scratch, &report);
		return -EACCES;
	}
	if (identity) {
		__u32 length = PATH_BUFFER - start;

		identity->standing = standing_in(workload, source_of(output));
		identity->length = length;
		if (length > SOURCE_BYTES - 1)
			length = SOURCE_BYTES - 1;
		if (start < PATH_BUFFER)
			bpf_probe_read_kernel(identity->path, length & (SOURCE_BYTES - 1), &scratch->path[start]);
		identity->path[length & (SOURCE_BYTES - 1)] = 0;
	}
	row = row_of(table, workload->table, class_of(output), source);
	if (row == 0)
		return 0;
	owner = owner_of(question->inode);
	if (!owner)
		report.flags = EVENT_PATH_KNOWN;
	for (__u32 operation = 0; operation < 4; operation++) {
		if (!(question->ask & (1u << operation)))
			continue;
		verdict = verdict_of(row, operation, owner);
		if (verdict == VERDICT_ALLOW)
			continue;
		if (verdict > worst || !told_operation) {
			told_operation = operation + 1; /* EVENT_EXECUTE … EVENT_WRITE */
			worst = worse(worst, verdict);
		}
	}
	if (worst == VERDICT_ALLOW)
		return 0;
	report.verdict = worst == VERDICT_AUDIT ? VERDICT_AUDIT : VERDICT_DENY; /* all ones where there is no such source */
	report.operation = told_operation;
	tell(mark, scratch, &report);
	return worst == VERDICT_AUDIT ? 0 : -EACCES;
}

/*
 * Which source a task is under the rules of an epoch that began after its exec: what it executed then, looked up in the table of now. A path
 * that is not held whole could be any source's, and a table that is not sound knows none: such a task gets nothing.
 */
__noinline __u32 source_anew(struct mark *mark, struct workload *workload)
{
	struct scratch *scratch = scratch_of(self());
	struct lookup lookup = {};
	struct table *table;
	__u32 length;
	__u64 output;

	if (!mark || !workload || !scratch)
		return NO_SOURCE;
	length = mark->length;
	if (length == 0 || length >= SOURCE_BYTES)
		return NO_SOURCE;
	length &= SOURCE_BYTES - 1;
	lookup.start = PATH_BUFFER - length;
	if (bpf_probe_read_kernel(&scratch->path[PATH_BUFFER - length], length, mark->path))
		return NO_SOURCE;
	table = table_of(workload);
	if (!table)
		return NO_SOURCE;
	lookup.base = workload->table;
	lookup.mode = PROCESS_RULES;
	output = classify(table, scratch, &lookup);
	return output == OUTPUT_FAILED ? NO_SOURCE : source_of(output);
}

static __always_inline __u32 source_now(struct mark *mark, struct workload *workload)
{
	__u64 standing = *(volatile __u64 *)&mark->standing;

	return standing >> 32 == workload->epoch ? (__u32)standing : source_anew(mark, workload);
}

/* Only of the current task: what others do with its mark is read it. */
static __always_inline void renew(struct mark *mark, struct workload *workload)
{
	*(volatile __u64 *)&mark->standing = standing_in(workload, source_anew(mark, workload));
}

/* The armed current task and its workload: 0 = not armed, 1 = armed, negative = armed for a workload that is gone. */
static __always_inline int armed(struct mark **mark, struct workload **workload)
{
	*mark = mark_of(self());
	if (!*mark || (*mark)->kind != MARK_WORKLOAD)
		return 0;
	*workload = workload_of(*mark);
	if (!*workload)
		return -EACCES;
	if ((*mark)->standing >> 32 != (*workload)->epoch)
		renew(*mark, *workload);
	return 1;
}

/* ---- exec: the gate, process rules, arming ---- */
static __always_inline __u32 registered_slot(__u32 *slot)
{
	for (int level = 0; level < 32; level++) {
		__u64 id = bpf_get_current_ancestor_cgroup_id(level);
		__u32 *found;

		if (!id)
			return 0;
		found = bpf_map_lookup_elem(&cgroups, &id);
		if (found) {
			*slot = *found;
			return 1;
		}
	}
	return 0;
}

static __always_inline int in_service_cgroup(void)
{
	for (int level = 0; level < 4; level++) {
		__u64 id = bpf_get_current_ancestor_cgroup_id(level);

		if (!id)
			return 0;
		if (bpf_map_lookup_elem(&service_cgroups, &id))
			return 1;
	}
	return 0;
}

static __always_inline __u32 executable_kind(const struct inode *inode)
{
	struct executable key = {};
	__u32 *kind;

	key.device = BPF_CORE_READ(inode, i_sb, s_dev);
	key.inode = BPF_CORE_READ(inode, i_ino);
	kind = bpf_map_lookup_elem(&executables, &key);
	return kind ? *kind : 0;
}

/* For the gate's alerts the path is told in the file's own mount namespace, whichever that is. */
__noinline int gate_tells(struct mark *mark, struct where *where)
{
	struct report report = {.verdict = VERDICT_DENY, .operation = EVENT_GATE, .detail = DETAIL_EXEC, .start = PATH_BUFFER};
	struct scratch *scratch = scratch_of(self());
	struct mnt_namespace *namespace;
	struct mount *mount;

	if (!where || !scratch)
		return 0;
	mount = mount_of((struct vfsmount *)where->mnt);
	namespace = BPF_CORE_READ(mount, mnt_ns);
	if (namespace && (__u64)namespace < (__u64)-4095)
		where->mount_namespace = BPF_CORE_READ(namespace, ns.inum);
	if (mark)
		report.workload = mark->workload;
	if (locate(scratch, where) == PLACE_KNOWN) {
		report.start = where->start;
		report.flags |= EVENT_PATH_KNOWN;
	}
	tell(mark, scratch, &report);
	return 0;
}

static __always_inline int gate_refuses(struct mark *mark, struct file *file)
{
	struct where where = {};

	where.mnt = (__u64)BPF_CORE_READ(file, f_path.mnt);
	where.dentry = (__u64)BPF_CORE_READ(file, f_path.dentry);
	gate_tells(mark, &where);
	return -EPERM;
}

/*
 * Sealed mode, a task that belongs to no registered workload. The guest's own services are known by a positive list: its
 * root directory, a file of the measured root, below the service manager's cgroups. What a container manager starts
 * (its lineage is marked) may only be a manager again or one of its helpers; a usermode helper of the kernel only a listed one.
 */
static __always_inline int gate_exec(struct mark *mark, struct pending *pending, struct linux_binprm *program)
{
	struct gate *g = the_gate();
	struct task_struct *task = self();
	struct file *file = BPF_CORE_READ(program, file);
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct super_block *super = BPF_CORE_READ(inode, i_sb);
	__u32 device = BPF_CORE_READ(super, s_dev);
	__u32 kind, measured;

	if (!g || !pending)
		return -EPERM;
	kind = executable_kind(inode);
	/* elsewhere the name of a helper's interpreter stands for whatever was mounted there */
	if (g->mode == GATE_SEALED && mark && mark->kind == MARK_MANAGER && !in_first_namespace())
		kind &= ~EXECUTABLE_HELPER;
	measured = device == g->root_device;
	if (g->mode == GATE_SEALED) {
		if (mark && mark->kind == MARK_MANAGER) {
			int copy = mark->self && (BPF_CORE_READ(super, s_flags) & SB_KERNMOUNT); /* runc runs a memfd copy of itself */

			if (!(kind & (EXECUTABLE_MANAGER | EXECUTABLE_HELPER)) && !copy && !(pending->helper && measured))
				return gate_refuses(mark, file);
			if (copy)
				kind |= EXECUTABLE_MANAGER;
		} else if (!BPF_CORE_READ(task, mm)) {
			if (!(kind & EXECUTABLE_KERNEL))
				return gate_refuses(mark, file);
		} else {
			struct dentry *root = BPF_CORE_READ(task, fs, root.dentry);

			if (!measured || BPF_CORE_READ(root, d_sb, s_dev) != g->root_device ||
			    BPF_CORE_READ(root, d_inode, i_ino) != g->root_inode || !in_service_cgroup())
				return gate_refuses(mark, file);
		}
	}
	if (kind & EXECUTABLE_HELPER)
		pending->helper = 1;
	if (mark && mark->kind == MARK_MANAGER) {
		pending->mark.kind = MARK_MANAGER;
		pending->mark.self = !!(kind & EXECUTABLE_MANAGER) && !pending->helper;
	} else if (kind & EXECUTABLE_MANAGER) {
		pending->mark.kind = MARK_MANAGER;
		pending->mark.self = 1;
	}
	return 0;
}

/*
 * Called once for each exec, before any file of it is checked. What an exec that failed left behind must not pass for a part of the next one,
 * whose linux_binprm may well have the same address.
 */
SEC("lsm/bprm_creds_for_exec")
int BPF_PROG(begin_exec, struct linux_binprm *program)
{
	struct pending *pending = bpf_task_storage_get(&pendings, self(), 0, 0);

	if (pending)
		pending->program = 0;
	return 0;
}

SEC("lsm/bprm_check_security")
int BPF_PROG(check_exec, struct linux_binprm *program)
{
	struct task_struct *task = self();
	struct mark *mark = mark_of(task);
	struct pending *pending = bpf_task_storage_get(&pendings, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct workload *workload = 0;
	struct question question = {};
	struct file *file = program->file;
	struct inode *inode = BPF_CORE_READ(file, f_path.dentry, d_inode);
	__u32 slot = 0;

	if (!pending)
		return -ENOMEM;
	if (pending->program != (__u64)program) {
		pending->program = (__u64)program;
		pending->helper = 0;
	}
	__builtin_memset(&pending->mark, 0, __builtin_offsetof(struct mark, path));
	pending->mark.path[0] = 0;
	pending->mark.device = BPF_CORE_READ(inode, i_sb, s_dev);
	pending->mark.inode = BPF_CORE_READ(inode, i_ino);
	pending->mark.object = (__u64)inode;

	if (mark && mark->kind == MARK_WORKLOAD) {
		workload = workload_of(mark);
		slot = mark->slot;
		if (!workload)
			return refuse(mark, EVENT_EXECUTE, DETAIL_EXEC);
		if (mark->standing >> 32 != workload->epoch)
			renew(mark, workload);
	} else if (registered_slot(&slot)) {
		workload = workload_at(slot);
		if (!workload || !workload->id)
			return -EPERM;
		/* a task of another mount namespace in the workload's cgroup is not the workload */
		if (BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum) != workload->mount_namespace)
			return gate_refuses(mark, file);
		mark = &pending->outside;
		mark->kind = MARK_NONE;
		mark->standing = standing_in(workload, 0);
		mark->path[0] = 0;
		mark->workload = workload->id;
		mark->slot = slot;
	} else {
		return gate_exec(mark, pending, program);
	}
	pending->mark.kind = MARK_WORKLOAD;
	pending->mark.standing = standing_in(workload, 0);
	pending->mark.slot = slot;
	pending->mark.workload = workload->id;
	question.where.mnt = (__u64)file->f_path.mnt;
	question.where.dentry = (__u64)file->f_path.dentry;
	question.inode = (__u64)inode;
	question.ask = ASK_EXECUTE;
	question.detail = DETAIL_EXEC;
	if (judge(mark, workload, &question, &pending->mark))
		return -EACCES;
	/* A tracer taken before the exec (PTRACE_TRACEME) must not come to rule a source with rights of its own. */
	if (task->ptrace && (__u32)pending->mark.standing) {
		struct mark *tracer = bpf_task_storage_get(&marks, task->parent, 0, 0);

		if (!tracer || tracer->kind != MARK_WORKLOAD || tracer->workload != workload->id ||
		    source_now(tracer, workload) != (__u32)pending->mark.standing)
			return refuse(mark, EVENT_PTRACE, DETAIL_EXEC);
	}
	return 0;
}

SEC("lsm/bprm_committing_creds")
int BPF_PROG(commit_exec, struct linux_binprm *program)
{
	struct task_struct *task = self();
	struct pending *pending = bpf_task_storage_get(&pendings, task, 0, 0);
	struct mark *mark = mark_of(task);

	if (!pending || pending->program != (__u64)program)
		return 0;
	if (pending->mark.kind == MARK_NONE) {
		if (mark)
			bpf_task_storage_delete(&marks, task);
		return 0;
	}
	if (!mark)
		mark = bpf_task_storage_get(&marks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mark) {
		/* Past the point where exec can be refused: the program must not run unmarked. */
		bpf_send_signal(9);
		return 0;
	}
	bpf_probe_read_kernel(mark, sizeof(*mark), &pending->mark);
	pending->program = 0;
	return 0;
}

SEC("lsm/task_alloc")
int BPF_PROG(inherit, struct task_struct *child, unsigned long clone_flags)
{
	struct task_struct *task = self();
	struct mark *mark = mark_of(task), *copy;

	if (!mark) /* a thread of a manager that was running before us is known by its leader's mark */
		mark = bpf_task_storage_get(&marks, task->group_leader, 0, 0);
	if (!mark || mark->kind == MARK_NONE)
		return 0;
	copy = bpf_task_storage_get(&marks, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!copy)
		return -ENOMEM;
	bpf_probe_read_kernel(copy, sizeof(*copy), mark);
	return 0;
}

/* ---- executable mappings ---- */
static __always_inline int on_private_mount(struct file *file)
{
	struct mount *mount = mount_of(BPF_CORE_READ(file, f_path.mnt));

	/* MNT_NS_INTERNAL, see locate(); memfds stand on such a mount too, but on the kernel's own, and are no backing files */
	return (__s64)BPF_CORE_READ(mount, mnt_ns) == -EINVAL && !(BPF_CORE_READ(mount, mnt.mnt_sb, s_flags) & SB_KERNMOUNT);
}

static __always_inline int map_executable(struct file *file, __u32 detail)
{
	struct mark *mark = mark_of(self());
	struct workload *workload;
	struct question question = {};
	struct dentry *dentry;
	struct inode *inode;

	if (!mark || mark->kind == MARK_NONE)
		return 0;
	inode = BPF_CORE_READ(file, f_inode);
	if (mark->kind == MARK_MANAGER) {
		struct gate *g = the_gate();
		struct super_block *super = BPF_CORE_READ(inode, i_sb);

		/* a host that chooses a helper's environment must not choose its libraries */
		if (!g || (g->mode == GATE_SEALED && BPF_CORE_READ(super, s_dev) != g->root_device &&
			   !(BPF_CORE_READ(super, s_flags) & SB_KERNMOUNT)))
			return gate_refuses(mark, file);
		return 0;
	}
	workload = workload_of(mark);
	if (!workload)
		return -EACCES;
	if (!(workload->flags & RULES_PATH))
		return 0;
	if (mark->standing >> 32 != workload->epoch)
		renew(mark, workload);
	question.where.mnt = (__u64)BPF_CORE_READ(file, f_path.mnt);
	question.where.dentry = (__u64)BPF_CORE_READ(file, f_path.dentry);
	/* Not by FMODE_BACKING, whose bit differs between 6.12 releases: only a backing file stands on a layer's private mount. */
	if (bpf_core_type_exists(struct backing_file) && on_private_mount(file)) {
		struct backing_file *backing = (struct backing_file *)file;

		question.where.mnt = (__u64)BPF_CORE_READ(backing, user_path.mnt);
		question.where.dentry = (__u64)BPF_CORE_READ(backing, user_path.dentry);
	}
	/* of the name's inode, not the layer's: what the exec had before it */
	dentry = (struct dentry *)question.where.dentry;
	inode = BPF_CORE_READ(dentry, d_inode);
	/* its own program was judged when it was executed */
	if ((__u64)inode == mark->object && BPF_CORE_READ(inode, i_ino) == mark->inode &&
	    BPF_CORE_READ(inode, i_sb, s_dev) == mark->device)
		return 0;
	question.inode = (__u64)inode;
	question.ask = ASK_MAP;
	question.detail = detail;
	return judge(mark, workload, &question, 0) ? -EACCES : 0;
}

SEC("lsm/mmap_file")
int BPF_PROG(check_mmap, struct file *file, unsigned long requested, unsigned long protection, unsigned long flags)
{
	if (!file || !((requested | protection) & PROTECT_EXEC))
		return 0;
	return map_executable(file, DETAIL_MMAP);
}

SEC("lsm/file_mprotect")
int BPF_PROG(check_mprotect, struct vm_area_struct *area, unsigned long requested, unsigned long protection)
{
	struct file *file;

	if (!((requested | protection) & PROTECT_EXEC))
		return 0;
	file = BPF_CORE_READ(area, vm_file);
	return file ? map_executable(file, DETAIL_MPROTECT) : 0;
}

/* ---- files ---- */
static __always_inline int check_file(struct file *file, __u32 detail)
{
	struct mark *mark;
	struct workload *workload;
	struct question question = {};
	unsigned int mode;
	int state = armed(&mark, &workload);

	if (state <= 0)
		return state;
	if (!(workload->flags & RULES_PATH))
		return 0;
	if (file->f_flags & FLAG_EXEC)
		return 0; /* bprm_check_security judges it */
	mode = file->f_mode;
	/*
	 * overlayfs opening a layer for itself; the workload's own open was judged before. Since backing files exist (6.5) such an open
	 * stands on a private mount, which locate() knows; before, only this bit tells it, and it kept its place all that time.
	 */
	if (!bpf_core_type_exists(struct backing_file) && (mode & MODE_INTERNAL))
		return 0;
	if (mode & MODE_READ)
		question.ask |= ASK_READ;
	if ((mode & MODE_WRITE) || (file->f_flags & FLAG_TRUNC))
		question.ask |= ASK_WRITE;
	if (!question.ask)
		question.ask = ASK_READ; /* O_ACCMODE 3: ioctl only; no less than reading */
	ask_about(&question, file->f_path.mnt, file->f_path.dentry);
	question.inode = (__u64)file->f_inode;
	question.detail = detail;
	return judge(mark, workload, &question, 0) ? -EACCES : 0;
}

SEC("lsm/file_open")
int BPF_PROG(check_open, struct file *file)
{
	return check_file(file, DETAIL_OPEN);
}

static __always_inline int check_write(struct vfsmount *mnt, struct dentry *dentry, __u32 detail)
{
	struct mark *mark;
	struct workload *workload;
	struct question question = {};
	int state = armed(&mark, &workload);

	if (state <= 0)
		return state;
	if (!(workload->flags & RULES_PATH))
		return 0;
	ask_about(&question, mnt, dentry);
	question.inode = (__u64)BPF_CORE_READ(dentry, d_inode);
	question.ask = ASK_WRITE;
	question.detail = detail;
	return judge(mark, workload, &question, 0) ? -EACCES : 0;
}

SEC("lsm/path_truncate")
int BPF_PROG(check_truncate, const struct path *path)
{
	return check_write(path->mnt, path->dentry, DETAIL_TRUNCATE);
}

SEC("lsm/path_chmod")
int BPF_PROG(check_chmod, const struct path *path, unsigned short mode)
{
	return check_write(path->mnt, path->dentry, DETAIL_CHMOD);
}

SEC("lsm/path_chown")
int BPF_PROG(check_chown, const struct path *path)
{
	return check_write(path->mnt, path->dentry, DETAIL_CHOWN);
}

SEC("lsm/path_unlink")
int BPF_PROG(check_unlink, const struct path *directory, struct dentry *dentry)
{
	return check_write(directory->mnt, dentry, DETAIL_UNLINK);
}

SEC("lsm/path_rmdir")
int BPF_PROG(check_rmdir, const struct path *directory, struct dentry *dentry)
{
	return check_write(directory->mnt, dentry, DETAIL_RMDIR);
}

SEC("lsm/path_mkdir")
int BPF_PROG(check_mkdir, const struct path *directory, struct dentry *dentry)
{
	return check_write(directory->mnt, dentry, DETAIL_MKDIR);
}

SEC("lsm/path_symlink")
int BPF_PROG(check_symlink, const struct path *directory, struct dentry *dentry)
{
	return check_write(directory->mnt, dentry, DETAIL_SYMLINK);
}

/* ---- a second name: link and rename ---- */
struct widening {
	struct table *table;
	__u32 base;
	__u32 old_class;
	__u32 new_class;
	__u32 old_process;
	__u32 new_process;
	__u32 sources;
	__u32 found;
};

/* A denial of one source (any bit pair = deny) under the old name that the new one does not have. */
static __always_inline __u64 denials(__u64 row)
{
	return (row >> 1) & 0x5555;
}

static long widens(__u32 source, void *data)
{
	struct widening *widening = data;
	struct table *table = widening->table;
	__u32 base = widening->base;
	__u64 old, new;

	if (source >= widening->sources)
		return 1;
	/* of a row of the file automaton only READ and WRITE count (bits 8 to 15), of the other only EXECUTE and MAP */
	old = (denials(row_of(table, base, widening->old_class, source)) & 0x5500) |
	      (denials(row_of(table, base, widening->old_process, source)) & 0x0055);
	new = (denials(row_of(table, base, widening->new_class, source)) & 0x5500) |
	      (denials(row_of(table, base, widening->new_process, source)) & 0x0055);

	if (old & ~new) {
		widening->found = 1;
		return 1;
	}
	return 0;
}


__noinline int name_classes(struct workload *workload, struct scratch *scratch, int new, int directory)
{
	struct name *name;
	struct table *table;
	struct lookup lookup = {};

	if (!workload || !scratch)
		return -EACCES;
	name = new ? &scratch->new : &scratch->old;
	table = table_of(workload);
	if (!table)
		return -EACCES;
	name->where.mount_namespace = workload->mount_namespace;
	if (locate(scratch, &name->where) != PLACE_KNOWN)
		return -EACCES;
	name->known = 1;
	lookup.base = workload->table;
	lookup.start = name->where.start;
	lookup.mode = FILE_RULES;
	name->file = classify(table, scratch, &lookup);
	lookup.mode = PROCESS_RULES;
	name->process = classify(table, scratch, &lookup);
	if (name->file == OUTPUT_FAILED || name->process == OUTPUT_FAILED)
		return -EACCES;
	if (directory) {
		lookup.mode = FILE_RULES | BELOW;
		name->below_file = classify(table, scratch, &lookup);
		name->file_state = lookup.state;
		lookup.mode = PROCESS_RULES | BELOW;
		name->below_process = classify(table, scratch, &lookup);
		name->process_state = lookup.state;
		if (name->below_file == OUTPUT_FAILED || name->below_process == OUTPUT_FAILED)
			return -EACCES;
	}
	return 0;
}

__noinline int tell_names(struct mark *mark, struct scratch *scratch, struct report *report)
{
	struct event *event = event_begin(self());

	if (!event || !scratch || !report) {
		count(COUNTER_LOST);
		return 0;
	}
	report->operation = EVENT_WRITE;
	report->flags = EVENT_OWNER | (scratch->old.known ? EVENT_PATH_KNOWN : 0);
	event_fill(event, mark, report);
	if (locate(scratch, &scratch->old.where) == PLACE_KNOWN)
		event_path(event, scratch, scratch->old.where.start, 0);
	if (locate(scratch, &scratch->new.where) == PLACE_KNOWN)
		event_path(event, scratch, scratch->new.where.start, 1);
	event_send(event);
	return 0;
}

/*
 * A new name for an object: both names must be writable, and no source may come to more under the new one than it
 * had under the old. For a directory, the same for everything below: it is so when both names leave the automaton in the same
 * state, or when nothing below the old name is denied to anyone and everything below the new one may be written.
 */
__noinline int second_name(struct mark *mark, struct workload *workload, struct scratch *scratch, __u32 detail)
{
	struct table *table;
	struct widening widening = {};
	struct report report = {.verdict = VERDICT_DENY, .detail = detail, .start = PATH_BUFFER};
	struct dentry *dentry;
	struct inode *inode;
	__u32 directory, verdict, owner, taken;
	struct name *old, *new;
	__u16 mode;

	if (!mark || !workload || !scratch)
		return -EACCES;
	old = &scratch->old;
	new = &scratch->new;
	old->known = 0;
	old->where.reached = 0;
	new->where.reached = 0;
	report.workload = workload->id;
	dentry = (struct dentry *)old->where.dentry;
	inode = BPF_CORE_READ(dentry, d_inode);
	mode = BPF_CORE_READ(inode, i_mode);
	directory = (mode & INODE_TYPE) == INODE_DIRECTORY;
	owner = owner_of((__u64)inode);
	table = table_of(workload);
	if (!table || name_classes(workload, scratch, 0, directory) || name_classes(workload, scratch, 1, directory))
		goto denied;
	verdict = verdict_of(row_of(table, workload->table, class_of(old->file), (__u32)mark->standing), OP_WRITE, owner);
	/* under the new name the object keeps its owner; what is replaced there may have another */
	verdict = worse(verdict, verdict_of(row_of(table, workload->table, class_of(new->file), (__u32)mark->standing), OP_WRITE, owner));
	dentry = (struct dentry *)new->where.dentry;
	inode = BPF_CORE_READ(dentry, d_inode);
	if (inode) {
		taken = owner_of((__u64)inode);
		verdict = worse(verdict, verdict_of(row_of(table, workload->table, class_of(new->file), (__u32)mark->standing), OP_WRITE, taken));
	}
	if (verdict >= VERDICT_DENY)
		goto denied;
	widening.table = table;
	widening.base = workload->table;
	widening.old_class = class_of(old->file);
	widening.new_class = class_of(new->file);
	widening.old_process = class_of(old->process);
	widening.new_process = class_of(new->process);
	widening.sources = word_at(table, workload->table + 6);
	if (widening.sources > MAX_SOURCES)
		goto denied;
	/*
	 * A constant count. The kernel's inlined bpf_loop compares all 64 bits of it; of a number loaded from the table the compiler leaves
	 * the upper half as it was, and then there is no loop at all.
	 */
	bpf_loop(MAX_SOURCES, widens, &widening, 0);
	if (widening.found)
		goto denied;
	if (directory) {
		if (old->file_state != new->file_state &&
		    (guarded(old->below_file, 1) ||
		     verdict_of(row_of(table, workload->table, below_of(new->below_file), (__u32)mark->standing), OP_WRITE, owner) >= VERDICT_DENY ||
		     verdict_of(row_of(table, workload->table, below_of(new->below_file), (__u32)mark->standing), OP_WRITE, !owner) >= VERDICT_DENY))
			goto denied;
		if (old->process_state != new->process_state && guarded(old->below_process, 2))
			goto denied;
	}
	if (verdict == VERDICT_AUDIT) {
		report.verdict = VERDICT_AUDIT;
		tell_names(mark, scratch, &report);
	}
	return 0;
denied:
	tell_names(mark, scratch, &report);
	return -EACCES;
}

SEC("lsm/path_link")
int BPF_PROG(check_link, struct dentry *old_dentry, const struct path *new_directory, struct dentry *new_dentry)
{
	struct mark *mark;
	struct workload *workload;
	struct scratch *scratch;
	int state = armed(&mark, &workload);

	if (state <= 0)
		return state;
	if (!(workload->flags & RULES_PATH))
		return 0;
	scratch = scratch_of(self());
	if (!scratch)
		return -EACCES;
	/* the hook has no mount for the old name; a link across mounts ends in EXDEV before it */
	scratch->old.where.mnt = (__u64)new_directory->mnt;
	scratch->old.where.dentry = (__u64)old_dentry;
	scratch->new.where.mnt = (__u64)new_directory->mnt;
	scratch->new.where.dentry = (__u64)new_dentry;
	return second_name(mark, workload, scratch, DETAIL_LINK) ? -EACCES : 0;
}

/* Since Linux 5.19 the hook is called once for RENAME_EXCHANGE too, where both objects get a second name. */
SEC("lsm/path_rename")
int BPF_PROG(check_rename, const struct path *old_directory, struct dentry *old_dentry, const struct path *new_directory,
	     struct dentry *new_dentry, unsigned int flags)
{
	struct mark *mark;
	struct workload *workload;
	struct scratch *scratch;
	int state = armed(&mark, &workload);

	if (state <= 0)
		return state;
	if (!(workload->flags & RULES_PATH))
		return 0;
	scratch = scratch_of(self());
	if (!scratch)
		return -EACCES;
	scratch->old.where.mnt = (__u64)old_directory->mnt;
	scratch->old.where.dentry = (__u64)old_dentry;
	scratch->new.where.mnt = (__u64)new_directory->mnt;
	scratch->new.where.dentry = (__u64)new_dentry;
	if (second_name(mark, workload, scratch, DETAIL_RENAME))
		return -EACCES;
	if (!(flags & EXCHANGE))
		return 0;
	scratch->old.where.mnt = (__u64)new_directory->mnt;
	scratch->old.where.dentry = (__u64)new_dentry;
	scratch->new.where.mnt = (__u64)old_directory->mnt;
	scratch->new.where.dentry = (__u64)old_dentry;
	return second_name(mark, workload, scratch, DETAIL_RENAME) ? -EACCES : 0;
}

/* ---- what would change the meaning of a path ---- */
static __always_inline int refuse_if_path_rules(__u32 operation, __u32 detail)
{
	struct mark *mark;
	struct workload *workload;
	int state = armed(&mark, &workload);

	if (state <= 0)
		return state;
	if (!(workload->flags & RULES_PATH))
		return 0;
	return refuse(mark, operation, detail);
}

SEC("lsm/path_mknod")
int BPF_PROG(check_mknod, const struct path *directory, struct dentry *dentry, unsigned short mode)
{
	/* a disk has every file on it, under names that no path rule knows */
	if ((mode & INODE_TYPE) == INODE_BLOCK) {
		int refused = refuse_if_path_rules(EVENT_WRITE, DETAIL_CREATE);

		if (refused)
			return refused;
	}
	return check_write(directory->mnt, dentry, DETAIL_CREATE);
}

static __always_inline int is_guarded_mount(const struct vfsmount *mnt)
{
	__u32 id = BPF_CORE_READ(mount_of(mnt), mnt_id);

	return bpf_map_lookup_elem(&guarded_mounts, &id) != 0;
}

static __always_inline int holds_pins(const struct vfsmount *mnt)
{
	struct gate *g = the_gate();

	return !g || (g->mode == GATE_SEALED && g->pin_device && BPF_CORE_READ(mnt, mnt_sb, s_dev) == g->pin_device);
}

/*
 * A mount over the pins in another namespace hides them from nobody outside of it, unless it propagates back. Service managers make such
 * mounts for units that protect the kernel's tunables.
 */
static __always_inline int covers_pins(const struct path *target)
{
	return holds_pins(target->mnt) && (in_first_namespace() || (BPF_CORE_READ(target, mnt, mnt_flags) & SHARED));
}

/*
 * A container without a mount namespace has its mounts made in the guest's own, where they could cover what services run and read. So a
 * manager's lineage mounts nothing there on the measured root, but for listed mount points (Kata's /etc/resolv.conf).
 */
static __always_inline int covers_measured_root(struct mark *mark, const struct path *target)
{
	struct gate *g = the_gate();
	struct dentry *dentry = BPF_CORE_READ(target, dentry);

	if (!mark || mark->kind != MARK_MANAGER)
		return 0;
	if (!g)
		return 1;
	if (g->mode != GATE_SEALED || !in_first_namespace() || BPF_CORE_READ(dentry, d_sb, s_dev) != g->root_device)
		return 0;
	return !(executable_kind(BPF_CORE_READ(dentry, d_inode)) & MOUNT_POINT);
}

SEC("lsm/sb_mount")
int BPF_PROG(check_mount, const char *device, const struct path *path, const char *type, unsigned long flags)
{
	int whole = (flags & REMOUNT) && !(flags & BIND) && holds_pins(path->mnt);

	/* of a mount that is moved this hook is not told; in other namespaces it is not the one that keeps the pins */
	if (sealed() && (whole || covers_pins(path) || ((flags & MOVE) && in_first_namespace())))
		return refuse(mark_of(self()), EVENT_PIN, DETAIL_MOUNT);
	/* runc makes the bind mount of itself read-only before it runs from there */
	if ((flags & READ_ONLY_AGAIN) != READ_ONLY_AGAIN && covers_measured_root(mark_of(self()), path))
		return refuse(mark_of(self()), EVENT_MOUNT, DETAIL_MOUNT);
	return refuse_if_path_rules(EVENT_MOUNT, DETAIL_MOUNT);
}

SEC("lsm/sb_umount")
int BPF_PROG(check_umount, struct vfsmount *mnt, int flags)
{
	if (sealed() && is_guarded_mount(mnt))
		return refuse(mark_of(self()), EVENT_PIN, DETAIL_UMOUNT);
	return refuse_if_path_rules(EVENT_MOUNT, DETAIL_UMOUNT);
}

SEC("lsm/sb_pivotroot")
int BPF_PROG(check_pivot_root, const struct path *old_path, const struct path *new_path)
{
	return refuse_if_path_rules(EVENT_MOUNT, DETAIL_PIVOT_ROOT);
}

SEC("lsm/move_mount")
int BPF_PROG(check_move_mount, const struct path *from, const struct path *to)
{
	if (sealed() && (is_guarded_mount(from->mnt) || covers_pins(to)))
		return refuse(mark_of(self()), EVENT_PIN, DETAIL_MOVE_MOUNT);
	if (covers_measured_root(mark_of(self()), to))
		return refuse(mark_of(self()), EVENT_MOUNT, DETAIL_MOVE_MOUNT);
	return refuse_if_path_rules(EVENT_MOUNT, DETAIL_MOVE_MOUNT);
}

SEC("lsm/path_chroot")
int BPF_PROG(check_chroot, const struct path *path)
{
	return refuse_if_path_rules(EVENT_CHROOT, DETAIL_CHROOT);
}

SEC("lsm/userns_create")
int BPF_PROG(check_user_namespace, const struct cred *cred)
{
	return refuse_if_path_rules(EVENT_NAMESPACE, DETAIL_USER_NAMESPACE);
}

/* ---- the network of workloads whose packets are filtered ---- */
/*
 * nftables knows a workload by the cgroup of its sockets and by their network namespace. So a workload with network rules makes sockets
 * only there, of families that the packet filter sees or that reach no network, and it has neither of the two capabilities by which the filter is
 * changed or passed by.
 */

/* 1: the current task is armed for a workload with network rules, 0: it is not, negative: for one that is gone. */
static __always_inline int filtered(struct mark **mark, struct workload **workload)
{
	*mark = mark_of(self());
	if (!*mark || (*mark)->kind != MARK_WORKLOAD)
		return 0;
	*workload = workload_of(*mark);
	if (!*workload)
		return -EPERM;
	return (*workload)->network_namespace != 0;
}

/* Whether a packet filter of ours holds somebody in the current task's network namespace. */
struct neighbours {
	__u32 network_namespace;
	__u32 found;
};

static long look_for_neighbour(__u32 slot, void *data)
{
	struct neighbours *neighbours = data;
	struct workload *workload = workload_at(slot);

	if (!workload || !workload->id || workload->network_namespace != neighbours->network_namespace)
		return 0;
	neighbours->found = 1;
	return 1;
}

static __always_inline int has_filtered_neighbour(void)
{
	struct neighbours neighbours = {};

	neighbours.network_namespace = BPF_CORE_READ(self(), nsproxy, net_ns, ns.inum);
	bpf_loop(MAX_WORKLOADS, look_for_neighbour, &neighbours, 0);
	return neighbours.found;
}

/*
 * A workload without network rules may have its rights over the network, but not over the filter that holds another one in the same namespace. That
 * is looked for at each use: it is a rare one, and neighbours come and go.
 */
SEC("lsm/capable")
int BPF_PROG(check_capable, const struct cred *cred, struct user_namespace *namespace, int capability, unsigned int options)
{
	struct mark *mark;
	struct workload *workload;
	int state;

	if (capability != NET_ADMIN && capability != NET_RAW)
		return 0;
	state = filtered(&mark, &workload);
	if (state < 0)
		return state;
	if (!mark || mark->kind != MARK_WORKLOAD || (!state && (capability == NET_RAW || !has_filtered_neighbour())))
		return 0;
	if (options & ONLY_ASKING)
		return -EPERM; /* the answer decides how much is shown, not whether; the kernel's own audit is silent too */
	return refuse(mark, EVENT_NETWORK, capability == NET_ADMIN ? DETAIL_NET_ADMIN : DETAIL_NET_RAW);
}

static __always_inline int is_network_family(int family)
{
	return family == FAMILY_INET || family == FAMILY_INET6;
}

/* The others carry no packets that nftables' families ip and ip6 see; those that reach nobody outside may be had. */
static __always_inline int is_local_family(int family)
{
	return family == FAMILY_UNIX || family == FAMILY_NETLINK || family == FAMILY_CRYPTO;
}

static __always_inline int in_own_cgroup(struct workload *workload)
{
	for (int level = 0; level < 32; level++) {
		__u64 id = bpf_get_current_ancestor_cgroup_id(level);

		if (!id)
			return 0;
		if (id == workload->cgroup)
			return 1;
	}
	return 0;
}

SEC("lsm/socket_create")
int BPF_PROG(check_socket, int family, int type, int protocol, int kernel)
{
	struct mark *mark;
	struct workload *workload;
	int state;

	if (is_local_family(family) || kernel)
		return 0;
	state = filtered(&mark, &workload);
	if (state <= 0)
		return state;
	/* a task that left its cgroup or its namespace has kept its mark */
	if (is_network_family(family) && protocol != PROTOCOL_SMC && in_own_cgroup(workload) &&
	    BPF_CORE_READ(self(), nsproxy, net_ns, ns.inum) == workload->network_namespace)
		return 0;
	return refuse(mark, EVENT_NETWORK, DETAIL_SOCKET);
}

/* Whether a socket was made where the workload's own are, so that its packets meet the workload's rules. */
static __always_inline int made_inside(struct workload *workload, struct socket *socket)
{
	struct sock *sock = BPF_CORE_READ(socket, sk);
	__u16 family = BPF_CORE_READ(sock, __sk_common.skc_family);
	struct cgroup *cgroup;
	struct cgroup_subsys_state *above;

	if (is_local_family(family))
		return 1;
	if (!is_network_family(family) || BPF_CORE_READ(sock, sk_type) == TYPE_RAW ||
	    BPF_CORE_READ(sock, __sk_common.skc_net.net, ns.inum) != workload->network_namespace)
		return 0;
	cgroup = BPF_CORE_READ(sock, sk_cgrp_data.cgroup);
	for (int level = 0; level < 32 && cgroup; level++) {
		if (BPF_CORE_READ(cgroup, kn, id) == workload->cgroup)
			return 1;
		above = BPF_CORE_READ(cgroup, self.parent);
		if (!above)
			return 0;
		cgroup = (void *)above - bpf_core_field_offset(struct cgroup, self);
	}
	return 0;
}

static __always_inline int check_received_socket(struct file *file)
{
	struct mark *mark;
	struct workload *workload;
	int state;

	if ((BPF_CORE_READ(file, f_inode, i_mode) & INODE_TYPE) != INODE_SOCKET)
		return 0;
	state = filtered(&mark, &workload);
	if (state <= 0)
		return state;
	return made_inside(workload, file->private_data) ? 0 : refuse(mark, EVENT_NETWORK, DETAIL_RECEIVE);
}

SEC("lsm/file_receive")
int BPF_PROG(check_receive, struct file *file)
{
	int refused = check_received_socket(file);

	return refused ? refused : check_file(file, DETAIL_RECEIVE);
}

/*
 * A file system of the network talks by sockets of the kernel, which belong to no cgroup. What stands on a device, or may be mounted in anybody's
 * user namespace, is none. Zero leaves the parameter to the file system.
 */
SEC("lsm/fs_context_parse_param")
int BPF_PROG(check_file_system, struct fs_context *context, struct fs_parameter *parameter)
{
	struct mark *mark;
	struct workload *workload;
	int state;

	state = filtered(&mark, &workload);
	if (state <= 0)
		return state;
	if (BPF_CORE_READ_BITFIELD_PROBED(context, purpose) != FS_CONTEXT_FOR_MOUNT ||
	    (BPF_CORE_READ(context, fs_type, fs_flags) & (ON_DEVICE | BY_ANYBODY)))
		return 0;
	return refuse(mark, EVENT_MOUNT, DETAIL_FILE_SYSTEM);
}

/* ---- other tasks ---- */
/*
 * Only tasks of the same workload, and among them none whose source holds rights that this one's does not. Not inlined: where the compiler knows
 * the source to be 0 it returns that for 0, of which the verifier knows nothing.
 */
static __noinline int may_touch(struct mark *mark, struct mark *other, int control)
{
	struct workload *workload;
	__u32 source;

	if (!other || other->kind != MARK_WORKLOAD || other->workload != mark->workload)
		return 0;
	if (!control)
		return 1;
	workload = workload_of(mark);
	if (!workload)
		return 0;
	if (!(workload->flags & RULES_PATH))
		return 1; /* no source has rights of its own */
	source = source_now(other, workload);
	/* two that cannot be told are not the same one */
	return source == 0 || (source != NO_SOURCE && source == source_now(mark, workload));
}

/* The agent, for a manager's lineage: a host that has a manager start something must not reach it that way. */
static __always_inline int is_agent_for_manager(struct mark *mark, struct task_struct *target)
{
	__u32 zero = 0;
	struct agent *a;

	if (!mark || mark->kind != MARK_MANAGER || !sealed())
		return 0;
	a = bpf_map_lookup_elem(&agent, &zero);
	return !a || target->tgid == a->pid;
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(check_ptrace, struct task_struct *child, unsigned int mode)
{
	struct mark *mark = mark_of(self());

	if (is_agent_for_manager(mark, child) && (mode & PTRACE_ATTACH_ACCESS))
		return refuse(mark, EVENT_PTRACE, DETAIL_PTRACE);
	if (!mark || mark->kind != MARK_WORKLOAD)
		return 0;
	if (may_touch(mark, mark_of(child), 1))
		return 0;
	return refuse(mark, EVENT_PTRACE, DETAIL_PTRACE);
}

SEC("lsm/ptrace_traceme")
int BPF_PROG(check_traceme, struct task_struct *parent)
{
	struct mark *mark = mark_of(self()), *other = mark_of(parent);

	if (!mark || mark->kind != MARK_WORKLOAD)
		return 0;
	if (other && other->kind == MARK_WORKLOAD && may_touch(other, mark, 1))
		return 0;
	return refuse(mark, EVENT_PTRACE, DETAIL_PTRACE);
}

SEC("lsm/task_kill")
int BPF_PROG(check_kill, struct task_struct *target, void *information, int signal)
{
	struct mark *mark = mark_of(self());

	if (signal && is_agent_for_manager(mark, target))
		return refuse(mark, EVENT_SIGNAL, DETAIL_KILL);
	if (!mark || mark->kind != MARK_WORKLOAD || signal == 0)
		return 0;
	if (may_touch(mark, mark_of(target), 0))
		return 0;
	return refuse(mark, EVENT_SIGNAL, DETAIL_KILL);
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(check_connect, struct sock *socket, struct sock *other)
{
	struct mark *mark = mark_of(self());
	__u32 zero = 0;
	struct agent *a;

	if (!mark || mark->kind != MARK_WORKLOAD)
		return 0;
	a = bpf_map_lookup_elem(&agent, &zero);
	if (!a || BPF_CORE_READ(other, sk_peer_pid, numbers[0].nr) == a->pid)
		return refuse(mark, EVENT_CONNECT, DETAIL_CONNECT);
	return 0;
}

/* ---- the kernel itself, and our own pins ---- */
SEC("lsm/bpf")
int BPF_PROG(check_bpf, int command)
{
	struct mark *mark = mark_of(self());

	if (!mark || mark->kind != MARK_WORKLOAD)
		return 0;
	return refuse(mark, EVENT_BPF, DETAIL_BPF);
}

SEC("lsm/bpf_map")
int BPF_PROG(check_bpf_map, struct bpf_map *map, unsigned int mode)
{
	struct mark *mark = mark_of(self());
	__u32 id;

	if (!mark || mark->kind == MARK_NONE)
		return 0;
	id = map->id;
	if (!bpf_map_lookup_elem(&guarded_maps, &id))
		return 0;
	return refuse(mark, EVENT_BPF, DETAIL_BPF);
}

static __always_inline int refuse_module(void)
{
	struct mark *mark = mark_of(self());

	if (!mark || mark->kind != MARK_WORKLOAD)
		return 0;
	return refuse(mark, EVENT_MODULE, DETAIL_LOAD);
}

SEC("lsm/kernel_read_file")
int BPF_PROG(check_read_file, struct file *file, int id)
{
	return refuse_module();
}

SEC("lsm/kernel_load_data")
int BPF_PROG(check_load_data, int id)
{
	return refuse_module();
}

static __always_inline int is_pin_directory(const struct inode *inode)
{
	struct gate *g = the_gate();

	if (!g || g->mode != GATE_SEALED || !g->pin_device || !inode)
		return 0;
	return BPF_CORE_READ(inode, i_ino) == g->pin_directory && BPF_CORE_READ(inode, i_sb, s_dev) == g->pin_device;
}

static __always_inline int guard_entry(const struct inode *directory, const struct dentry *dentry)
{
	if (is_pin_directory(directory) || (dentry && is_pin_directory(BPF_CORE_READ(dentry, d_inode))))
		return refuse(mark_of(self()), EVENT_PIN, DETAIL_UNPIN);
	return 0;
}

SEC("lsm/inode_unlink")
int BPF_PROG(guard_unlink, struct inode *directory, struct dentry *dentry)
{
	return guard_entry(directory, dentry);
}

SEC("lsm/inode_rmdir")
int BPF_PROG(guard_rmdir, struct inode *directory, struct dentry *dentry)
{
	return guard_entry(directory, dentry);
}

SEC("lsm/inode_rename")
int BPF_PROG(guard_rename, struct inode *old_directory, struct dentry *old_dentry, struct inode *new_directory, struct dentry *new_dentry)
{
	int refused = guard_entry(old_directory, old_dentry);

	return refused ? refused : guard_entry(new_directory, new_dentry);
}

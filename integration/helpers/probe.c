/*
 * The program that tests run inside containers to see what busybox cannot show, and on the host as a seccomp agent.
 * Linked statically so that it runs in any root file system.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int result(long r)
{
	if (r < 0)
		printf("errno %d\n", errno);
	else
		printf("ok\n");
	return 0;
}

/* Every open descriptor with its target, one a line; the one used for looking is left out. */
static int fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	char target[4096];

	if (!d)
		return perror("/proc/self/fd"), 1;
	while ((e = readdir(d))) {
		if (e->d_name[0] == '.' || atoi(e->d_name) == dirfd(d))
			continue;
		ssize_t n = readlinkat(dirfd(d), e->d_name, target, sizeof target - 1);
		target[n < 0 ? 0 : n] = 0;
		printf("%s %s\n", e->d_name, target);
	}
	return 0;
}

static int keyring(void)
{
	char text[512];
	/* KEYCTL_DESCRIBE of KEY_SPEC_SESSION_KEYRING */
	long n = syscall(SYS_keyctl, 6, -3, text, sizeof text);
	if (n < 0)
		return result(n);
	long id = syscall(SYS_keyctl, 0, -3, 0);
	printf("%ld %s\n", id, text);
	return 0;
}

static int sched(void)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} a = { 0 };
	if (syscall(SYS_sched_getattr, 0, &a, sizeof a, 0) < 0)
		return result(-1);
	printf("policy=%u nice=%d priority=%u flags=%llu\n", a.policy, a.nice, a.priority, (unsigned long long)a.flags);
	return 0;
}

static int call(const char *name)
{
	char buf[4096];
	if (!strcmp(name, "getcwd"))
		return result(syscall(SYS_getcwd, buf, sizeof buf));
	if (!strcmp(name, "mkdir"))
		return result(mkdir("/tmp/probe-made", 0777));
	if (!strcmp(name, "sync"))
		return result((sync(), 0));
	if (!strcmp(name, "sysinfo"))
		return result(syscall(SYS_sysinfo, buf));
	if (!strcmp(name, "getpriority"))
		return result(syscall(SYS_getpriority, PRIO_PROCESS, 0));
	if (!strcmp(name, "setpriority"))
		return result(syscall(SYS_setpriority, PRIO_PROCESS, 0, 5));
	if (!strcmp(name, "personality-query"))
		return result(personality(0xffffffff));
	if (!strcmp(name, "personality-set"))
		return result(personality(0x0008));
	if (!strcmp(name, "socket"))
		return result(socket(AF_INET, SOCK_DGRAM, 0));
	if (!strcmp(name, "unshare-user"))
		return result(unshare(CLONE_NEWUSER));
	if (!strcmp(name, "mknod"))
		return result(mknod("/tmp/probe-node", S_IFCHR | 0600, 0x0103));
	if (!strcmp(name, "chroot"))
		return result(chroot("/"));
	if (!strcmp(name, "setns"))
		return result(syscall(SYS_setns, -1, 0));
	fprintf(stderr, "probe: no call named %s\n", name);
	return 2;
}

/* Opens a file in the given ways: "probe open PATH r|w|rw|a". */
static int open_as(const char *path, const char *how)
{
	int flags = !strcmp(how, "r") ? O_RDONLY : !strcmp(how, "w") ? O_WRONLY : !strcmp(how, "a") ? O_WRONLY | O_APPEND : O_RDWR;
	return result(open(path, flags | O_NOCTTY | O_CLOEXEC));
}

/* "probe mmap MIB": touches that much memory. */
static int eat(size_t mib)
{
	char *p = malloc(mib << 20);
	if (!p)
		return 1;
	for (size_t i = 0; i < mib << 20; i += 4096)
		((volatile char *)p)[i] = 1;
	printf("ate %zu\n", mib);
	return 0;
}

/* Reads that much of a file from its disk, past the page cache; how long it took in milliseconds. */
static int read_disk(const char *path, size_t kib)
{
	struct timespec a, b;
	void *page = aligned_alloc(4096, 65536);
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (!page || fd < 0)
		return perror(path), 1;
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (size_t done = 0; done < kib << 10; done += 65536)
		if (pread(fd, page, 65536, done) < 0)
			return perror(path), 1;
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%ld\n", (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000);
	return 0;
}

/* Receives one seccomp listener on the socket, prints its state, and answers every call with errno 91 until closed. */
static int notify_agent(const char *where)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), fd = -1;
	char state[16384], control[CMSG_SPACE(sizeof(int))];

	strncpy(a.sun_path, where, sizeof a.sun_path - 1);
	if (bind(s, (void *)&a, sizeof a) || listen(s, 1))
		return perror(where), 1;
	printf("listening\n");
	fflush(stdout);
	int c = accept4(s, 0, 0, SOCK_CLOEXEC);
	struct iovec v = { state, sizeof state - 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(c, &m, MSG_CMSG_CLOEXEC);
	struct cmsghdr *h = n < 0 ? 0 : CMSG_FIRSTHDR(&m);
	if (!h || h->cmsg_type != SCM_RIGHTS)
		return fprintf(stderr, "probe: no descriptor came\n"), 1;
	memcpy(&fd, CMSG_DATA(h), sizeof fd);
	state[n] = 0;
	printf("state %s\n", state);
	fflush(stdout);
	close(c);
	for (;;) {
		struct seccomp_notif q = { 0 };
		struct seccomp_notif_resp r = { 0 };
		if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &q) < 0) {
			if (errno == EINTR)
				continue;
			break;
		}
		printf("call %d\n", q.data.nr);
		fflush(stdout);
		r.id = q.id;
		r.error = -91;
		if (ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &r) < 0 && errno != ENOENT)
			break;
	}
	return 0;
}

/*
 * Runs a program as on a kernel that lacks some system calls: "probe mask clone3,openat2 PROGRAM ARGS...". Two names are of
 * arguments: "setns-many" (several namespaces at once, by a pidfd), "memfd-exec" (MFD_EXEC, MFD_NOEXEC_SEAL).
 */
static int mask(char *names, char **program)
{
	static const struct {
		const char *name;
		int nr;
	} known[] = {
		{ "clone3", SYS_clone3 },
		{ "openat2", SYS_openat2 },
		{ "open_tree", SYS_open_tree },
		{ "move_mount", SYS_move_mount },
		{ "fsopen", SYS_fsopen },
		{ "fsconfig", SYS_fsconfig },
		{ "fsmount", SYS_fsmount },
		{ "mount_setattr", SYS_mount_setattr },
		{ "close_range", SYS_close_range },
		{ "pidfd_open", SYS_pidfd_open },
		{ "pidfd_send_signal", SYS_pidfd_send_signal },
		{ "faccessat2", SYS_faccessat2 },
		{ "pidfd_getfd", SYS_pidfd_getfd },
		{ "landlock_create_ruleset", SYS_landlock_create_ruleset },
		{ "kill", SYS_kill },
	};
	struct sock_filter code[64] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)) };
	struct sock_fprog filter = { .len = 1, .filter = code };

	static const struct sock_filter many[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setns, 0, 6),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_STMT(BPF_MISC | BPF_TAX, 0),
		BPF_STMT(BPF_ALU | BPF_SUB | BPF_K, 1),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_X, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	static const struct sock_filter exec[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x18, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};

	for (char *name = strtok(names, ","); name; name = strtok(0, ",")) {
		unsigned i = 0;
		if (!strcmp(name, "setns-many")) {
			memcpy(code + filter.len, many, sizeof many);
			filter.len += sizeof many / sizeof *many;
			continue;
		}
		if (!strcmp(name, "memfd-exec")) {
			memcpy(code + filter.len, exec, sizeof exec);
			filter.len += sizeof exec / sizeof *exec;
			continue;
		}
		while (i < sizeof known / sizeof *known && strcmp(known[i].name, name))
			i++;
		if (i == sizeof known / sizeof *known)
			return fprintf(stderr, "probe: no call named %s\n", name), 2;
		code[filter.len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, known[i].nr, 0, 1);
		code[filter.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS);
	}
	code[filter.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	if (geteuid() && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return perror("prctl"), 1;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter))
		return perror("seccomp"), 1;
	execvp(*program, program);
	return perror(*program), 127;
}

/* One datagram, as sd_notify(3) sends it; "\\n" in the text is a line's end. */
static int notify(const char *path, char *text)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	for (char *at; (at = strstr(text, "\\n"));) {
		*at = '\n';
		memmove(at + 1, at + 2, strlen(at + 2) + 1);
	}
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	if (sendto(fd, text, strlen(text), 0, (struct sockaddr *)&address, sizeof address) < 0)
		return perror(path), 1;
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "true"))
		return 0;
	if (!strcmp(what, "fds"))
		return fds();
	if (!strcmp(what, "keyring"))
		return keyring();
	if (!strcmp(what, "sched"))
		return sched();
	if (!strcmp(what, "personality"))
		return printf("%#x\n", personality(0xffffffff)), 0;
	if (!strcmp(what, "ioprio"))
		return printf("%#lx\n", syscall(SYS_ioprio_get, 1, 0)), 0;
	if (!strcmp(what, "affinity")) {
		cpu_set_t set;
		CPU_ZERO(&set);
		sched_getaffinity(0, sizeof set, &set);
		for (int i = 0; i < 64; i++)
			if (CPU_ISSET(i, &set))
				printf("%d ", i);
		return puts(""), 0;
	}
	if (!strcmp(what, "call") && argc > 2)
		return call(argv[2]);
	if (!strcmp(what, "open") && argc > 3)
		return open_as(argv[2], argv[3]);
	if (!strcmp(what, "eat") && argc > 2)
		return eat(strtoul(argv[2], 0, 10));
	if (!strcmp(what, "read-disk") && argc > 3)
		return read_disk(argv[2], strtoul(argv[3], 0, 10));
	if (!strcmp(what, "boottime")) {
		struct timespec t;
		clock_gettime(CLOCK_BOOTTIME, &t);
		return printf("%ld\n", (long)t.tv_sec), 0;
	}
	if (!strcmp(what, "mask") && argc > 3)
		return mask(argv[2], argv + 3);
	if (!strcmp(what, "notify") && argc > 3)
		return notify(argv[2], argv[3]);
	if (!strcmp(what, "notify-agent") && argc > 2)
		return notify_agent(argv[2]);
	fprintf(stderr, "probe: what is \"%s\"?\n", what);
	return 2;
}

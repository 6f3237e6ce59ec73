/*
 * Runs a runtime up to one of its system calls, and there lets something go wrong:
 *
 *   fault RECORD PROCESS NAME NUMBER ACTION PROGRAM ARGS...
 *
 * PROCESS is 0 for the program, 1 for the first process that it or its children made, and so on; NUMBER counts that process's
 * calls of that name from 1 (0: never). ACTION is "kill-runtime" (SIGKILL to process 0), "kill-self" (to the one that
 * calls), "kill-child" (to the one that was made last) or an errno's number, which the call then answers without being made.
 * What was called until then is written to RECORD, a line a call: "PROCESS NAME NUMBER ARGUMENT", with "!" at the end of the line of the call that went wrong.
 *
 * A process is watched until it executes something else than PROGRAM's file: hooks, helpers and the container's own program
 * are none of ours. The exit status is the program's, or 128 and the signal that ended it.
 *
 * ptrace(2), not a seccomp filter: a filter would stay with the container.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* What changes something, or hears of a change, and which argument is a path. */
#define CALLS(X)                                                                                                            \
	X(clone, -1) X(clone3, -1) X(execve, 0) X(execveat, 1) X(wait4, -1) X(waitid, -1) X(kill, -1) X(pidfd_open, -1)     \
	X(pidfd_send_signal, -1) X(pidfd_getfd, -1) X(exit_group, -1) X(setsid, -1)                                         \
	X(mount, 1) X(umount2, 0) X(pivot_root, 1) X(open_tree, 1) X(move_mount, 3) X(mount_setattr, 1) X(fsopen, 0)         \
	X(fsconfig, 2) X(fsmount, -1) X(chroot, 0) X(chdir, 0) X(fchdir, -1)                                                \
	X(unshare, -1) X(setns, -1) X(sethostname, 0) X(setdomainname, 0)                                                   \
	X(openat, 1) X(openat2, 1) X(mkdirat, 1) X(mknodat, 1) X(symlinkat, 2) X(unlinkat, 1) X(renameat, 1) X(renameat2, 1) \
	X(linkat, 1) X(fchownat, 1) X(fchmodat, 1) X(fchmod, -1) X(fchown, -1) X(ftruncate, -1) X(flock, -1) X(write, -1)   \
	X(read, -1) X(pread64, -1) X(statx, 1) X(newfstatat, 1) X(readlinkat, 1) X(getdents64, -1) X(copy_file_range, -1)    \
	X(memfd_create, 0) X(fcntl, -1) X(dup, -1) X(dup3, -1) X(pipe2, -1) X(close_range, -1)                              \
	X(socket, -1) X(socketpair, -1) X(connect, -1) X(bind, -1) X(listen, -1) X(accept4, -1) X(sendmsg, -1)              \
	X(recvmsg, -1) X(sendto, -1) X(recvfrom, -1)                                                                        \
	X(setuid, -1) X(setgid, -1) X(setresuid, -1) X(setresgid, -1) X(setgroups, -1) X(capset, -1) X(prctl, -1)            \
	X(seccomp, -1) X(prlimit64, -1) X(keyctl, -1) X(ioctl, -1) X(bpf, -1) X(setxattr, 0) X(signalfd4, -1)               \
	X(umask, -1) X(sched_setaffinity, -1) X(ioprio_set, -1) X(faccessat2, 1)

#define LEGACY(X)                                                                                                           \
	X(open, 0) X(mkdir, 0) X(rmdir, 0) X(unlink, 0) X(rename, 0) X(link, 0) X(symlink, 1) X(chmod, 0) X(chown, 0)        \
	X(lchown, 0) X(dup2, -1) X(fork, -1) X(vfork, -1) X(poll, -1) X(readlink, 0) X(access, 0) X(stat, 0) X(lstat, 0)

struct call {
	const char *name;
	int nr, path;
};

static const struct call calls[] = {
#define X(name, path) { #name, SYS_##name, path },
	CALLS(X)
#ifdef SYS_open
	LEGACY(X)
#endif
#undef X
};

struct process {
	pid_t pid;
	int counted[sizeof calls / sizeof *calls], failing;
} processes[512];

static int count;
static pid_t runtime;
static dev_t program_dev;
static ino_t program_ino;

static struct process *of(pid_t pid)
{
	for (int i = count; i--;)
		if (processes[i].pid == pid)
			return processes + i;
	if (count == sizeof processes / sizeof *processes) {
		fprintf(stderr, "fault: too many processes\n");
		exit(125);
	}
	processes[count] = (struct process){ .pid = pid };
	return processes + count++;
}

static const struct call *known(unsigned long nr)
{
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		if ((unsigned long)calls[i].nr == nr)
			return calls + i;
	return 0;
}

static void text_of(pid_t pid, unsigned long at, char *text, size_t size)
{
	struct iovec here = { text, size - 1 }, there = { (void *)at, size - 1 };
	ssize_t got;

	/* The page after the last of a mapping is none. */
	if (at % 4096 + size - 1 > 4096)
		here.iov_len = there.iov_len = 4096 - at % 4096 < size - 1 ? 4096 - at % 4096 : size - 1;
	got = process_vm_readv(pid, &here, 1, &there, 1, 0);
	text[got < 0 ? 0 : got] = 0;
	for (char *c = text; *c; c++)
		if (*c == ' ' || *c == '\n')
			*c = '?';
}

/* Makes the call that is about to be made one that is not there. */
static void skip(pid_t pid)
{
#if defined __x86_64__
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, orig_rax), -1L);
#elif defined __aarch64__
	int none = -1;
	struct iovec v = { &none, sizeof none };
	ptrace(PTRACE_SETREGSET, pid, (void *)NT_ARM_SYSTEM_CALL, &v);
#else
#error "which register has the number of a system call?"
#endif
}

static void answer(pid_t pid, long value)
{
#if defined __x86_64__
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rax), value);
#else
	struct user_regs_struct r;
	struct iovec v = { &r, sizeof r };
	ptrace(PTRACE_GETREGSET, pid, (void *)NT_PRSTATUS, &v);
	r.regs[0] = value;
	ptrace(PTRACE_SETREGSET, pid, (void *)NT_PRSTATUS, &v);
#endif
}

/*
 * Whether the process executes the runtime: the program itself, or the init of a container, whose file is a copy or lies on a
 * mount of its own and so is known by its arguments.
 */
static int executes_runtime(pid_t pid)
{
	char path[64], line[64] = "";
	FILE *arguments;
	struct stat s;

	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	if (stat(path, &s))
		return 0;
	if (!program_ino) {
		program_dev = s.st_dev;
		program_ino = s.st_ino;
	}
	if (s.st_ino == program_ino && s.st_dev == program_dev)
		return 1;
	snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
	arguments = fopen(path, "re");
	if (!arguments)
		return 0;
	size_t length = fread(line, 1, sizeof line - 1, arguments);
	fclose(arguments);
	return length >= sizeof "proa\0init" && !memcmp(line, "proa\0init", sizeof "proa\0init");
}

static pid_t victim(const char *action, pid_t self)
{
	if (!strcmp(action, "kill-self"))
		return self;
	if (!strcmp(action, "kill-child"))
		for (int i = count; i-- > 1;)
			if (processes[i].pid > 0)
				return processes[i].pid;
	return runtime;
}

int main(int argc, char **argv)
{
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
			     PTRACE_O_TRACEEXEC;
	int go[2], status, fired = 0, error = 0;

	if (argc < 7)
		return fprintf(stderr, "fault: RECORD PROCESS NAME NUMBER ACTION PROGRAM ARGS...\n"), 125;
	FILE *record = fopen(argv[1], "we");
	int where = atoi(argv[2]), when = atoi(argv[4]);
	const char *what = argv[3], *action = argv[5];
	if (!record || pipe(go))
		return perror(argv[1]), 125;
	error = atoi(action);
	runtime = fork();
	if (!runtime) {
		char c;
		close(go[1]);
		if (read(go[0], &c, 1) < 0)
			_exit(126);
		close(go[0]);
		execvp(argv[6], argv + 6);
		_exit(127);
	}
	of(runtime);
	if (ptrace(PTRACE_SEIZE, runtime, 0, options))
		return perror("ptrace"), 125;
	/* The tracer's own ends; the container must not inherit them. */
	close(go[0]);
	close(go[1]);

	for (;;) {
		pid_t pid = waitpid(-1, &status, __WALL);
		if (pid < 0)
			return perror("waitpid"), 125;
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			if (pid != runtime) {
				of(pid)->pid = -1;
				continue;
			}
			/* Whoever is left goes on by itself, as if it had never been watched. */
			fclose(record);
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		}
		struct process *p = of(pid);
		int signal = WSTOPSIG(status), event = status >> 16;
		if (event == PTRACE_EVENT_EXEC) {
			/* The runtime's own second process executes its image; what else is executed is left alone. */
			if (!executes_runtime(pid)) {
				ptrace(PTRACE_DETACH, pid, 0, 0);
				p->pid = -1;
				continue;
			}
		} else if (event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK) {
			unsigned long child;
			ptrace(PTRACE_GETEVENTMSG, pid, 0, &child);
			of(child);
		} else if (event == PTRACE_EVENT_STOP && (signal == SIGSTOP || signal == SIGTSTP)) {
			ptrace(PTRACE_LISTEN, pid, 0, 0);
			continue;
		} else if (event == 0 && signal == (SIGTRAP | 0x80)) {
			struct __ptrace_syscall_info info;
			ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof info, &info);
			const struct call *call = info.op == PTRACE_SYSCALL_INFO_ENTRY ? known(info.entry.nr) : 0;
			if (p->failing && info.op == PTRACE_SYSCALL_INFO_EXIT) {
				answer(pid, -error);
				p->failing = 0;
			} else if (call && !fired) {
				char text[256] = "-";
				if (call->path >= 0)
					text_of(pid, info.entry.args[call->path], text, sizeof text);
				int process = p - processes;
				int number = ++p->counted[call - calls];
				fired = process == where && number == when && !strcmp(call->name, what);
				fprintf(record, "%d %s %d %s%s\n", process, call->name, number, *text ? text : "-", fired ? " !" : "");
				if (fired) {
					fflush(record);
					if (error) {
						skip(pid);
						p->failing = 1;
					} else {
						kill(victim(action, pid), SIGKILL);
					}
				}
			}
		} else if (event == 0) {
			ptrace(PTRACE_SYSCALL, pid, 0, signal);
			continue;
		}
		/* ESRCH: it was just killed. */
		if (ptrace(PTRACE_SYSCALL, pid, 0, 0) && errno != ESRCH)
			return perror("ptrace"), 125;
	}
}

/*
 * Native code in the engine's process, as somebody has it who got the better of the engine: in the place of the engine's library,
 * it loads the real one and takes over where the guest's first instruction would be. It makes system calls itself and says of
 * each what came of it: `NAME ERRNO`, 0 if it succeeded.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static void said(const char *name, long result)
{
	char line[128];
	int error = result < 0 ? errno : 0;
	int length = snprintf(line, sizeof line, "%s %d\n", name, error);
	if (write(1, line, length) != length)
		syscall(SYS_exit_group, 1);
}

/* Executable, as every function here. */
static int code(void)
{
	return 7;
}

static void memory(void)
{
	static const char *paths[] = {"/proc/self/mem", "/proc/thread-self/mem"};
	uint32_t same;
	memcpy(&same, (const void *)code, sizeof same);
	for (int i = 0; i < 2; i++) {
		char name[64];
		snprintf(name, sizeof name, "write %s", paths[i]);
		int fd = syscall(SYS_openat, AT_FDCWD, paths[i], O_RDWR);
		said(name, fd < 0 ? fd : pwrite(fd, &same, sizeof same, (off_t)(uintptr_t)code));
	}
}

static void executable(void)
{
	int rw = PROT_READ | PROT_WRITE, private = MAP_PRIVATE | MAP_ANONYMOUS;
	void *page = mmap(0, 4096, rw, private, -1, 0);
	said("mmap rwx", (long)mmap(0, 4096, rw | PROT_EXEC, private, -1, 0) == -1 ? -1 : 0);
	said("mmap anonymous rx", (long)mmap(0, 4096, PROT_READ | PROT_EXEC, private, -1, 0) == -1 ? -1 : 0);
	said("mprotect rx", mprotect(page, 4096, PROT_READ | PROT_EXEC));
	said("mprotect of code", mprotect((void *)((uintptr_t)code & -4096), 4096, rw | PROT_EXEC));
	said("pkey_mprotect rx", syscall(SYS_pkey_mprotect, page, 4096, PROT_READ | PROT_EXEC, -1));
	int fd = open("/module.wasm", O_RDONLY);
	said("mmap file rx", (long)mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == -1 ? -1 : 0);
	said("memfd_create", syscall(SYS_memfd_create, "x", 0));
	/* PR_GET_MDWE */
	long mdwe = syscall(SYS_prctl, 66, 0, 0, 0, 0);
	char line[32];
	if (write(1, line, snprintf(line, sizeof line, "mdwe=%ld\n", mdwe)) < 0)
		syscall(SYS_exit_group, 1);
}

static void calls(void)
{
	static char mine[8], other[8];
	struct iovec here = {mine, 8}, there = {other, 8};
	struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .exclude_kernel = 1};
	char *arguments[] = {"/bin/true", 0}, *none[] = {0};

	said("process_vm_writev", syscall(SYS_process_vm_writev, getpid(), &here, 1, &there, 1, 0));
	said("process_vm_readv", syscall(SYS_process_vm_readv, getpid(), &here, 1, &there, 1, 0));
	said("bpf", syscall(SYS_bpf, BPF_MAP_CREATE, 0, 0));
	said("mount", syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, 0));
	said("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 0));
	said("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
	said("mount_setattr", syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, 0, 0));
	said("unshare", syscall(SYS_unshare, CLONE_NEWUTS));
	said("setns", syscall(SYS_setns, -1, 0));
	said("keyctl", syscall(SYS_keyctl, 0, -3, 1));
	said("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -2));
	said("io_uring_setup", syscall(SYS_io_uring_setup, 1, 0));
	said("userfaultfd", syscall(SYS_userfaultfd, 1 | O_CLOEXEC));
	said("perf_event_open", syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
	said("name_to_handle_at", syscall(SYS_name_to_handle_at, AT_FDCWD, "/", 0, 0, 0));
	said("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, 0, 0));
	said("pidfd_getfd", syscall(SYS_pidfd_getfd, -1, 0, 0));
	said("raw socket", syscall(SYS_socket, 2, 3, 1));
	said("packet socket", syscall(SYS_socket, 17, 3, 0));
	said("netlink socket", syscall(SYS_socket, 16, 3, 0));
	said("unix socket", syscall(SYS_socket, 1, 1, 0));
	said("kcmp", syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0));
	said("personality", syscall(SYS_personality, 0xffffffff));
	said("ptrace", syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0));
	long child = syscall(SYS_clone, 17, 0, 0, 0, 0);
	if (!child)
		syscall(SYS_exit_group, 0);
	said("fork", child);
	/* Returns only if it fails. */
	long failed = syscall(SYS_execve, arguments[0], arguments, none);
	said("execve", failed);
}

__attribute__((visibility("default"))) uint32_t WasmEdge_ExecutorInvoke(void)
{
	memory();
	executable();
	calls();
	syscall(SYS_exit_group, 0);
	__builtin_unreachable();
}

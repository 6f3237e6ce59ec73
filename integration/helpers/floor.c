/*
 * The kernel's floor: what a container costs without any runtime. One clone with the default configuration's namespaces,
 * its mounts, pivot_root, the exec of a static program, reaped. No cgroup, no seccomp, no checks: nothing can be faster.
 *
 *   floor ROOTFS PROGRAM ARGS...
 */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(long r, const char *what)
{
	if (r < 0) {
		perror(what);
		_exit(125);
	}
}

int main(int argc, char **argv)
{
	struct clone_args a = {
		.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_VFORK,
		.exit_signal = SIGCHLD,
	};
	unsigned long safe = MS_NOSUID | MS_NOEXEC | MS_NODEV;
	int status;

	if (argc < 3)
		return 2;
	long pid = syscall(SYS_clone3, &a, sizeof a);
	must(pid, "clone3");
	if (pid == 0) {
		must(mount(0, "/", 0, MS_REC | MS_SLAVE, 0), "make / a slave");
		must(mount(argv[1], argv[1], 0, MS_BIND | MS_REC, 0), "bind the root");
		must(chdir(argv[1]), "chdir");
		must(mount("proc", "proc", "proc", 0, 0), "proc");
		must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"), "dev");
		mkdir("dev/pts", 0755);
		mkdir("dev/shm", 0755);
		mkdir("dev/mqueue", 0755);
		must(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"), "pts");
		must(mount("shm", "dev/shm", "tmpfs", safe, "mode=1777,size=65536k"), "shm");
		must(mount("mqueue", "dev/mqueue", "mqueue", safe, 0), "mqueue");
		must(mount("sysfs", "sys", "sysfs", safe | MS_RDONLY, 0), "sys");
		must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
		must(umount2(".", MNT_DETACH), "umount2");
		must(chdir("/"), "chdir");
		must(mount(0, "/", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0), "read-only root");
		must(sethostname("floor", 5), "sethostname");
		execv(argv[2], argv + 2);
		must(-1, argv[2]);
	}
	must(waitpid(pid, &status, 0), "waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}

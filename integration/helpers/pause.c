/* A pod's first container: holds the namespaces, and reaps what a shared pid namespace leaves to it. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(int signal)
{
	(void)signal;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	struct sigaction action = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};

	sigaction(SIGCHLD, &action, NULL);
	for (;;)
		pause();
}

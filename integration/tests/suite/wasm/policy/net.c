/*
 * A guest that uses WasmEdge's socket extension, by its arguments one after the other; it says how each went.
 *
 *   resolve NAME [SERVICE]        sock_getaddrinfo, all addresses
 *   serve COUNT ADDRESS PORT      answers so many HTTP requests over TCP
 *   get ADDRESS PORT              an HTTP request
 *   echo COUNT ADDRESS PORT       sends so many datagrams back (with SECOND: the first generation tells no port)
 *   ask ADDRESS PORT TEXT         a datagram by sock_send_to, and the answer
 *   toss ADDRESS PORT TEXT        a datagram by sock_send_to, and no answer
 *   tell ADDRESS PORT TEXT        a datagram on a connected socket
 *   connect|datagram|listen ADDRESS PORT     only that
 *   unbound                       listens without bind
 *   local                         opens an AF_UNIX socket
 *   nameserver ADDRESS            writes /etc/resolv.conf
 *
 * SECOND: with the second generation of the extension.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))
/* Of two functions with one type the engine gives the first generation's, unless it is asked by its full name. */
#ifdef SECOND
#define SOCK(name) WASI("sock_" #name "_v2")
#else
#define SOCK(name) WASI("sock_" #name)
#endif

struct address {
	uint8_t *bytes;
	uint32_t length;
};
struct data {
	const void *bytes;
	uint32_t length;
};
struct sockaddr {
	uint8_t family;
	uint32_t length;
	uint8_t *data;
};
struct addrinfo {
	uint16_t flags;
	uint8_t family, type;
	uint8_t protocol;
	uint32_t address_length;
	struct sockaddr *address;
	char *name;
	uint32_t name_length;
	struct addrinfo *next;
};

SOCK(open) int sock_open(int family, int type, int *fd);
SOCK(bind) int sock_bind(int fd, struct address *address, int port);
SOCK(listen) int sock_listen(int fd, int backlog);
#ifdef SECOND
SOCK(accept) int sock_accept(int fd, int flags, int *accepted);
#else
SOCK(accept) int sock_accept(int fd, int *accepted);
#endif
SOCK(connect) int sock_connect(int fd, struct address *address, int port);
SOCK(recv) int sock_recv(int fd, struct data *to, int count, int flags, uint32_t *length, uint32_t *out);
SOCK(send) int sock_send(int fd, struct data *from, int count, int flags, uint32_t *length);
SOCK(send_to) int sock_send_to(int fd, struct data *from, int count, struct address *to, int port, int flags,
	uint32_t *length);
#ifdef SECOND
SOCK(recv_from) int sock_recv_from(int fd, struct data *to, int count, struct address *from, int flags, uint16_t *port,
	uint32_t *length, uint32_t *out);
#endif
WASI("sock_getaddrinfo") int sock_getaddrinfo(const char *node, uint32_t node_length, const char *service,
	uint32_t service_length, struct addrinfo *hints, struct addrinfo **result, uint32_t most, uint32_t *count);

enum { INET4 = 1, INET6 = 2, UNIX = 3 };
enum { DATAGRAM = 1, STREAM = 2 };

static uint8_t bytes[128];
static struct address address = {bytes, 4};
static int family;

/* 1.2.3.4, ::1, ::, or ::ffff:1.2.3.4, in the form of the generation. */
static void parse(const char *text)
{
	uint8_t raw[16] = {0};
	unsigned a, b, c, d;
	int size = 16;
	family = INET6;
	if (sscanf(text, "::ffff:%u.%u.%u.%u", &a, &b, &c, &d) == 4) {
		memcpy(raw, (uint8_t[16]){[10] = 255, [11] = 255, a, b, c, d}, 16);
	} else if (sscanf(text, "%u.%u.%u.%u", &a, &b, &c, &d) == 4) {
		size = 4;
		family = INET4;
		memcpy(raw, (uint8_t[4]){a, b, c, d}, 4);
	} else {
		raw[15] = !strcmp(text, "::1");
	}
	memset(bytes, 0, sizeof bytes);
#ifdef SECOND
	bytes[0] = family;
	memcpy(bytes + 2, raw, size);
	address.length = 128;
#else
	memcpy(bytes, raw, size);
	address.length = size;
#endif
}

static int said(const char *what, int error)
{
	printf("%s: %s %d\n", what, error ? "error" : "ok", error);
	fflush(stdout);
	return error;
}

static int open_socket(int type)
{
	int fd = -1;
	int error = sock_open(family, type, &fd);
	if (error)
		said("open", error);
	return fd;
}

static int get(int fd, char *text, int most)
{
	uint32_t length = 0, flags = 0;
	struct data data = {text, most};
	int error = sock_recv(fd, &data, 1, 0, &length, &flags);
	text[error ? 0 : length] = 0;
	return error;
}

static int put(int fd, const char *text)
{
	uint32_t length;
	struct data data = {text, strlen(text)};
	return sock_send(fd, &data, 1, 0, &length);
}

static void resolve(const char *node, const char *service)
{
	static struct addrinfo infos[10];
	static struct sockaddr addresses[10];
	static uint8_t data[10][32];
	static char names[10][256];
	struct addrinfo hints = {.type = STREAM};
	struct addrinfo *first = infos;
	uint32_t count = 0;
	for (int i = 0; i < 10; i++) {
		infos[i] = (struct addrinfo){.address = &addresses[i], .address_length = sizeof *addresses, .name = names[i],
			.name_length = sizeof *names, .next = i < 9 ? &infos[i + 1] : NULL};
		addresses[i] = (struct sockaddr){.length = sizeof *data, .data = data[i]};
	}
	int error = sock_getaddrinfo(node, strlen(node), service, strlen(service), &hints, &first, 10, &count);
	printf("%s:", node);
	if (error)
		printf(" error %d", error);
	for (uint32_t i = 0; i < count && !error; i++) {
		printf(" ");
		if (addresses[i].family == INET4)
			printf("%d.%d.%d.%d", data[i][2], data[i][3], data[i][4], data[i][5]);
		else
			for (int j = 0; j < 16; j++)
				printf("%s%02x", j && !(j % 2) ? ":" : "", data[i][6 + j]);
		if (*service)
			printf("/%d", data[i][0] << 8 | data[i][1]);
	}
	printf("\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static char text[65536];
	for (int i = 1; i < argc; i++) {
		const char *verb = argv[i];
		if (!strcmp(verb, "resolve")) {
			const char *node = argv[++i];
			resolve(node, i + 1 < argc && *argv[i + 1] == ':' ? argv[++i] + 1 : "");
		} else if (!strcmp(verb, "nameserver")) {
			FILE *file = fopen("/etc/resolv.conf", "w");
			int wrote = file && fprintf(file, "nameserver %s\noptions timeout:1 attempts:1\n", argv[++i]) > 0;
			said("nameserver", !wrote || fclose(file));
		} else if (!strcmp(verb, "unbound")) {
			family = INET4;
			said("listen unbound", sock_listen(open_socket(STREAM), 1));
		} else if (!strcmp(verb, "local")) {
			int fd;
			said("open local", sock_open(UNIX, STREAM, &fd));
		} else {
			int times = !strcmp(verb, "serve") || !strcmp(verb, "echo") ? atoi(argv[++i]) : 1;
			const char *to = argv[++i];
			int port = atoi(argv[++i]), fd, other;
			parse(to);
			int datagram = *verb == 'e' || *verb == 'a' || *verb == 't' || *verb == 'd';
			fd = open_socket(datagram ? DATAGRAM : STREAM);
			if (!strcmp(verb, "serve")) {
				if (said("bind", sock_bind(fd, &address, port)) || said("listen", sock_listen(fd, 5)))
					continue;
				while (times--) {
#ifdef SECOND
					int error = sock_accept(fd, 0, &other);
#else
					int error = sock_accept(fd, &other);
#endif
					if (error || get(other, text, sizeof text - 1))
						return said("serve", 1);
					text[strcspn(text, "\r\n")] = 0;
					char answer[256];
					snprintf(answer, sizeof answer,
						"HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\nyou said %s\n",
						strlen(text) + 10, text);
					if (put(other, answer))
						return said("answer", 1);
					close(other);
				}
				puts("served");
			} else if (!strcmp(verb, "get")) {
				if (said("connect", sock_connect(fd, &address, port)) || said("send", put(fd, "GET /x HTTP/1.0\r\n\r\n")))
					continue;
				said("receive", get(fd, text, sizeof text - 1));
				puts(text);
#ifdef SECOND
			} else if (!strcmp(verb, "echo")) {
				if (said("bind", sock_bind(fd, &address, port)))
					continue;
				while (times--) {
					uint32_t length, flags;
					uint16_t from;
					struct data data = {text, sizeof text};
					if (sock_recv_from(fd, &data, 1, &address, 0, &from, &length, &flags))
						return said("receive", 1);
					data.length = length;
					/* The engine gives the port in the order of the network. */
					if (sock_send_to(fd, &data, 1, &address, __builtin_bswap16(from), 0, &length))
						return said("send back", 1);
				}
				puts("echoed");
#endif
			} else if (!strcmp(verb, "ask") || !strcmp(verb, "toss")) {
				uint32_t length;
				struct data data = {argv[i + 1], strlen(argv[i + 1])};
				i++;
				if (said("send to", sock_send_to(fd, &data, 1, &address, port, 0, &length)) || *verb == 't')
					continue;
				said("receive", get(fd, text, sizeof text - 1));
				puts(text);
			} else if (!strcmp(verb, "tell")) {
				if (!said("connect", sock_connect(fd, &address, port)))
					said("send", put(fd, argv[i + 1]));
				i++;
			} else if (!strcmp(verb, "listen")) {
				if (!said("bind", sock_bind(fd, &address, port)))
					said("listen", sock_listen(fd, 1));
			} else {
				said(verb, sock_connect(fd, &address, port));
			}
			close(fd);
		}
	}
	return 0;
}

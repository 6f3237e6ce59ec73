/*
 * A plugin of WasmEdge: the module `proa_test` with
 *
 *   twice(i32) -> i32
 *   read(path, path_length, to, most) -> i32      reads a file by a call of its own: how many bytes, or less than zero
 *   reach(address, port, datagram) -> i32         connects and sends a byte, by system calls of its own: an errno
 *
 * The last two do what somebody could who has got the better of the engine. With THREAD_AT_LOAD and THREAD_AT_CREATE a thread
 * does that reading which was started when the plugin was loaded, or when the engine made its module. The declarations are those of
 * wasmedge/wasmedge.h, equal in 0.14 and 0.17 but for the width of two parameters, which are passed in registers.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
	uint32_t length;
	const char *bytes;
} String;
typedef struct {
	uint8_t data[8];
} ValType;
typedef struct {
	unsigned __int128 value;
	ValType type;
} Value;
typedef struct {
	uint32_t code;
} Result;
typedef struct Module Module;
typedef struct Descriptor {
	const char *name, *description;
	Module *(*create)(const struct Descriptor *);
} Descriptor;
typedef struct {
	const char *name, *description;
	uint32_t api_version;
	struct {
		uint32_t major, minor, patch, build;
	} version;
	uint32_t modules, options;
	Descriptor *module_descriptions;
	void *program_options;
} Plugin;

typedef Result (*Function)(void *data, const void *frame, const Value *parameters, Value *returns);

extern uint32_t WasmEdge_VersionGetMinor(void);
extern ValType WasmEdge_ValTypeGenI32(void);
extern Value WasmEdge_ValueGenI32(int32_t value);
extern int32_t WasmEdge_ValueGetI32(Value value);
extern void *WasmEdge_FunctionTypeCreate(const ValType *, uint32_t, const ValType *, uint32_t);
extern void *WasmEdge_FunctionInstanceCreate(const void *type, Function, void *data, uint64_t cost);
extern Module *WasmEdge_ModuleInstanceCreate(String name);
extern void WasmEdge_ModuleInstanceAddFunction(Module *, String name, void *function);
extern void *WasmEdge_CallingFrameGetMemoryInstance(const void *frame, uint32_t index);
extern uint8_t *WasmEdge_MemoryInstanceGetPointer(void *memory, uint64_t offset, uint64_t length);

static uint8_t *memory(const void *frame, Value at, Value length)
{
	void *instance = WasmEdge_CallingFrameGetMemoryInstance(frame, 0);
	return WasmEdge_MemoryInstanceGetPointer(instance, (uint32_t)WasmEdge_ValueGetI32(at),
		(uint32_t)WasmEdge_ValueGetI32(length));
}

static Result twice(void *data, const void *frame, const Value *in, Value *out)
{
	out[0] = WasmEdge_ValueGenI32(2 * WasmEdge_ValueGetI32(in[0]));
	return (Result){0};
}

static int read_path(const char *path, uint8_t *to, int most)
{
	int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
	int got = fd < 0 ? -1 : syscall(SYS_read, fd, to, most);
	if (fd >= 0)
		close(fd);
	return got;
}

static sem_t asked, answered;
static struct {
	const char *path;
	uint8_t *to;
	int most, got;
} job;

static void *reader(void *unused)
{
	for (;;) {
		sem_wait(&asked);
		job.got = read_path(job.path, job.to, job.most);
		sem_post(&answered);
	}
	return NULL;
}

__attribute__((unused)) static void start_reader(void)
{
	pthread_t thread;
	sem_init(&asked, 0, 0);
	sem_init(&answered, 0, 0);
	pthread_create(&thread, NULL, reader, NULL);
}

#if defined THREAD_AT_LOAD || defined THREAD_AT_CREATE
static int read_by_thread(const char *path, uint8_t *to, int most)
{
	job.path = path;
	job.to = to;
	job.most = most;
	sem_post(&asked);
	sem_wait(&answered);
	return job.got;
}
#define read_path read_by_thread
#endif

#ifdef THREAD_AT_LOAD
__attribute__((constructor)) static void loaded(void)
{
	start_reader();
}
#endif

static Result read_file(void *data, const void *frame, const Value *in, Value *out)
{
	char path[256] = "";
	uint8_t *from = memory(frame, in[0], in[1]), *to = memory(frame, in[2], in[3]);
	int length = WasmEdge_ValueGetI32(in[1]);
	int got = -1;
	if (from && to && length < (int)sizeof path) {
		memcpy(path, from, length);
		got = read_path(path, to, WasmEdge_ValueGetI32(in[3]));
	}
	out[0] = WasmEdge_ValueGenI32(got);
	return (Result){0};
}

static Result reach(void *data, const void *frame, const Value *in, Value *out)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(WasmEdge_ValueGetI32(in[1])),
		.sin_addr.s_addr = htonl(WasmEdge_ValueGetI32(in[0]))};
	int fd = syscall(SYS_socket, AF_INET, WasmEdge_ValueGetI32(in[2]) ? SOCK_DGRAM : SOCK_STREAM, 0);
	int error = fd < 0 || syscall(SYS_connect, fd, &to, sizeof to) || syscall(SYS_write, fd, "x", 1) != 1;
	out[0] = WasmEdge_ValueGenI32(error ? errno : 0);
	close(fd);
	return (Result){0};
}

static void add(Module *module, const char *name, int parameters, Function function)
{
	ValType types[4];
	for (int i = 0; i < 4; i++)
		types[i] = WasmEdge_ValTypeGenI32();
	WasmEdge_ModuleInstanceAddFunction(module, (String){strlen(name), name},
		WasmEdge_FunctionInstanceCreate(WasmEdge_FunctionTypeCreate(types, parameters, types, 1), function, 0, 0));
}

static Module *create(const Descriptor *descriptor)
{
	Module *module = WasmEdge_ModuleInstanceCreate((String){9, "proa_test"});
	add(module, "twice", 1, twice);
	add(module, "read", 4, read_file);
	add(module, "reach", 3, reach);
#ifdef THREAD_AT_CREATE
	start_reader();
#endif
	return module;
}

static Descriptor modules[] = {{"proa_test", "for proa's tests", create}};
static Plugin plugin = {"proa_test", "for proa's tests", 0, {0, 1, 0, 0}, 1, 0, modules, 0};

__attribute__((visibility("default"))) const Plugin *WasmEdge_Plugin_GetDescriptor(void)
{
	/* WasmEdge_Plugin_CurrentAPIVersion: 4 in 0.14, 5 in 0.17. */
	plugin.api_version = WasmEdge_VersionGetMinor() < 17 ? 4 : 5;
	return &plugin;
}

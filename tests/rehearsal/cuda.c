// CUDA's runtime and driver on make-believe H100s whose memory is the host's. No kernel runs here.
//
// Refused is what CUDA refuses: launches beyond a limit of the grid, the block, the registers or
// the shared memory, memory and streams of another GPU, and what a stream capture forbids.
// The runtime's functions have the prefix fake_; the driver's are found by their own names.
#define _GNU_SOURCE
#include "cuda.h"

#include <cuda_runtime_api.h>
#include <elf.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { SHARED = 49152, SHARED_OPTIN = 232448, REGISTERS = 65536, PROCESSORS = 132 };
static const size_t MEMORY = 80UL << 30;

static __thread int current;  // every thread has a current device of its own

static int device_count(void) {
  const char* count = getenv("REHEARSAL_DEVICES");
  return count ? atoi(count) : 1;
}

// ---- the log: a line of JSON a call, in the file that REHEARSAL_LOG names -----------------------

void note(const char* call, const char* format, ...) {
  static FILE* file;
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  const char* path = getenv("REHEARSAL_LOG");
  if (!path) return;
  pthread_mutex_lock(&lock);
  if (!file) file = fopen(path, "a");
  if (file) {
    va_list values;
    va_start(values, format);
    fprintf(file, "{\"call\": \"%s\", \"device\": %d", call, current);
    vfprintf(file, format, values);
    fprintf(file, "}\n");
    fflush(file);
    va_end(values);
  }
  pthread_mutex_unlock(&lock);
}

int refuse(const char* call, int error, const char* why) {
  note(call, ", \"refused\": \"%s\"", why);
  fprintf(stderr, "rehearsal: %s refused: %s\n", call, why);
  return error;
}

// ---- memory: whose is an address? -----------------------------------------------------------------

typedef struct Block {
  char* start;
  size_t size;
  int device;  // or HOST
  struct Block* next;
} Block;
enum { HOST = -1, PAGEABLE = -2 };
static Block* blocks;
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;

static int owner(const void* address) {
  int device = PAGEABLE;
  pthread_mutex_lock(&blocks_lock);
  for (Block* b = blocks; b; b = b->next)
    if ((char*)address >= b->start && (char*)address < b->start + b->size) device = b->device;
  pthread_mutex_unlock(&blocks_lock);
  return device;
}

int of_another_device(const void* address) {
  int device = owner(address);
  return device >= 0 && device != current;
}

static int allocate(void** address, size_t size, int device) {
  size_t pages = (size + 4095) / 4096 * 4096;
  void* start = pages > MEMORY ? MAP_FAILED
                               : mmap(NULL, pages ? pages : 4096, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  *address = NULL;
  if (start == MAP_FAILED) return cudaErrorMemoryAllocation;
  Block* block = malloc(sizeof *block);
  pthread_mutex_lock(&blocks_lock);
  *block = (Block){start, pages ? pages : 4096, device, blocks};
  blocks = block;
  pthread_mutex_unlock(&blocks_lock);
  *address = start;
  return 0;
}

static int release(void* address) {
  pthread_mutex_lock(&blocks_lock);
  for (Block** b = &blocks; *b; b = &(*b)->next)
    if ((*b)->start == address) {
      Block* gone = *b;
      *b = gone->next;
      munmap(gone->start, gone->size);
      free(gone);
      break;
    }
  pthread_mutex_unlock(&blocks_lock);
  return 0;
}

// ---- streams and their capture ------------------------------------------------------------------

typedef struct {
  int device, flags, captured;
} Stream;
typedef struct {
  int captured;
  double time;
} Event;
typedef struct {
  long nodes;
} Graph;
static struct {  // one at a time
  Stream* origin;
  int mode, broken;
  long nodes;
} capture;

static Stream* stream_of(void* handle) {  // NULL for the legacy default stream
  return (uintptr_t)handle <= 2 ? NULL : handle;
}

// What may not be called at all while a stream captures.
static int forbidden(const char* call) {
  if (!capture.origin) return 0;
  capture.broken = 1;
  return refuse(call, cudaErrorStreamCaptureUnsupported, "not permitted while a stream captures");
}

// What CUDA calls unsafe, and permits in the relaxed mode.
static int unsafe(const char* call) {
  return capture.mode == cudaStreamCaptureModeRelaxed ? 0 : forbidden(call);
}

// Work for a stream: an error, or 0 and whether it becomes a node of the graph.
int work(const char* call, void* handle, int* captured) {
  Stream* stream = stream_of(handle);
  *captured = stream && stream->captured;
  if (stream && stream->device != current)
    return refuse(call, cudaErrorInvalidResourceHandle, "the stream is another device's");
  if (capture.origin && !stream) {
    capture.broken = 1;
    return refuse(call, cudaErrorStreamCaptureImplicit,
                  "work for the default stream while another captures");
  }
  capture.nodes += *captured;
  return 0;
}

const char* as_node(int captured) { return captured ? ", \"captured\": true" : ""; }

int fake_cudaStreamCreateWithPriority(void** handle, unsigned flags, int priority) {
  Stream* stream = calloc(1, sizeof *stream);
  stream->device = current;
  stream->flags = flags;
  *handle = stream;
  return 0;
}
int fake_cudaStreamCreateWithFlags(void** handle, unsigned flags) {
  return fake_cudaStreamCreateWithPriority(handle, flags, 0);
}
int fake_cudaStreamCreate(void** handle) { return fake_cudaStreamCreateWithPriority(handle, 0, 0); }
int fake_cudaStreamDestroy(void* handle) {
  free(stream_of(handle));
  return 0;
}
int fake_cudaStreamGetFlags(void* handle, unsigned* flags) {
  *flags = stream_of(handle) ? stream_of(handle)->flags : 0;
  return 0;
}
int fake_cudaStreamIsCapturing(void* handle, int* status) {
  Stream* stream = stream_of(handle);
  *status = !(stream && stream->captured) ? cudaStreamCaptureStatusNone
            : capture.broken              ? cudaStreamCaptureStatusInvalidated
                                          : cudaStreamCaptureStatusActive;
  return 0;
}
int fake_cudaStreamBeginCapture(void* handle, int mode) {
  Stream* stream = stream_of(handle);
  if (!stream)
    return refuse("streamBeginCapture", cudaErrorStreamCaptureUnsupported,
                  "the default stream cannot be captured");
  if (capture.origin)
    return refuse("streamBeginCapture", cudaErrorIllegalState, "a stream captures already");
  capture.origin = stream;
  capture.mode = mode;
  capture.broken = capture.nodes = 0;
  stream->captured = 1;
  note("streamBeginCapture", "%s", "");
  return 0;
}
static Stream* joined[64];
static int joined_count;
int fake_cudaStreamEndCapture(void* handle, void** graph) {
  *graph = NULL;
  if (!capture.origin || stream_of(handle) != capture.origin)
    return refuse("streamEndCapture", cudaErrorIllegalState, "this stream began no capture");
  int broken = capture.broken;
  capture.origin->captured = 0;
  capture.origin = NULL;
  while (joined_count) joined[--joined_count]->captured = 0;
  note("streamEndCapture", ", \"nodes\": %ld", capture.nodes);
  if (broken) return cudaErrorStreamCaptureInvalidated;
  Graph* made = malloc(sizeof *made);
  made->nodes = capture.nodes;
  *graph = made;
  return 0;
}
int fake_cudaStreamSynchronize(void* handle) {
  Stream* stream = stream_of(handle);
  int error = !stream || stream->captured ? forbidden("streamSynchronize")
                                          : unsafe("streamSynchronize");
  if (!error) note("streamSynchronize", "%s", "");
  return error;
}
int fake_cudaStreamQuery(void* handle) {
  Stream* stream = stream_of(handle);
  return !stream || stream->captured ? forbidden("streamQuery") : unsafe("streamQuery");
}
int fake_cudaDeviceSynchronize(void) {
  int error = forbidden("deviceSynchronize");
  if (!error) note("deviceSynchronize", "%s", "");
  return error;
}
int fake_cudaLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
  int captured, error = work("launchHostFunc", handle, &captured);
  if (!error && !captured) function(data);
  return error;
}

int fake_cudaGraphInstantiate(void** executable, Graph* graph, unsigned long long flags) {
  Graph* made = malloc(sizeof *made);
  *made = *graph;
  *executable = made;
  note("graphInstantiate", ", \"nodes\": %ld", graph->nodes);
  return 0;
}
int fake_cudaGraphLaunch(Graph* executable, void* handle) {
  int captured, error = work("graphLaunch", handle, &captured);
  if (!error) note("graphLaunch", ", \"nodes\": %ld%s", executable->nodes, as_node(captured));
  return error;
}
int fake_cudaGraphUpload(Graph* executable, void* handle) {
  int captured;
  return work("graphUpload", handle, &captured);
}
int fake_cudaGraphDestroy(Graph* graph) {
  free(graph);
  return 0;
}
int fake_cudaGraphExecDestroy(Graph* executable) {
  free(executable);
  return 0;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}
int fake_cudaEventCreateWithFlags(Event** event, unsigned flags) {
  *event = calloc(1, sizeof **event);
  return 0;
}
int fake_cudaEventCreate(Event** event) { return fake_cudaEventCreateWithFlags(event, 0); }
int fake_cudaEventDestroy(Event* event) {
  free(event);
  return 0;
}
int fake_cudaEventRecord(Event* event, void* handle) {
  Stream* stream = stream_of(handle);
  if (capture.origin && !stream) return forbidden("eventRecord");
  event->captured = stream && stream->captured;
  event->time = now();
  return 0;
}
static int after_capture(const char* call, const Event* event) {
  if (!event->captured) return 0;
  capture.broken = 1;
  return refuse(call, cudaErrorCapturedEvent, "the event was recorded in a capture");
}
int fake_cudaEventSynchronize(Event* event) {
  int error = after_capture("eventSynchronize", event);
  if (!error) note("eventSynchronize", "%s", "");
  return error;
}
int fake_cudaEventQuery(Event* event) { return after_capture("eventQuery", event); }
int fake_cudaEventElapsedTime(float* milliseconds, Event* start, Event* end) {
  *milliseconds = (end->time - start->time) * 1e3;
  if (*milliseconds <= 0) *milliseconds = 1e-3;
  int error = after_capture("eventElapsedTime", start);
  return error ? error : after_capture("eventElapsedTime", end);
}
int fake_cudaStreamWaitEvent(void* handle, Event* event, unsigned flags) {
  Stream* stream = stream_of(handle);
  if (event->captured && stream && !stream->captured && joined_count < 64) {
    stream->captured = 1;  // a fork: the stream takes part in the capture
    joined[joined_count++] = stream;
  }
  return 0;
}

// ---- memory calls -------------------------------------------------------------------------------

static int new_memory(const char* call, void** address, size_t size, int device) {
  int error = unsafe(call);
  if (error) return error;
  note(call, ", \"bytes\": %zu%s", size, as_node(capture.origin != NULL));
  return allocate(address, size, device);
}
int fake_cudaMalloc(void** address, size_t size) {
  return new_memory("malloc", address, size, current);
}
int fake_cudaMallocAsync(void** address, size_t size, void* stream) {
  return new_memory("mallocAsync", address, size, current);
}
int fake_cudaHostAlloc(void** address, size_t size, unsigned flags) {
  return new_memory("hostAlloc", address, size, HOST);
}
int fake_cudaFree(void* address) {
  int error = address ? unsafe("free") : 0;
  return error ? error : release(address);
}
int fake_cudaFreeAsync(void* address, void* stream) { return release(address); }
int fake_cudaFreeHost(void* address) {
  int error = unsafe("freeHost");
  return error ? error : release(address);
}
int fake_cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = MEMORY;
  *free_bytes = MEMORY - (2UL << 30);
  return 0;
}
int fake_cudaPointerGetAttributes(struct cudaPointerAttributes* answer, const void* address) {
  int device = owner(address);
  memset(answer, 0, sizeof *answer);
  answer->type = device >= 0      ? cudaMemoryTypeDevice
                 : device == HOST ? cudaMemoryTypeHost
                                  : cudaMemoryTypeUnregistered;
  answer->device = device >= 0 ? device : current;
  answer->devicePointer = device == PAGEABLE ? NULL : (void*)address;
  answer->hostPointer = device >= 0 ? NULL : (void*)address;
  return 0;
}

static const char* direction(const void* to, const void* from) {
  static const char* names[2][2] = {{"HtoH", "HtoD"}, {"DtoH", "DtoD"}};
  return names[owner(from) >= 0][owner(to) >= 0];
}
static int copy(const char* call, void* to, const void* from, size_t size) {
  int error = forbidden(call);
  if (error) return error;
  note(call, ", \"bytes\": %zu, \"direction\": \"%s\"", size, direction(to, from));
  memmove(to, from, size);
  return 0;
}
static int copy_later(const char* call, void* to, const void* from, size_t size, void* stream) {
  int captured, error = work(call, stream, &captured);
  if (error) return error;
  if (captured && (owner(to) == PAGEABLE || owner(from) == PAGEABLE)) return forbidden(call);
  note(call, ", \"bytes\": %zu, \"direction\": \"%s\"%s", size, direction(to, from),
       as_node(captured));
  memmove(to, from, size);
  return 0;
}
int fake_cudaMemcpy(void* to, const void* from, size_t size, int kind) {
  return copy("memcpy", to, from, size);
}
int fake_cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
  return copy_later("memcpyAsync", to, from, size, stream);
}
int fake_cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device, size_t size) {
  return copy("memcpyPeer", to, from, size);
}
int fake_cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device,
                             size_t size, void* stream) {
  return copy_later("memcpyPeerAsync", to, from, size, stream);
}
int fake_cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                           size_t width, size_t height, int kind, void* stream) {
  int error = 0;
  for (size_t i = 0; i < height && !error; i++)
    error = copy_later("memcpy2DAsync", (char*)to + i * to_pitch, (char*)from + i * from_pitch,
                       width, stream);
  return error;
}
int fake_cudaMemset(void* to, int value, size_t size) {
  int error = forbidden("memset");
  if (error) return error;
  note("memset", ", \"bytes\": %zu", size);
  memset(to, value, size);
  return 0;
}
int fake_cudaMemsetAsync(void* to, int value, size_t size, void* stream) {
  int captured, error = work("memsetAsync", stream, &captured);
  if (error) return error;
  if (of_another_device(to))
    return refuse("memsetAsync", cudaErrorInvalidValue, "memory of another device");
  note("memsetAsync", ", \"bytes\": %zu%s", size, as_node(captured));
  memset(to, value, size);
  return 0;
}

// ---- the devices ---------------------------------------------------------------------------------

int fake_otherwise(void) { return 0; }  // the runtime's other functions
const char* fake_cudaGetErrorName(int error) {
  return error == cudaErrorStreamCaptureUnsupported   ? "cudaErrorStreamCaptureUnsupported"
         : error == cudaErrorStreamCaptureInvalidated ? "cudaErrorStreamCaptureInvalidated"
         : error == cudaErrorStreamCaptureImplicit    ? "cudaErrorStreamCaptureImplicit"
         : error == cudaErrorCapturedEvent            ? "cudaErrorCapturedEvent"
         : error == cudaErrorMemoryAllocation         ? "cudaErrorMemoryAllocation"
         : error == cudaErrorInvalidDevice            ? "cudaErrorInvalidDevice"
         : error                                      ? "cudaErrorOfTheRehearsal"
                                                      : "cudaSuccess";
}
const char* fake_cudaGetErrorString(int error) {
  return error ? "refused in rehearsal, see its log" : "no error";
}
int fake_cudaDriverGetVersion(int* version) { return *version = 13000, 0; }
int fake_cudaRuntimeGetVersion(int* version) { return *version = 13000, 0; }
int fake_cudaGetDevice(int* device) { return *device = current, 0; }
int fake_cudaGetDeviceCount(int* count) { return *count = device_count(), 0; }
int fake_cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
  current = device;
  return 0;
}
int fake_cudaDeviceCanAccessPeer(int* can, int device, int peer) { return *can = 0, 0; }
int fake_cudaDeviceGetPCIBusId(char* id, int length, int device) {
  snprintf(id, length, "0000:%02x:00.0", device + 1);
  return 0;
}
int fake_cudaDeviceGetLimit(size_t* value, int limit) { return *value = 1 << 20, 0; }
int fake_cudaDeviceGetDefaultMemPool(void** pool, int device) { return *pool = (void*)8, 0; }
int fake_cudaDeviceGetMemPool(void** pool, int device) { return *pool = (void*)8, 0; }
int fake_cudaDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = PROCESSORS; break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_OPTIN; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_OPTIN + 1024; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = REGISTERS; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = REGISTERS; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: *value = 65535; break;
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    default: *value = 1;
  }
  return 0;
}
int fake_cudaGetDeviceProperties(struct cudaDeviceProp* p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H100 80GB HBM3");
  p->totalGlobalMem = MEMORY;
  p->sharedMemPerBlock = SHARED;
  p->sharedMemPerBlockOptin = SHARED_OPTIN;
  p->sharedMemPerMultiprocessor = SHARED_OPTIN + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = REGISTERS;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = 9;
  p->multiProcessorCount = PROCESSORS;
  p->maxThreadsPerMultiProcessor = 2048;
  p->l2CacheSize = 50 << 20;
  return 0;
}

// ---- kernels of CUB, which CuPy brings compiled -------------------------------------------------

int fake_cudaFuncGetAttributes(struct cudaFuncAttributes* attributes, const void* function) {
  memset(attributes, 0, sizeof *attributes);
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  return 0;
}
int fake_cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int b, size_t s) {
  return *n = 2, 0;
}
int fake_cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int b,
                                                                size_t s, unsigned flags) {
  return *n = 2, 0;
}
int fake_cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                          size_t shared, void* stream) {
  int captured, error = work("launch", stream, &captured);
  if (!error)
    note("launch", ", \"name\": \"cub\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u]%s",
         grid.x, grid.y, grid.z, block.x, block.y, block.z, as_node(captured));
  return error;
}
int fake_cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** arguments) {
  return fake_cudaLaunchKernel(function, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes,
                               c->stream);
}

// ---- the driver: modules and launches -----------------------------------------------------------

typedef struct {
  char* image;  // an ELF file
  size_t size;
} Module;
enum { PARAMETERS = 64 };
typedef struct {
  char name[200];
  int registers, max_threads, dynamic_shared;
  size_t static_shared;
  int parameters;
  unsigned short sizes[PARAMETERS];
} Function;

static const Elf64_Shdr* section(const Module* m, const char* name) {
  const Elf64_Ehdr* head = (void*)m->image;
  const Elf64_Shdr* sections = (void*)(m->image + head->e_shoff);
  const char* names = m->image + sections[head->e_shstrndx].sh_offset;
  for (int i = 0; i < head->e_shnum; i++)
    if (!strcmp(names + sections[i].sh_name, name)) return &sections[i];
  return NULL;
}

static int symbol_of(const Module* m, const char* name) {
  const Elf64_Shdr *table = section(m, ".symtab"), *strings = section(m, ".strtab");
  const Elf64_Sym* symbols = (void*)(m->image + table->sh_offset);
  for (size_t i = 0; i < table->sh_size / sizeof *symbols; i++)
    if (!strcmp(m->image + strings->sh_offset + symbols[i].st_name, name)) return i;
  return -1;
}

// Reads a section of attributes: format, name, and 16 bits of value or of a size before values.
static void read_info(const Module* m, const Elf64_Shdr* info, int symbol, Function* f) {
  enum { REGISTER_COUNT = 0x2f, PARAMETER = 0x17, MAX_THREADS = 0x05, SIZED = 4 };
  const char* at = info ? m->image + info->sh_offset : NULL;
  const char* end = info ? at + info->sh_size : NULL;
  while (at < end) {
    unsigned short size;
    unsigned words[4] = {0};
    memcpy(&size, at + 2, 2);
    int format = at[0], name = at[1];
    at += 4;
    if (format != SIZED) continue;
    memcpy(words, at, size < sizeof words ? size : sizeof words);
    if (name == REGISTER_COUNT && (int)words[0] == symbol) f->registers = words[1];
    if (name == MAX_THREADS) f->max_threads = words[0] * words[1] * words[2];
    if (name == PARAMETER) {
      unsigned ordinal = words[1] & 0xffff;
      if (ordinal < PARAMETERS) f->sizes[ordinal] = words[2] >> 18;
      if ((int)ordinal >= f->parameters) f->parameters = ordinal + 1;
    }
    at += size;
  }
}

int cuModuleLoadData(Module** module, const char* image) {
  int error = unsafe("moduleLoad");
  if (error) return error;
  const Elf64_Ehdr* head = (void*)image;
  if (memcmp(image, ELFMAG, SELFMAG))
    return refuse("moduleLoad", 200, "the image is no cubin");
  size_t sections = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
  size_t programs = head->e_phoff + (size_t)head->e_phnum * head->e_phentsize;
  Module* made = malloc(sizeof *made);
  made->size = sections > programs ? sections : programs;
  made->image = malloc(made->size);
  memcpy(made->image, image, made->size);
  *module = made;
  return 0;
}
int cuModuleUnload(Module* module) { return 0; }
int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  char other[300];
  snprintf(other, sizeof other, ".text.%s", name);
  if (!section(module, other)) return refuse("getFunction", 500, name);
  Function* made = calloc(1, sizeof *made);
  snprintf(made->name, sizeof made->name, "%s", name);
  made->dynamic_shared = SHARED;
  made->max_threads = 1024;
  read_info(module, section(module, ".nv.info"), symbol_of(module, name), made);
  snprintf(other, sizeof other, ".nv.info.%s", name);
  read_info(module, section(module, other), -1, made);
  snprintf(other, sizeof other, ".nv.shared.%s", name);
  const Elf64_Shdr* shared = section(module, other);
  made->static_shared = shared && shared->sh_size > 1024 ? shared->sh_size - 1024 : 0;
  *function = made;
  return 0;
}
int cuModuleGetGlobal_v2(void** address, size_t* size, Module* module, const char* name) {
  *size = 1 << 16;
  return allocate(address, *size, current);
}
int cuFuncGetAttribute(int* value, int attribute, Function* f) {
  enum { MAX_THREADS_PER_BLOCK, SHARED_SIZE, REGISTER_COUNT = 4, DYNAMIC_SHARED = 8 };
  *value = attribute == DYNAMIC_SHARED          ? f->dynamic_shared
           : attribute == MAX_THREADS_PER_BLOCK ? f->max_threads
           : attribute == SHARED_SIZE           ? (int)f->static_shared
           : attribute == REGISTER_COUNT        ? f->registers
                                                : 0;
  return 0;
}
int cuFuncSetAttribute(Function* f, int attribute, int value) {
  if (attribute != 8) return 0;
  if (value + f->static_shared > SHARED_OPTIN) return refuse("funcSetAttribute", 1, f->name);
  f->dynamic_shared = value;
  return 0;
}

static const char* fault(const Function* f, const unsigned* grid, const unsigned* block,
                         unsigned shared, void** arguments) {
  unsigned long threads = (unsigned long)block[0] * block[1] * block[2];
  unsigned long warps = (threads + 31) / 32;
  for (int i = 0; i < 3; i++)
    if (!grid[i] || !block[i]) return "a size of zero";
  if (grid[0] > 2147483647 || grid[1] > 65535 || grid[2] > 65535) return "too large a grid";
  if (threads > 1024 || block[2] > 64) return "too large a block";
  if (threads > (unsigned)f->max_threads) return "more threads than __launch_bounds__";
  if (warps * ((f->registers * 32 + 255) / 256 * 256) > REGISTERS) return "too many registers";
  if (shared > (unsigned)f->dynamic_shared || shared + f->static_shared > SHARED_OPTIN)
    return "more shared memory than was asked for";
  for (int p = 0; p < f->parameters && p < PARAMETERS; p++)
    for (int at = 0; at + 8 <= f->sizes[p]; at += 8) {
      void* word;
      memcpy(&word, (char*)arguments[p] + at, 8);
      if (of_another_device(word)) return "memory of another device";
    }
  return NULL;
}

int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** arguments, void** extra) {
  unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  int captured, error = work("launch", stream, &captured);
  if (error) return error;
  const char* why = fault(f, grid, block, shared, arguments);
  note("launch",
       ", \"name\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %u%s%s%s%s",
       f->name, gx, gy, gz, bx, by, bz, shared, as_node(captured), why ? ", \"refused\": \"" : "",
       why ? why : "", why ? "\"" : "");
  if (why) fprintf(stderr, "rehearsal: launch of %s refused: %s\n", f->name, why);
  return why ? 1 : 0;
}

int cuGetErrorName(int error, const char** name) {
  *name = error == 500 ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR_INVALID_VALUE";
  return 0;
}
int cuGetErrorString(int error, const char** text) {
  *text = fake_cudaGetErrorString(error);
  return 0;
}
int cuCtxGetDevice(int* device) { return *device = current, 0; }
int cuCtxGetCurrent(void** context) { return *context = (void*)(uintptr_t)(current + 1), 0; }
int cuCtxSetCurrent(void* context) { return context ? current = (uintptr_t)context - 1, 0 : 0; }
int cuCtxCreate_v2(void** context, unsigned flags, int device) { return cuCtxGetCurrent(context); }
int cuCtxDestroy_v2(void* context) { return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuStreamGetCtx(void* stream, void** context) { return cuCtxGetCurrent(context); }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Function* f, int b, size_t s) {
  return *n = 2, 0;
}
int cuOccupancyMaxPotentialBlockSize(int* grid, int* block, Function* f, void* c, size_t d, int m) {
  return *grid = 2 * PROCESSORS, *block = 256, 0;
}
// What CuPy looks up and the project never calls.
int cuLaunchCooperativeKernel(void) { return 801; }
int cuLinkCreate_v2(void) { return 801; }
int cuLinkAddData_v2(void) { return 801; }
int cuLinkAddFile_v2(void) { return 801; }
int cuLinkComplete(void) { return 801; }
int cuLinkDestroy(void) { return 801; }
int cuModuleLoad(void) { return 801; }

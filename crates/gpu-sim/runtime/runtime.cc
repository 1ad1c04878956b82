// A simulated GPU. Every thread of a threadgroup is a fiber of one host thread, which runs until it comes to a barrier or to an
// operation of its simdgroup; when all who take part stand at the same one, they go on. Threadgroups run one after another,
// in the order asked for.
//
// Kernels are compiled with -fsanitize=thread and linked with this file instead of that sanitizer's own library, so
// that every load and store of theirs is a call to one of the functions at the end. Each is looked up among the buffers the
// kernel was given, its threadgroup memory and its own stack, and compared with who touched the same byte before.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <sys/mman.h>
#include <vector>

namespace {

constexpr size_t STACK = 128 << 10;
constexpr unsigned LANES = 32, MAX_THREADS = 1024, THREADGROUP_LIMIT = 32 << 10, LARGEST_THREADGROUP = 48 << 10;
constexpr unsigned FENCE = 32, CONVERGE = 33;  // what stands instead of a lane in sim_exchange

enum class State { Ready, Simd, Group, Done };

struct Fiber {
  void *stack_pointer = nullptr;
  char *stack = nullptr;
  State state = State::Done;
  int line = 0;      // of the source, where it waits
  unsigned kind = 0;  // of barrier, or the lane wanted
  unsigned value = 0;
};

// Who touched a byte. Groups are numbered from 1.
struct Cell {
  uint32_t write_group, write_epoch, read_group, read_epoch;
  uint16_t write_thread, read_thread, write_fence, read_fence;
  uint8_t readers;  // none, one thread, several of a simdgroup, several of a group, several groups
};
enum { NONE, ONE, SIMD, GROUP, GROUPS };

struct Region {
  const char *name;
  uintptr_t begin, end;
  bool writable, threadgroup;
  Cell *cells;
  size_t cell_bytes;
};

struct Binding {
  void *data;
  uint64_t bytes;
  int32_t writable;
};

Fiber fibers[MAX_THREADS];
std::vector<Region> regions;
size_t device_regions;
uintptr_t module_begin, module_end;
char threadgroup_memory[4][LARGEST_THREADGROUP + 256] __attribute__((aligned(64)));

void (*entry)(void **);
void **parameters;
unsigned threads, current, group[3], serial;
uint32_t group_epoch, device_epoch;
uint16_t fences[MAX_THREADS / LANES];
size_t threadgroup_bytes, threadgroup_limit;
void *scheduler;

// What a simdgroup showed to others when it came to a counter: its own accesses, and all of its group's before the last barrier. And
// which the one that runs has seen so.
struct Shown {
  const void *counter;
  uint32_t group, epoch;
  uint16_t simd;
};
struct Seen {
  Shown what;
  uint32_t epoch;
  uint16_t simd;
};
std::vector<Shown> shown;
std::vector<Seen> seen;
bool failed;
char *message;
size_t capacity;

// Keeps the six registers that calls preserve, and swaps stacks.
extern "C" void sim_switch(void **save, void *load);
#if defined(__x86_64__)
asm(R"(
.text
.globl sim_switch
.type sim_switch,@function
sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int SAVED = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl sim_switch
sim_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "the simulator knows x86-64 and AArch64"
#endif

void to_scheduler() { sim_switch(&fibers[current].stack_pointer, scheduler); }
void to_fiber(unsigned i) {
  current = i;
  sim_switch(&scheduler, fibers[i].stack_pointer);
}

// Notes the first thing that is wrong; the launch ends there.
void wrong(const char *format, ...) {
  if (failed) return;
  failed = true;
  va_list list;
  va_start(list, format);
  vsnprintf(message, capacity, format, list);
  va_end(list);
}

void begin() {
  entry(parameters);
  fibers[current].state = State::Done;
  to_scheduler();
  abort();
}

void start(unsigned i) {
  Fiber &f = fibers[i];
  if (!f.stack) {
    void *p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) abort();
    f.stack = static_cast<char *>(p);
  }
  auto top = reinterpret_cast<void **>(f.stack + STACK);
#if defined(__x86_64__)
  *--top = nullptr;  // where begin would return to
  *--top = reinterpret_cast<void *>(&begin);
  for (int r = 0; r < SAVED; r++) *--top = nullptr;
#else
  top -= 20;
  for (int r = 0; r < 20; r++) top[r] = nullptr;
  top[11] = reinterpret_cast<void *>(&begin);
#endif
  f.stack_pointer = top;
  f.state = State::Ready;
}

const char *doing(const Fiber &f) {
  switch (f.state) {
  case State::Done: return "has ended";
  case State::Group: return "waits at a barrier";
  case State::Simd: return "is at an operation of the simdgroup";
  default: return "runs";
  }
}

// Lets a simdgroup go on whose lanes all stand at the same operation. A simdgroup that stands still but not together is an
// error, whatever else may still run.
bool release_simd(unsigned s) {
  Fiber *lanes = fibers + s * LANES;
  unsigned waiting = 0;
  for (unsigned l = 0; l < LANES; l++) {
    if (lanes[l].state == State::Ready) return false;
    waiting += lanes[l].state == State::Simd;
  }
  if (waiting == 0) return false;
  for (unsigned l = 1; l < LANES; l++) {
    const Fiber &a = lanes[0], &b = lanes[l];
    if (a.state != b.state || a.line != b.line) {
      wrong("divergence: in simdgroup %u of group (%u, %u, %u) lane 0 %s (line %d) and lane %u %s (line %d)", s, group[0], group[1],
            group[2], doing(a), a.line, l, doing(b), b.line);
      return false;
    }
  }
  unsigned values[LANES];
  for (unsigned l = 0; l < LANES; l++) values[l] = lanes[l].value;
  if (lanes[0].kind == FENCE) fences[s]++;
  for (unsigned l = 0; l < LANES; l++) {
    if (lanes[l].kind < LANES) lanes[l].value = values[lanes[l].kind];
    lanes[l].state = State::Ready;
  }
  return true;
}

bool release_group() {
  for (unsigned i = 0; i < threads; i++)
    if (fibers[i].state != State::Group) return false;
  for (unsigned i = 1; i < threads; i++)
    if (fibers[i].line != fibers[0].line) {
      wrong("threads of group (%u, %u, %u) wait at different barriers: thread 0 at line %d, thread %u at line %d", group[0], group[1],
            group[2], fibers[0].line, i, fibers[i].line);
      return false;
    }
  group_epoch++;
  device_epoch += fibers[0].kind;
  for (unsigned i = 0; i < threads; i++) fibers[i].state = State::Ready;
  return true;
}

uint32_t random_state;
uint32_t next_random() {
  random_state = random_state * 1664525u + 1013904223u;
  return random_state >> 8;
}
void shuffle(std::vector<uint32_t> &order) {
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[next_random() % i]);
}

void run_group(int order) {
  serial++;
  group_epoch = device_epoch = 0;
  memset(fences, 0, sizeof fences);
  threadgroup_bytes = 0;
  seen.clear();
  for (unsigned i = 0; i < threads; i++) start(i);
  std::vector<uint32_t> turn(threads);
  for (unsigned i = 0; i < threads; i++) turn[i] = order == 1 ? threads - 1 - i : i;
  while (!failed) {
    bool ran = false;
    if (order == 2) shuffle(turn);
    for (unsigned k = 0; k < threads && !failed; k++) {
      if (fibers[turn[k]].state != State::Ready) continue;
      to_fiber(turn[k]);
      ran = true;
      // In the first two orders a simdgroup runs as far as it can before the next.
      if (order != 2 && k % LANES == LANES - 1 && release_simd(turn[k] / LANES)) k -= LANES;
    }
    for (unsigned s = 0; s < threads / LANES && !failed; s++) ran |= release_simd(s);
    if (failed) return;
    bool all_done = true;
    for (unsigned i = 0; i < threads; i++) all_done &= fibers[i].state == State::Done;
    if (all_done) return;
    ran |= release_group();
    if (!ran && !failed) {
      for (unsigned i = 0; i < threads; i++)
        for (unsigned j = 0; j < threads; j++)
          if (fibers[i].state == State::Group && fibers[j].state != State::Group)
            return wrong("a barrier (line %d) that not all threads of group (%u, %u, %u) reach: thread %u waits, thread %u %s", fibers[i].line,
                         group[0], group[1], group[2], i, j, doing(fibers[j]));
      return wrong("nothing can go on in group (%u, %u, %u)", group[0], group[1], group[2]);
    }
  }
}

Region *find(uintptr_t at, size_t size) {
  Region *readable = nullptr;
  for (Region &r : regions) {
    if (at < r.begin || at + size > r.end) continue;
    if (r.writable) return &r;
    readable = &r;
  }
  return readable;
}

bool before(bool threadgroup, uint32_t by_group, uint16_t by_thread, uint32_t epoch, uint16_t fence) {
  if (by_group != serial) {
    for (const Seen &s : seen)
      if (!threadgroup && s.what.group == by_group && (epoch < s.what.epoch || (by_thread / LANES == s.what.simd && epoch <= s.what.epoch)) &&
          (s.epoch < device_epoch || s.simd == current / LANES))
        return true;
    return false;
  }
  if (by_thread == current) return true;
  if (epoch < (threadgroup ? group_epoch : device_epoch)) return true;
  return threadgroup && by_thread / LANES == current / LANES && fence < fences[current / LANES];
}

void race(const Region &r, uintptr_t at, const char *what, uint32_t by_group, uint16_t by_thread) {
  if (by_group == serial)
    wrong("race within group (%u, %u, %u): thread %u %s byte %zu of %s, which thread %u touches with no barrier between", group[0],
          group[1], group[2], current, what, size_t(at - r.begin), r.name, by_thread);
  else
    wrong("race between threadgroups: thread %u of group (%u, %u, %u) %s byte %zu of %s, which another group touches", current, group[0],
          group[1], group[2], what, size_t(at - r.begin), r.name);
}

void access(const void *p, size_t size, bool write) {
  if (failed) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  const uintptr_t stack = reinterpret_cast<uintptr_t>(fibers[current].stack);
  if (at >= stack && at + size <= stack + STACK) return;
  Region *r = find(at, size);
  if (!r) {
    const uintptr_t arrays = reinterpret_cast<uintptr_t>(threadgroup_memory);
    const bool array = at + size > arrays && at < arrays + sizeof threadgroup_memory;
    if (!write && !array && at >= module_begin && at + size <= module_end) return;  // a constant table
    // Name the buffer it lies next to.
    const Region *next = nullptr;
    intptr_t distance = 0;
    for (const Region &c : regions) {
      const intptr_t d = at < c.begin ? intptr_t(at - c.begin) : intptr_t(at - c.begin);
      const uintptr_t off = at < c.begin ? c.begin - at : at >= c.end ? at - c.end : 0;
      if (off <= 1 << 16 && (!next || off < uintptr_t(distance < 0 ? -distance : distance))) {
        next = &c;
        distance = d;
      }
    }
    if (next)
      wrong("out of bounds: thread %u of group (%u, %u, %u) %s %zu bytes at byte %zd of %s, which has %zu", current, group[0], group[1],
            group[2], write ? "writes" : "reads", size, ssize_t(distance), next->name, size_t(next->end - next->begin));
    else
      wrong("out of bounds: thread %u of group (%u, %u, %u) %s %zu bytes outside everything it was given", current, group[0], group[1],
            group[2], write ? "writes" : "reads", size);
    return;
  }
  if (!r->writable) {
    if (write)
      wrong("thread %u of group (%u, %u, %u) writes %s, which it was given to read", current, group[0], group[1], group[2], r->name);
    return;
  }
  const uint32_t epoch = r->threadgroup ? group_epoch : device_epoch;
  const uint16_t fence = fences[current / LANES];
  for (size_t i = 0; i < size; i++) {
    Cell &c = r->cells[at - r->begin + i];
    if (r->threadgroup && c.write_group != serial && !write)
      return wrong("thread %u of group (%u, %u, %u) reads byte %zu of %s, which nobody has written", current, group[0], group[1], group[2],
                   size_t(at - r->begin + i), r->name);
    const bool stale_write = c.write_group == 0 || (r->threadgroup && c.write_group != serial);
    if (!stale_write && !before(r->threadgroup, c.write_group, c.write_thread, c.write_epoch, c.write_fence))
      return race(*r, at + i, write ? "writes" : "reads", c.write_group, c.write_thread);
    const bool stale_read = c.readers == NONE || (r->threadgroup && c.read_group != serial);
    if (write) {
      if (!stale_read) {
        const bool ordered_all = c.readers != GROUPS && c.read_group != serial ? before(r->threadgroup, c.read_group, c.read_thread, c.read_epoch, 0) :
                                 c.readers != GROUPS && c.read_group == serial &&
                                 (c.read_epoch < epoch || (c.readers == ONE && c.read_thread == current) ||
                                  (c.readers <= SIMD && r->threadgroup && c.read_thread / LANES == current / LANES && c.read_fence < fence));
        if (!ordered_all) return race(*r, at + i, "writes", c.readers == GROUPS ? 0 : c.read_group, c.read_thread);
      }
      c.write_group = serial;
      c.write_thread = uint16_t(current);
      c.write_epoch = epoch;
      c.write_fence = fence;
      if (c.readers != GROUPS) c.readers = NONE;
    } else {
      if (stale_read) {
        c.readers = ONE;
      } else if (c.readers == GROUPS || c.read_group != serial) {
        c.readers = GROUPS;
      } else if (c.read_epoch < epoch) {
        c.readers = ONE;
      } else if (c.readers == ONE && c.read_thread == current) {
      } else if (c.readers <= SIMD && c.read_thread / LANES == current / LANES) {
        c.readers = SIMD;
      } else {
        c.readers = GROUP;
      }
      c.read_group = serial;
      c.read_thread = uint16_t(current);
      c.read_epoch = epoch;
      c.read_fence = fence;
    }
  }
}

void *zeroed(size_t bytes) {
  void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) abort();
  return p;
}

void watch(const char *name, void *data, size_t bytes, bool writable, bool threadgroup) {
  Region r{};
  r.name = name;
  r.begin = reinterpret_cast<uintptr_t>(data);
  r.end = r.begin + bytes;
  r.writable = writable;
  r.threadgroup = threadgroup;
  if (writable && bytes > 0) {
    r.cell_bytes = bytes * sizeof(Cell);
    r.cells = static_cast<Cell *>(zeroed(r.cell_bytes));
  }
  regions.push_back(r);
}

int own_segments(dl_phdr_info *info, size_t, void *) {
  const auto here = reinterpret_cast<uintptr_t>(&own_segments);
  uintptr_t low = ~uintptr_t(0), high = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto &h = info->dlpi_phdr[i];
    if (h.p_type != PT_LOAD) continue;
    const uintptr_t from = info->dlpi_addr + h.p_vaddr;
    if (from < low) low = from;
    if (from + h.p_memsz > high) high = from + h.p_memsz;
  }
  if (here < low || here >= high) return 0;
  module_begin = low;
  module_end = high;
  return 1;
}

const char *const NAMES[] = {"buffer 0", "buffer 1", "buffer 2",  "buffer 3",  "buffer 4",  "buffer 5",  "buffer 6",  "buffer 7",
                             "buffer 8", "buffer 9", "buffer 10", "buffer 11", "buffer 12", "buffer 13", "buffer 14", "buffer 15"};
const char *const SHARED[] = {"threadgroup array 0", "threadgroup array 1", "threadgroup array 2", "threadgroup array 3"};

}  // namespace

// One launch. Orders: 0 forward, 1 backward, 2 shuffled by `seed`. Returns whether all was well; if not, `text` says what was wrong.
extern "C" int sim_run(void (*kernel)(void **), unsigned thread_count, const unsigned *groups, const Binding *bindings, unsigned count,
                       const void *arguments, uint64_t argument_bytes, int order, unsigned seed, char *text, uint64_t text_bytes) {
  failed = false;
  message = text;
  capacity = text_bytes;
  if (!module_end) dl_iterate_phdr(&own_segments, nullptr);
  if (thread_count % LANES != 0 || thread_count == 0 || thread_count > MAX_THREADS) {
    wrong("%u threads in a group: not a multiple of 32 up to 1024", thread_count);
    return 0;
  }
  if (count > 16) {
    wrong("%u buffers; at most 16", count);
    return 0;
  }
  entry = kernel;
  threads = thread_count;
  random_state = seed;
  serial = 0;
  shown.clear();
  threadgroup_limit = THREADGROUP_LIMIT;
  void *pointers[17];
  for (unsigned i = 0; i < count; i++) {
    watch(NAMES[i], bindings[i].data, bindings[i].bytes, bindings[i].writable != 0, false);
    pointers[i] = bindings[i].data;
  }
  alignas(16) static char copy[4096];
  if (argument_bytes > sizeof copy) {
    wrong("%zu bytes of arguments", size_t(argument_bytes));
    return 0;
  }
  memcpy(copy, arguments, argument_bytes);
  watch("the arguments", copy, argument_bytes, false, false);
  pointers[count] = copy;
  parameters = pointers;
  device_regions = regions.size();
  const uint64_t all = uint64_t(groups[0]) * groups[1] * groups[2];
  std::vector<uint32_t> turn(all);
  for (uint64_t i = 0; i < all; i++) turn[i] = uint32_t(order == 1 ? all - 1 - i : i);
  if (order == 2) shuffle(turn);
  for (uint32_t g : turn) {
    group[0] = g % groups[0];
    group[1] = g / groups[0] % groups[1];
    group[2] = g / groups[0] / groups[1];
    run_group(order);
    if (failed) break;
  }
  for (Region &r : regions)
    if (r.cells) munmap(r.cells, r.cell_bytes);
  regions.clear();
  return failed ? 0 : 1;
}

extern "C" void sim_barrier(int device, int line) {
  Fiber &f = fibers[current];
  f.state = State::Group;
  f.line = line;
  f.kind = unsigned(device);
  to_scheduler();
}
extern "C" unsigned sim_exchange(unsigned value, unsigned from, int line) {
  Fiber &f = fibers[current];
  f.state = State::Simd;
  f.line = line;
  f.kind = from <= CONVERGE ? from : from % LANES;
  f.value = value;
  to_scheduler();
  return f.value;
}
extern "C" void sim_where(unsigned *out) {
  out[0] = group[0];
  out[1] = group[1];
  out[2] = group[2];
  out[3] = current;
}
// What a GPU has that is not a Mac's.
extern "C" void sim_more_shared() { threadgroup_limit = LARGEST_THREADGROUP; }
extern "C" void *sim_shared(int index, unsigned long bytes) {
  if (index < 0 || index >= 4 || bytes > threadgroup_limit) {
    wrong("%lu bytes of threadgroup memory; at most %zu", bytes, threadgroup_limit);
    return nullptr;
  }
  for (size_t i = device_regions; i < regions.size(); i++)
    if (regions[i].name == SHARED[index]) return threadgroup_memory[index];
  threadgroup_bytes = bytes;
  for (size_t i = device_regions; i < regions.size(); i++) threadgroup_bytes += regions[i].end - regions[i].begin;
  if (threadgroup_bytes > threadgroup_limit) wrong("%zu bytes of threadgroup memory; at most %zu", threadgroup_bytes, threadgroup_limit);
  watch(SHARED[index], threadgroup_memory[index], bytes, true, true);
  return threadgroup_memory[index];
}

// The simdgroup has come to `counter`: what it did, and its group before the last barrier, is shown to those that come later. Whether it
// is the last of `count`; then the counter is 0 again.
extern "C" bool sim_last_to_come(unsigned *counter, unsigned count) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(counter);
  const Region *r = find(at, sizeof *counter);
  if (!r || !r->writable || r->threadgroup || at % sizeof *counter != 0) {
    wrong("thread %u of group (%u, %u, %u) counts in memory that is not a buffer to write", current, group[0], group[1], group[2]);
    return false;
  }
  for (const Shown &s : shown)
    if (s.counter == counter) seen.push_back({s, device_epoch, uint16_t(current / LANES)});
  shown.push_back({counter, serial, device_epoch, uint16_t(current / LANES)});
  const bool last = *counter == count - 1;
  if (*counter >= count) wrong("%u groups have come to a counter of %u", *counter, count);
  *counter = last ? 0 : *counter + 1;
  return last;
}

// What -fsanitize=thread calls.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define SIZE(n)                                                     \
  void __tsan_read##n(void *p) { access(p, n, false); }             \
  void __tsan_write##n(void *p) { access(p, n, true); }             \
  void __tsan_unaligned_read##n(void *p) { access(p, n, false); }   \
  void __tsan_unaligned_write##n(void *p) { access(p, n, true); }   \
  void __tsan_read_write##n(void *p) {                              \
    access(p, n, false);                                            \
    access(p, n, true);                                             \
  }
SIZE(1)
SIZE(2)
SIZE(4)
SIZE(8)
SIZE(16)
#undef SIZE
void __tsan_read_range(void *p, unsigned long n) { access(p, n, false); }
void __tsan_write_range(void *p, unsigned long n) { access(p, n, true); }
void *__tsan_memcpy(void *to, const void *from, unsigned long n) {
  access(from, n, false);
  access(to, n, true);
  return memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, unsigned long n) {
  access(from, n, false);
  access(to, n, true);
  return memmove(to, from, n);
}
void *__tsan_memset(void *to, int value, unsigned long n) {
  access(to, n, true);
  return memset(to, value, n);
}
}

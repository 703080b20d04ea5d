// What runs on the processor of arm_machine.py: the kernels with all that they are called through but the pool, one entry
// point, and the little that the C++ library asks of a system. There is none, and one thread.

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>

#include "page.h"
#include "pool.h"
#include "target.h"

namespace {

enum class Verb : int64_t { kUpdate, kMeasure, kSumOfSquares };

// As arm_machine.py packs it.
struct Order {
  Verb verb;
  int64_t target;
  pagedopt::Page page;
  const void* values;
  pagedopt::Dtype dtype;
  int64_t numel;
  double sum;
};

alignas(64) uint8_t heap[1 << 20];
size_t heap_used;

}  // namespace

// Every order is a new thread's first, and finds an empty heap.
extern "C" void _start(Order* order) {
  heap_used = 0;
  pagedopt::Choice choices[pagedopt::kMaxChoices];
  pagedopt::Choices(choices);
  const pagedopt::Target& target = *choices[order->target].target;
  switch (order->verb) {
    case Verb::kUpdate:
      return pagedopt::Update(target, order->page, 1);
    case Verb::kMeasure:
      return pagedopt::Measure(target, order->page, 1);
    case Verb::kSumOfSquares:
      order->sum = pagedopt::SumOfSquares(target, order->values, order->dtype, order->numel, 1);
  }
}

// --- What a C library has. Volatile, or the compiler would make these loops calls of themselves. --------------------

extern "C" void* memcpy(void* to, const void* from, size_t nbytes) {
  for (size_t i = 0; i < nbytes; ++i) static_cast<volatile uint8_t*>(to)[i] = static_cast<const uint8_t*>(from)[i];
  return to;
}

extern "C" void* memset(void* to, int value, size_t nbytes) {
  for (size_t i = 0; i < nbytes; ++i) static_cast<volatile uint8_t*>(to)[i] = static_cast<uint8_t>(value);
  return to;
}

// --- What a C++ library has, for one thread that never ends ---------------------------------------------------------

void* operator new(size_t nbytes) {
  if (nbytes > sizeof heap - heap_used) __builtin_trap();
  void* memory = heap + heap_used;
  heap_used += (nbytes + 63) / 64 * 64;
  return memory;
}

void operator delete(void*) noexcept {}
void operator delete(void*, size_t) noexcept {}

void std::mutex::lock() {}
void std::mutex::unlock() noexcept {}
std::mutex::~mutex() noexcept {}
void std::__libcpp_verbose_abort(const char*, ...) noexcept { __builtin_trap(); }

extern "C" void* __dso_handle = nullptr;
extern "C" int __cxa_thread_atexit(void (*)(void*), void*, void*) { return 0; }

void pagedopt::pool::Run(int64_t, int, Call, const void*) { __builtin_trap(); }

// The 16-bit floats of parameters and gradients, and the floating point rules that every thread computes by.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace pagedopt {

struct Bfloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// Functions that several targets include are static: the linker must not hand the scalar target an AVX-512 copy.
static inline float FloatOf(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// g++ takes a function that only fetches for one without effect, and drops calls of it that are not inlined at once.
#if defined(__GNUC__)
#define PAGEDOPT_INLINE inline __attribute__((always_inline))
#else
#define PAGEDOPT_INLINE inline
#endif

// Fetches the cache line of an address, which may be no one's: nothing is read that could fault.
static PAGEDOPT_INLINE void PrefetchLine(const void* address) {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
#elif defined(__GNUC__)
  __builtin_prefetch(address);
#else
  (void)address;
#endif
}

// Rounds to nearest and keeps subnormals while it lives, whatever this thread was told before: otherwise its results
// would depend on which thread computes them.
class FloatRules {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  FloatRules() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatRules() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
  FloatRules() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~FloatRules() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }
#endif
  FloatRules(const FloatRules&) = delete;
  FloatRules& operator=(const FloatRules&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  unsigned saved_;
#elif defined(__aarch64__)
  uint64_t saved_;
#endif
};

}  // namespace pagedopt

// The 16-bit floats of parameters and gradients, and the floating point rules that every thread computes by.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(_M_ARM64) && !defined(__clang__)
#include <intrin.h>
#endif

// No fused multiply-add but where the source says so: every target must round alike. g++ knows no pragma, but a flag.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
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

// Rounds to nearest and keeps subnormals while it lives, whatever this thread was told before (torch has
// `set_flush_denormal`): otherwise its results would depend on which thread computes them. Threads that it starts
// meanwhile begin with the same rules.
class FloatRules {
 public:
  FloatRules() : before_(Read()) { Write(kDefault); }
  ~FloatRules() { Write(before_); }
  FloatRules(const FloatRules&) = delete;
  FloatRules& operator=(const FloatRules&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  using Word = unsigned;
  static constexpr Word kDefault = 0x1f80;  // exceptions masked
  static Word Read() { return _mm_getcsr(); }
  static void Write(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kDefault = 0;
  static Word Read() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void Write(Word word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#elif defined(_M_ARM64)
  using Word = __int64;
  static constexpr Word kDefault = 0;
  static Word Read() { return _ReadStatusReg(ARM64_FPCR); }
  static void Write(Word word) { _WriteStatusReg(ARM64_FPCR, word); }
#else  // a processor that nothing is known of
  using Word = int;
  static constexpr Word kDefault = 0;
  static Word Read() { return kDefault; }
  static void Write(Word) {}
#endif

  const Word before_;
};

}  // namespace pagedopt

// Asks the processor, and the operating system for the registers it saves, once at load.

#include "target.h"

#if defined(PAGEDOPT_X86) && defined(_WIN32)
#include <immintrin.h>
#include <intrin.h>

#if defined(__GNUC__) || defined(__clang__)
#define PAGEDOPT_TARGET(feature) __attribute__((target(feature)))
#else
#define PAGEDOPT_TARGET(feature)
#endif
#endif

namespace pagedopt {
namespace {

#if defined(PAGEDOPT_X86) && defined(_WIN32)  // where clang finds no run time that would answer __builtin_cpu_supports

bool HasBits(int leaf, int reg, unsigned bits, int subleaf = 0) {
  int registers[4];
  __cpuidex(registers, leaf, subleaf);
  return (static_cast<unsigned>(registers[reg]) & bits) == bits;
}

PAGEDOPT_TARGET("xsave") bool Saves(unsigned bits) { return HasBits(1, 2, 1u << 27) && (_xgetbv(0) & bits) == bits; }

bool HasAvx2() {
  // FMA and F16C; AVX2; XMM and YMM
  return Saves(0x6) && HasBits(1, 2, 1u << 12 | 1u << 29) && HasBits(7, 1, 1u << 5);
}

bool HasAvx512() {
  // F, DQ, BW, VL; opmask and ZMM
  return HasAvx2() && Saves(0xe6) && HasBits(7, 1, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31);
}

#if defined(PAGEDOPT_BF16)
bool HasAvx512Bf16() { return HasAvx512() && HasBits(7, 0, 1u << 5, 1); }
#endif

#elif defined(PAGEDOPT_X86)

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#if defined(PAGEDOPT_BF16)
bool HasAvx512Bf16() { return HasAvx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

#endif

}  // namespace

int Choices(Choice choices[kMaxChoices]) {
  int count = 0;
#if defined(PAGEDOPT_X86)
#if defined(PAGEDOPT_BF16)
  choices[count++] = {&kTarget_avx512_bf16, HasAvx512Bf16()};
#endif
  choices[count++] = {&kTarget_avx512, HasAvx512()};
  choices[count++] = {&kTarget_avx2, HasAvx2()};
#elif defined(PAGEDOPT_ARM)
  choices[count++] = {&kTarget_neon, true};  // every AArch64 processor has it
#endif
  choices[count++] = {&kTarget_scalar, true};
  return count;
}

}  // namespace pagedopt

// The instruction sets of this build, best first, and which of them this processor has.

#pragma once

#include "page.h"

namespace pagedopt {

#if defined(PAGEDOPT_X86)
#if defined(PAGEDOPT_BF16)
extern const Target kTarget_avx512_bf16;
#endif
extern const Target kTarget_avx512;
extern const Target kTarget_avx2;
#elif defined(PAGEDOPT_ARM)
extern const Target kTarget_neon;
#endif
extern const Target kTarget_scalar;

struct Choice {
  const Target* target;
  bool is_supported;
};

constexpr int kMaxChoices = 4;

// Fills `choices` and returns how many there are; the last is always supported.
int Choices(Choice choices[kMaxChoices]);

}  // namespace pagedopt

#include "target.h"
#include "vec_avx512.h"
// After Vec:
#include "adamw-inl.h"
#include "norm-inl.h"

namespace pagedopt {
const Target kTarget_avx512_bf16{"avx512_bf16", Update, Measure, SumOfSquares};
}  // namespace pagedopt

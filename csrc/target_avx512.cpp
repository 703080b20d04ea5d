#include "target.h"
#include "vec_avx512.h"
// After Vec:
#include "adamw-inl.h"
#include "norm-inl.h"

namespace pagedopt {
const Target kTarget_avx512{"avx512", Update, Measure, SumOfSquares};
}  // namespace pagedopt

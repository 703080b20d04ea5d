#include "target.h"
#include "vec_avx2.h"
// After Vec:
#include "adamw-inl.h"
#include "norm-inl.h"

namespace pagedopt {
const Target kTarget_avx2{"avx2", Update, Measure, SumOfSquares};
}  // namespace pagedopt

#include "target.h"
#include "vec_neon.h"
// After Vec:
#include "adamw-inl.h"
#include "norm-inl.h"

namespace pagedopt {
const Target kTarget_neon{"neon", Update, Measure, SumOfSquares};
}  // namespace pagedopt

#include "target.h"
#include "vec_scalar.h"
// After Vec:
#include "adamw-inl.h"
#include "norm-inl.h"

namespace pagedopt {
const Target kTarget_scalar{"scalar", Update, Measure, SumOfSquares};
}  // namespace pagedopt

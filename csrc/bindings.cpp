// The Python module. It takes addresses as integers and looks at no tensor; kernels/native.py keeps them alive.

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "page.h"
#include "target.h"

namespace nb = nanobind;

namespace pagedopt {
namespace {

std::vector<std::pair<std::string, bool>> Targets() {
  Choice choices[kMaxChoices];
  const int count = Choices(choices);
  std::vector<std::pair<std::string, bool>> targets;
  for (int i = 0; i < count; ++i) targets.emplace_back(choices[i].target->name, choices[i].is_supported);
  return targets;
}

const Target& TargetAt(int index) {
  Choice choices[kMaxChoices];
  const int count = Choices(choices);
  if (index < 0 || index >= count || !choices[index].is_supported) {
    throw nb::value_error("this processor does not support the target of that index");
  }
  return *choices[index].target;
}

Page PageAt(uintptr_t segments, int64_t num_segments, uintptr_t frame, uintptr_t addresses, uintptr_t scalars,
            uintptr_t absmax) {
  return {reinterpret_cast<const int64_t*>(segments),  num_segments,
          reinterpret_cast<uint8_t*>(frame),           reinterpret_cast<const int64_t*>(addresses),
          reinterpret_cast<const float*>(scalars),     reinterpret_cast<float*>(absmax)};
}

}  // namespace
}  // namespace pagedopt

NB_MODULE(_native, module) {
  using namespace pagedopt;

  module.def("targets", &Targets);

  module.def(
      "update",
      [](int target, uintptr_t segments, int64_t num_segments, uintptr_t frame, uintptr_t addresses, uintptr_t scalars,
         uintptr_t absmax, int num_threads) {
        Update(TargetAt(target), PageAt(segments, num_segments, frame, addresses, scalars, absmax), num_threads);
      },
      nb::call_guard<nb::gil_scoped_release>());

  module.def(
      "measure",
      [](int target, uintptr_t segments, int64_t num_segments, uintptr_t frame, uintptr_t addresses, uintptr_t scalars,
         uintptr_t absmax, int num_threads) {
        Measure(TargetAt(target), PageAt(segments, num_segments, frame, addresses, scalars, absmax), num_threads);
      },
      nb::call_guard<nb::gil_scoped_release>());

  module.def(
      "sum_of_squares",
      [](int target, uintptr_t values, int64_t dtype, int64_t numel, int num_threads) {
        return SumOfSquares(TargetAt(target), reinterpret_cast<const void*>(values), static_cast<Dtype>(dtype), numel,
                            num_threads);
      },
      nb::call_guard<nb::gil_scoped_release>());
}

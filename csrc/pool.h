// Threads that stay: a page is some 100 us of work, too little to start threads for.

#pragma once

#include <cstdint>

namespace pagedopt {

namespace pool {
using Call = void (*)(const void* body, int64_t index);
void Run(int64_t num_tasks, int num_threads, Call call, const void* body);
}  // namespace pool

// Calls body(0) .. body(num_tasks - 1), in any order, on this thread and up to `num_threads` - 1 others.
template <class Body>
void Parallel(int64_t num_tasks, int num_threads, const Body& body) {
  if (num_tasks <= 1 || num_threads <= 1) {
    for (int64_t index = 0; index < num_tasks; ++index) body(index);
    return;
  }
  pool::Run(
      num_tasks, num_threads, [](const void* b, int64_t index) { (*static_cast<const Body*>(b))(index); }, &body);
}

}  // namespace pagedopt

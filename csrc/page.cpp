// From a page to runs, from runs to tasks, and tasks to threads. Runs begin at blocks, and no block's result depends on
// another's, so neither the cut into tasks nor the number of threads changes a bit.

#include "page.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "codebook.h"
#include "numbers.h"
#include "pool.h"

namespace pagedopt {
namespace {

// Values a thread takes at a time: the least is some 15 us of work, many times what handing it over costs. More, and the
// first blocks of a task, which none before them asked memory for, count for less.
constexpr int64_t kLeastTask = 1 << 14, kMostTask = 1 << 16;
constexpr int64_t kTasksPerThread = 8;  // so that all end together

int64_t BlocksPerRow(int64_t row_width) { return (row_width + kBlock - 1) / kBlock; }

// The block of a parameter that holds `value`.
int64_t BlockOf(int64_t value, int64_t row_width) {
  return value / row_width * BlocksPerRow(row_width) + value % row_width / kBlock;
}

// The first value of the block that holds `value`.
int64_t BlockStart(int64_t value, int64_t row_width) { return value - value % row_width % kBlock; }

Run MakeRun(const Page& page, const int64_t* segment, int64_t start, int64_t stop) {
  const int64_t operand = segment[kOperand];
  const int64_t* address = page.addresses + operand * kNumAddresses;
  const int64_t offset = start - segment[kStart];
  const int64_t row_width = segment[kRowWidth];

  Run run;
  run.numel = stop - start;
  run.column = start % row_width;
  run.row_width = row_width;
  run.format = static_cast<StateFormat>(segment[kFormat]);
  run.param_dtype = static_cast<Dtype>(address[kParamDtype]);
  run.grad_dtype = static_cast<Dtype>(address[kGradDtype]);
  const int64_t index = segment[kBase] + offset;
  run.param = reinterpret_cast<uint8_t*>(address[kParam]) + index * SizeOf(run.param_dtype);
  run.grad = reinterpret_cast<const uint8_t*>(address[kGrad]) + index * SizeOf(run.grad_dtype);
  run.scalars = page.scalars + address[kScalarRow] * kNumScalars;
  run.absmax = page.absmax + operand * 2;

  const bool is_8bit = run.format == StateFormat::kBlockwise8 || run.format == StateFormat::kTensorwise8;
  const int64_t value_nbytes = is_8bit ? 1 : 4;
  int64_t absmax_nbytes = 4 * offset;  // max_exp_avg_sq is there in 32-bit state
  if (run.format == StateFormat::kBlockwise8) {
    absmax_nbytes = 4 * (BlockOf(start, row_width) - BlockOf(segment[kStart], row_width));
  } else if (run.format == StateFormat::kTensorwise8) {
    absmax_nbytes = 0;
  }
  run.field[0] = page.frame + segment[kField0] + offset * value_nbytes;
  run.field[1] = page.frame + segment[kField1] + offset * value_nbytes;
  run.field[2] = page.frame + segment[kField2] + absmax_nbytes;
  run.field[3] = page.frame + segment[kField3] + absmax_nbytes;
  return run;
}

// The runs of a page, and where each task begins among them: small segments share a task, large ones have several.
struct Plan {
  std::vector<Run> runs;
  std::vector<size_t> tasks;

  void Clear() {
    runs.clear();
    tasks.assign(1, 0);
  }
};

bool IsLive(const Page& page, const int64_t* segment) {
  return page.addresses[segment[kOperand] * kNumAddresses + kGrad] != 0;
}

int64_t TaskNumel(const Page& page, int num_threads) {
  int64_t numel = 0;
  for (int64_t i = 0; i < page.num_segments; ++i) numel += page.segments[i * kNumColumns + kNumel];
  return std::min(std::max(numel / (num_threads * kTasksPerThread), kLeastTask), kMostTask);
}

template <class Wanted>
void MakePlan(const Page& page, int num_threads, Wanted wanted, Plan& plan) {
  plan.Clear();
  const int64_t task_numel = TaskNumel(page, num_threads);
  int64_t room = task_numel;
  for (int64_t i = 0; i < page.num_segments; ++i) {
    const int64_t* segment = page.segments + i * kNumColumns;
    if (!IsLive(page, segment) || !wanted(static_cast<StateFormat>(segment[kFormat]))) continue;
    const int64_t end = segment[kStart] + segment[kNumel];
    for (int64_t start = segment[kStart]; start < end;) {
      int64_t stop = end;
      if (end - start > task_numel) stop = BlockStart(start + task_numel, segment[kRowWidth]);
      plan.runs.push_back(MakeRun(page, segment, start, stop));
      room -= stop - start;
      if (room <= 0) {
        plan.tasks.push_back(plan.runs.size());
        room = task_numel;
      }
      start = stop;
    }
  }
  if (plan.tasks.back() != plan.runs.size()) plan.tasks.push_back(plan.runs.size());
}

template <class Body>
void ForEachTask(const Plan& plan, int num_threads, Body body) {
  const auto task = [&](int64_t index) { body(plan.runs.data() + plan.tasks[index], plan.runs.data() + plan.tasks[index + 1]); };
  Parallel(static_cast<int64_t>(plan.tasks.size()) - 1, num_threads, task);
}

// One per calling thread, so that a call allocates nothing once it has seen its largest page.
Plan& ThreadPlan() {
  thread_local Plan plan;
  return plan;
}

// Runs of one segment read its old absmax, so it is replaced when all of them are done.
void StoreTensorwiseAbsmax(const Page& page) {
  for (int64_t i = 0; i < page.num_segments; ++i) {
    const int64_t* segment = page.segments + i * kNumColumns;
    if (!IsLive(page, segment) || static_cast<StateFormat>(segment[kFormat]) != StateFormat::kTensorwise8) continue;
    const float* absmax = page.absmax + segment[kOperand] * 2;
    *reinterpret_cast<float*>(page.frame + segment[kField2]) = Floored(absmax[0]);
    *reinterpret_cast<float*>(page.frame + segment[kField3]) = Floored(absmax[1]);
  }
}

}  // namespace

void Update(const Target& target, const Page& page, int num_threads) {
  const FloatRules rules;
  Plan& plan = ThreadPlan();
  MakePlan(page, num_threads, [](StateFormat) { return true; }, plan);
  ForEachTask(plan, num_threads, [&](const Run* run, const Run* end) {
    for (; run != end; ++run) target.update(*run);
  });
  StoreTensorwiseAbsmax(page);
}

void Measure(const Target& target, const Page& page, int num_threads) {
  const FloatRules rules;
  Plan& plan = ThreadPlan();
  MakePlan(page, num_threads, [](StateFormat format) { return format == StateFormat::kTensorwise8; }, plan);
  std::mutex raising;
  ForEachTask(plan, num_threads, [&](const Run* run, const Run* end) {
    for (; run != end; ++run) {
      float largest[2] = {0, 0};
      target.measure(*run, largest);
      const std::lock_guard<std::mutex> lock(raising);
      for (int moment = 0; moment < 2; ++moment) run->absmax[moment] = std::max(run->absmax[moment], largest[moment]);
    }
  });
}

double SumOfSquares(const Target& target, const void* values, Dtype dtype, int64_t numel, int num_threads) {
  const FloatRules rules;
  const int64_t num_chunks = (numel + kChunk - 1) / kChunk;
  std::vector<double> sums(num_chunks);
  Parallel(num_chunks, num_threads, [&](int64_t chunk) {
    const void* first = static_cast<const uint8_t*>(values) + chunk * kChunk * SizeOf(dtype);
    sums[chunk] = target.sum_of_squares(first, dtype, std::min(kChunk, numel - chunk * kChunk));
  });

  int64_t size = 1;
  while (size < num_chunks) size *= 2;
  sums.resize(size);
  while (size > 1) {  // the first half plus the second, as kernels/norm.py adds
    size /= 2;
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[i + size];
  }
  return numel ? sums[0] : 0.0;
}

}  // namespace pagedopt

// The caller publishes a job with a number of seats. Helpers take a seat, then draw tasks until none is left. The caller
// draws tasks, too; then it closes the job and waits for those who took a seat, and for no one else: a helper that the
// operating system has not woken yet costs nothing.

#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace pagedopt {
namespace pool {
namespace {

// How long a helper looks for the next job before it sleeps: the pages of a step follow each other within this.
constexpr std::chrono::microseconds kPatience{50};

int ProcessId() {
#if defined(_WIN32)
  return _getpid();
#else
  return static_cast<int>(getpid());
#endif
}

void Pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool {
 public:
  // Never destroyed, and its threads are detached: they end with the process.
  static Pool& OfThisProcess() {
    static std::atomic<Pool*> current{nullptr};
    static std::mutex making;
    Pool* pool = current.load(std::memory_order_acquire);
    if (pool == nullptr || pool->process_ != ProcessId()) {  // threads do not survive a fork
      const std::lock_guard<std::mutex> lock(making);
      pool = current.load(std::memory_order_acquire);
      if (pool == nullptr || pool->process_ != ProcessId()) {
        pool = new Pool;
        current.store(pool, std::memory_order_release);
      }
    }
    return *pool;
  }

  void Run(int64_t num_tasks, int num_helpers, Call call, const void* body) {
    const std::unique_lock<std::mutex> mine(job_, std::try_to_lock);
    if (!mine.owns_lock()) {  // another thread's job has the helpers
      for (int64_t index = 0; index < num_tasks; ++index) call(body, index);
      return;
    }
    for (; num_threads_ < num_helpers; ++num_threads_) std::thread([this] { Help(); }).detach();

    call_ = call;
    body_ = body;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    seats_.store(num_helpers, std::memory_order_release);
    jobs_.fetch_add(1);
    if (sleeping_.load() > 0) {
      const std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }

    DrawTasks();

    const int taken = num_helpers - seats_.exchange(kClosed, std::memory_order_acq_rel);
    for (int spins = 0; finished_.load(std::memory_order_acquire) < taken; ++spins) {
      if (spins < 1000) {
        Pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kClosed = 0;

  void DrawTasks() {
    for (;;) {
      const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= num_tasks_) return;
      call_(body_, index);
    }
  }

  void Help() {
    for (uint64_t seen = 0;; seen = AwaitJobAfter(seen)) {
      int seats = seats_.load(std::memory_order_acquire);
      while (seats > 0 && !seats_.compare_exchange_weak(seats, seats - 1, std::memory_order_acq_rel)) {
      }
      if (seats <= 0) continue;
      DrawTasks();
      finished_.fetch_add(1, std::memory_order_release);
    }
  }

  uint64_t AwaitJobAfter(uint64_t seen) {
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < kPatience) {
      for (int spins = 0; spins < 20; ++spins) {
        const uint64_t jobs = jobs_.load(std::memory_order_acquire);
        if (jobs != seen) return jobs;
        Pause();
      }
    }
    std::unique_lock<std::mutex> lock(sleep_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return jobs_.load() != seen; });
    sleeping_.fetch_sub(1);
    return jobs_.load();
  }

  const int process_ = ProcessId();
  std::mutex job_;
  int num_threads_ = 0;

  Call call_ = nullptr;
  const void* body_ = nullptr;
  int64_t num_tasks_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> seats_{kClosed};
  std::atomic<int> finished_{0};

  std::atomic<uint64_t> jobs_{0};
  std::atomic<int> sleeping_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
};

}  // namespace

void Run(int64_t num_tasks, int num_threads, Call call, const void* body) {
  const int num_helpers = static_cast<int>(std::min<int64_t>(num_threads, num_tasks)) - 1;
  Pool::OfThisProcess().Run(num_tasks, num_helpers, call, body);
}

}  // namespace pool
}  // namespace pagedopt

// The update of kernels/reference.py, written once for every instruction set. Include after the header of a target.
//
// Every line is one rounded operation at a time in the order of the reference. Nothing in here may be shared between
// targets by the linker, so all of it is in an unnamed namespace and uses no templates of the standard library.

#pragma once

#include <cstring>

#include "blockwise-inl.h"
#include "page.h"

namespace pagedopt {
namespace {

struct Step {
  explicit Step(const float* scalars)
      : beta1(Vec::Set(scalars[kBeta1])),
        one_minus_beta1(Vec::Set(scalars[kOneMinusBeta1])),
        beta2(Vec::Set(scalars[kBeta2])),
        one_minus_beta2(Vec::Set(scalars[kOneMinusBeta2])),
        eps(Vec::Set(scalars[kEps])),
        decay(Vec::Set(scalars[kDecay])),
        step_size(Vec::Set(scalars[kStepSize])),
        denom_scale(Vec::Set(scalars[kDenomScale])),
        grad_scale(Vec::Set(scalars[kGradScale])),
        update_limit(Vec::Set(scalars[kUpdateLimit])),
        is_scaled(scalars[kGradScale] != 1) {}

  // m and v become those after gradient g.
  void Advance(F g, F& m, F& v) const {
    if (is_scaled) g = Vec::Mul(g, grad_scale);
    m = Vec::Add(Vec::Mul(m, beta1), Vec::Mul(g, one_minus_beta1));
    v = Vec::Add(Vec::Mul(v, beta2), Vec::Mul(Vec::Mul(g, g), one_minus_beta2));
  }

  F Update(F m, F root) const { return Vec::Div(m, Vec::Add(Vec::Mul(root, denom_scale), eps)); }

  template <class P>
  void Apply(F u, P* p) const {
    Vec::Store(p, Vec::Sub(Vec::Mul(Vec::Load(p), decay), Vec::Mul(u, step_size)));
  }

  F beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, denom_scale, grad_scale, update_limit;
  bool is_scaled;
};

// Room for a few values from the end of an array, filled up with zeros, so that whole vectors can be computed on them.
template <class T, int kSize>
struct Padded {
  Padded(const T* from, int64_t numel) {
    std::memset(values, 0, sizeof values);
    std::memcpy(values, from, numel * sizeof(T));
  }
  void CopyTo(T* to, int64_t numel) const { std::memcpy(to, values, numel * sizeof(T)); }

  alignas(64) T values[kSize];
};

// --- 32-bit state ---------------------------------------------------------------------------------------------------

template <bool kAmsgrad, class P, class G>
void Update32(const Step& step, P* p, const G* grad, float* exp_avg, float* exp_avg_sq, float* max_exp_avg_sq) {
  F m = Vec::Load(exp_avg), v = Vec::Load(exp_avg_sq);
  step.Advance(Vec::Load(grad), m, v);
  Vec::Store(exp_avg, m);
  Vec::Store(exp_avg_sq, v);

  if constexpr (kAmsgrad) {
    v = Vec::MaxOrNan(Vec::Load(max_exp_avg_sq), v);
    Vec::Store(max_exp_avg_sq, v);
  }

  step.Apply(step.Update(m, Vec::Sqrt(v)), p);
}

template <class P, class G, bool kAmsgrad>
void UpdateFloat32(const Run& run) {
  constexpr int kLanes = Vec::kLanes;
  const Step step(run.scalars);
  P* p = static_cast<P*>(run.param);
  const G* g = static_cast<const G*>(run.grad);
  float* m = static_cast<float*>(run.field[0]);
  float* v = static_cast<float*>(run.field[1]);
  float* v_max = kAmsgrad ? static_cast<float*>(run.field[2]) : v;

  const int64_t rest = run.numel % kLanes, whole = run.numel - rest;
  for (int64_t i = 0; i < whole; i += kLanes) Update32<kAmsgrad>(step, p + i, g + i, m + i, v + i, v_max + i);
  if (rest == 0) return;

  Padded<P, kLanes> last_p(p + whole, rest);
  const Padded<G, kLanes> last_g(g + whole, rest);
  Padded<float, kLanes> last_m(m + whole, rest), last_v(v + whole, rest), last_max(v_max + whole, rest);
  Update32<kAmsgrad>(step, last_p.values, last_g.values, last_m.values, last_v.values, last_max.values);
  last_p.CopyTo(p + whole, rest);
  last_m.CopyTo(m + whole, rest);
  last_v.CopyTo(v + whole, rest);
  if (kAmsgrad) last_max.CopyTo(v_max + whole, rest);
}

// --- 8-bit state ----------------------------------------------------------------------------------------------------

// The floats of a block between decoding and encoding.
struct Moments {
  alignas(64) float m[kBlock];
  alignas(64) float root[kBlock];
};

// One block, or what stands in for a short one: `numel` is a multiple of kGroup.
template <class P, class G>
struct Block {
  P* p;
  const G* g;
  int8_t* m_codes;
  uint8_t* root_codes;
  int numel;
};

// Decodes a block, updates its parameters if asked to, and leaves its new moments as 8 bits can keep them.
template <bool kApply, class P, class G>
Extent AdvanceBlock(const Step& step, const Block<P, G>& block, float m_absmax, float root_absmax, Moments& moments) {
  const Decoder m_decoder(kSigned), root_decoder(kUnsigned);
  const F m_scale = Vec::Set(m_absmax), root_scale = Vec::Set(root_absmax);
  F m_largest = Vec::Set(0), root_largest = Vec::Set(0), root_smallest = Vec::Set(kInfinity);
  for (int i = 0; i < block.numel; i += Vec::kLanes) {
    F m = Vec::Mul(m_decoder.Value(block.m_codes + i), m_scale);
    F root = Vec::Mul(root_decoder.Value(block.root_codes + i), root_scale);

    F v = Vec::Mul(root, root);
    step.Advance(Vec::Load(block.g + i), m, v);
    root = Vec::Sqrt(v);

    if constexpr (kApply) step.Apply(Vec::Clamp(step.Update(m, root), step.update_limit), block.p + i);

    m_largest = Vec::MaxBits(m_largest, Vec::Abs(m));
    root_largest = Vec::MaxBits(root_largest, root);
    root_smallest = Vec::MinBits(root_smallest, root);

    Vec::Store(moments.m + i, m);
    Vec::Store(moments.root + i, root);
  }

  // A root that is neither zero nor infinite nor NaN stands beside an m that can be kept, too.
  const Extent extent{FloatOf(Vec::LargestBits(m_largest)), FloatOf(Vec::LargestBits(root_largest))};
  if (extent.m < kInfinity && extent.root < kInfinity && Vec::SmallestBits(root_smallest) != 0) return extent;
  return Settle(moments.m, moments.root, block.numel);
}

template <class P, class G>
void EncodeBlock(const Block<P, G>& block, const Moments& moments, float m_absmax, float root_absmax) {
  EncodeSigned(moments.m, block.numel, m_absmax, block.m_codes);
  EncodeUnsigned(moments.root, block.numel, root_absmax, block.root_codes);
}

// Calls body(block, index) for each block of a run.
template <class P, class G, class Body>
void ForEachBlock(const Run& run, Body body) {
  P* p = static_cast<P*>(run.param);
  const G* g = static_cast<const G*>(run.grad);
  int8_t* m_codes = static_cast<int8_t*>(run.field[0]);
  uint8_t* root_codes = static_cast<uint8_t*>(run.field[1]);
  int64_t column = run.column;
  for (int64_t i = 0, index = 0, numel; i < run.numel; i += numel, ++index) {
    numel = run.row_width - column;
    if (numel > kBlock) numel = kBlock;
    if (numel > run.numel - i) numel = run.numel - i;
    column = column + numel == run.row_width ? 0 : column + numel;

    if (numel % kGroup == 0) {
      body(Block<P, G>{p + i, g + i, m_codes + i, root_codes + i, static_cast<int>(numel)}, index);
      continue;
    }
    Padded<P, kBlock> short_p(p + i, numel);
    const Padded<G, kBlock> short_g(g + i, numel);
    Padded<int8_t, kBlock> short_m(m_codes + i, numel);
    Padded<uint8_t, kBlock> short_root(root_codes + i, numel);
    const int rounded_up = static_cast<int>((numel + kGroup - 1) / kGroup * kGroup);
    body(Block<P, G>{short_p.values, short_g.values, short_m.values, short_root.values, rounded_up}, index);
    short_p.CopyTo(p + i, numel);
    short_m.CopyTo(m_codes + i, numel);
    short_root.CopyTo(root_codes + i, numel);
  }
}

template <class P, class G>
void UpdateBlockwise(const Run& run) {
  const Step step(run.scalars);
  float* m_absmax = static_cast<float*>(run.field[2]);
  float* root_absmax = static_cast<float*>(run.field[3]);
  Moments moments;
  ForEachBlock<P, G>(run, [&](const Block<P, G>& block, int64_t index) {
    const Extent extent = AdvanceBlock<true>(step, block, m_absmax[index], root_absmax[index], moments);
    m_absmax[index] = Floored(extent.m);
    root_absmax[index] = Floored(extent.root);
    EncodeBlock(block, moments, m_absmax[index], root_absmax[index]);
  });
}

template <class P, class G>
void UpdateTensorwise(const Run& run) {
  const Step step(run.scalars);
  const float m_absmax = *static_cast<const float*>(run.field[2]);
  const float root_absmax = *static_cast<const float*>(run.field[3]);
  const float new_m_absmax = Floored(run.absmax[0]), new_root_absmax = Floored(run.absmax[1]);
  Moments moments;
  ForEachBlock<P, G>(run, [&](const Block<P, G>& block, int64_t) {
    AdvanceBlock<true>(step, block, m_absmax, root_absmax, moments);
    EncodeBlock(block, moments, new_m_absmax, new_root_absmax);
  });
}

template <class P, class G>
void MeasureTensorwise(const Run& run, float largest[2]) {
  const Step step(run.scalars);
  const float m_absmax = *static_cast<const float*>(run.field[2]);
  const float root_absmax = *static_cast<const float*>(run.field[3]);
  Moments moments;
  ForEachBlock<P, G>(run, [&](const Block<P, G>& block, int64_t) {
    const Extent extent = AdvanceBlock<false>(step, block, m_absmax, root_absmax, moments);
    if (extent.m > largest[0]) largest[0] = extent.m;
    if (extent.root > largest[1]) largest[1] = extent.root;
  });
}

// --- The functions of a target --------------------------------------------------------------------------------------

template <class P, class G>
void UpdateRun(const Run& run) {
  switch (run.format) {
    case StateFormat::kFloat32:
      return UpdateFloat32<P, G, false>(run);
    case StateFormat::kFloat32Amsgrad:
      return UpdateFloat32<P, G, true>(run);
    case StateFormat::kBlockwise8:
      return UpdateBlockwise<P, G>(run);
    case StateFormat::kTensorwise8:
      return UpdateTensorwise<P, G>(run);
  }
}

// Calls body(P(), G()) with the types of the run's parameter and gradient.
template <class P, class Body>
void WithGrad(const Run& run, Body body) {
  switch (run.grad_dtype) {
    case Dtype::kFloat32:
      return body(P(), float());
    case Dtype::kBfloat16:
      return body(P(), Bfloat16());
    case Dtype::kFloat16:
      return body(P(), Float16());
  }
}

template <class Body>
void WithDtypes(const Run& run, Body body) {
  switch (run.param_dtype) {
    case Dtype::kFloat32:
      return WithGrad<float>(run, body);
    case Dtype::kBfloat16:
      return WithGrad<Bfloat16>(run, body);
    case Dtype::kFloat16:
      return WithGrad<Float16>(run, body);
  }
}

void Update(const Run& run) {
  WithDtypes(run, [&](auto p, auto g) { UpdateRun<decltype(p), decltype(g)>(run); });
}

void Measure(const Run& run, float largest[2]) {
  WithDtypes(run, [&](auto p, auto g) { MeasureTensorwise<decltype(p), decltype(g)>(run, largest); });
}

}  // namespace
}  // namespace pagedopt

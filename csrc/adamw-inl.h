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
        lower_limit(Vec::Set(-scalars[kUpdateLimit])),
        is_scaled(scalars[kGradScale] != 1) {}

  // m and v become those after gradient g.
  void Advance(F g, F& m, F& v) const {
    if (is_scaled) g = Vec::Mul(g, grad_scale);
    m = Vec::Add(Vec::Mul(m, beta1), Vec::Mul(g, one_minus_beta1));
    v = Vec::Add(Vec::Mul(v, beta2), Vec::Mul(Vec::Mul(g, g), one_minus_beta2));
  }

  F Update(F m, F root) const { return Vec::Div(m, Vec::Add(Vec::Mul(root, denom_scale), eps)); }

  F Limited(F u) const { return Vec::Clamp(u, lower_limit, update_limit); }
  F LimitedFinite(F u) const { return Vec::MinAbs(u, update_limit); }  // the same for what is not NaN

  // The parameter after update u.
  template <class P>
  F Applied(F u, const P* p) const {
    return Vec::Sub(Vec::Mul(Vec::Load(p), decay), Vec::Mul(u, step_size));
  }

  F beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, denom_scale, grad_scale, update_limit, lower_limit;
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

  Vec::Store(p, step.Applied(step.Update(m, Vec::Sqrt(v)), p));
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
  constexpr int64_t kAhead = 512;  // the processor's own prefetching stops at every page of four or five arrays
  for (int64_t i = 0; i < whole; i += kLanes) {
    PrefetchLine(p + i + kAhead);
    PrefetchLine(g + i + kAhead);
    PrefetchLine(m + i + kAhead);
    PrefetchLine(v + i + kAhead);
    if constexpr (kAmsgrad) PrefetchLine(v_max + i + kAhead);
    Update32<kAmsgrad>(step, p + i, g + i, m + i, v + i, v_max + i);
  }
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
//
// A block is decoded into its new moments, which tell its new absmax; then it is encoded, and its parameters are updated
// meanwhile: the divider works while shuffles do. The next block is decoded before, so that none waits for an absmax.

// The values of one block.
template <class P, class G>
struct Block {
  P* p;
  const G* g;
  int8_t* m_codes;
  uint8_t* root_codes;
  int64_t numel;
};

// A block on its way. A short one is computed on copies, filled up with zeros to whole groups.
template <class P, class G>
struct Slot {
  void Take(const Block<P, G>& taken) {
    original = taken;
    block = taken;  // not `original`: reading what was just written in smaller pieces would wait for the block before
    if (taken.numel % kGroup == 0) return;
    block = {p, g, m_codes, root_codes, (taken.numel + kGroup - 1) / kGroup * kGroup};
    Fill(p, taken.p);
    Fill(g, taken.g);
    Fill(m_codes, taken.m_codes);
    Fill(root_codes, taken.root_codes);
  }

  void GiveBack() const {
    if (block.p != p) return;
    std::memcpy(original.p, p, original.numel * sizeof(P));
    std::memcpy(original.m_codes, m_codes, original.numel);
    std::memcpy(original.root_codes, root_codes, original.numel);
  }

  alignas(64) float m[kBlock];
  alignas(64) float root[kBlock];
  Extent absmax;    // to encode with
  bool is_updated;  // its parameters are
  Block<P, G> block, original;

 private:
  template <class T>
  void Fill(T* copy, const T* from) const {
    std::memset(copy, 0, kBlock * sizeof(T));
    std::memcpy(copy, from, original.numel * sizeof(T));
  }

  alignas(64) P p[kBlock];
  alignas(64) G g[kBlock];
  alignas(64) int8_t m_codes[kBlock];
  alignas(64) uint8_t root_codes[kBlock];
};

// Asks for the line of an array that is two blocks after `start`, once a line. The processor follows too few arrays by
// itself, and stops following when a block is computed longer than its memory takes.
template <class T>
PAGEDOPT_INLINE void PrefetchAhead(const T* array, int64_t start) {
  constexpr int64_t kAhead = 2 * kBlock, kLine = 64 / int64_t(sizeof(T));
  for (int64_t i = start; i < start + kGroup; i += kLine) {
    if (kGroup >= kLine || i % kLine == 0) PrefetchLine(array + i + kAhead);
  }
}

// Leaves the new moments of a block in its slot, and their extent. Returns whether 8 bits can keep them as they are.
template <class P, class G>
bool Decode(const Step& given, Slot<P, G>& slot, Extent absmax, Extent& extent) {
  const Step step = given;  // in registers
  const Decoder m_decoder(kSigned), root_decoder(kUnsigned);
  const F m_scale = Vec::Set(absmax.m), root_scale = Vec::Set(absmax.root);
  const Block<P, G> block = slot.block, original = slot.original;
  F m_largest = Vec::Set(0), root_largest = Vec::Set(0);
  Vec::M is_positive = Vec::Always();
  for (int64_t start = 0; start < block.numel; start += kGroup) {
    PrefetchAhead(original.p, start);
    PrefetchAhead(original.g, start);
    PrefetchAhead(original.m_codes, start);
    PrefetchAhead(original.root_codes, start);
    for (int64_t i = start; i < start + kGroup; i += Vec::kLanes) {
      F m = Vec::Mul(m_decoder.Value(block.m_codes + i), m_scale);
      const F old_root = Vec::Mul(root_decoder.Value(block.root_codes + i), root_scale);
      F v = Vec::Mul(old_root, old_root);
      step.Advance(Vec::Load(block.g + i), m, v);
      const F root = Vec::Sqrt(v);

      m_largest = Vec::MaxAbs(m, m_largest);
      root_largest = Vec::Max(root, root_largest);
      is_positive = Vec::AndPositive(is_positive, root);
      Vec::Store(slot.m + i, m);
      Vec::Store(slot.root + i, root);
    }
  }
  extent = LargestOf(m_largest, root_largest);
  // A root that is neither zero nor infinite nor NaN stands beside an m that can be kept, too.
  return Vec::All(is_positive) && extent.root < kInfinity && extent.m < kInfinity;
}

// Updates the parameters of a block whose moments may be anything.
template <class P, class G>
void UpdateParams(const Step& step, const Slot<P, G>& slot) {
  P* p = slot.block.p;
  for (int64_t i = 0; i < slot.block.numel; i += Vec::kLanes) {
    const F u = step.Update(Vec::Load(slot.m + i), Vec::Load(slot.root + i));
    Vec::Store(p + i, step.Applied(step.Limited(u), p + i));
  }
}

// Makes the codes of a block from the moments in its slot. With kUpdate they are such that no root is zero and all are
// finite, and the block's parameters are updated.
template <bool kUpdate, class P, class G>
void Encode(const Step& given, const Slot<P, G>& slot) {
  const Step step = given;
  const Encoder m_encoder(kSigned, slot.absmax.m), root_encoder(kUnsigned, slot.absmax.root);
  const Block<P, G> block = slot.block;
  for (int64_t start = 0; start < block.numel; start += kGroup) {
    F m[4], p[4];
    I m_size[4], root_size[4];
    for (int part = 0; part < 4; ++part) {
      const int64_t i = start + part * Vec::kLanes;
      m[part] = Vec::Load(slot.m + i);
      const F root = Vec::Load(slot.root + i);
      if constexpr (kUpdate) p[part] = step.Applied(step.LimitedFinite(step.Update(m[part], root)), block.p + i);
      m_size[part] = m_encoder.Size(m[part]);
      root_size[part] = kUpdate ? root_encoder.SizeOfNonzero(root) : root_encoder.Size(root);
      if (kUpdate && part % 2 == 1) Vec::StorePair(block.p + i - Vec::kLanes, p[part - 1], p[part]);
    }
    Vec::StoreCodes(block.m_codes + start, m_size, m);
    Vec::StoreCodes(block.root_codes + start, root_size);
  }
}

// Ends what Decode began, once the slot says how.
template <class P, class G>
void Finish(const Step& step, const Slot<P, G>& slot) {
  if (slot.is_updated) {
    Encode<false>(step, slot);
  } else {
    Encode<true>(step, slot);
  }
  slot.GiveBack();
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
    body(Block<P, G>{p + i, g + i, m_codes + i, root_codes + i, numel}, index);
  }
}

// Updates a run. `scales` has the old absmax of a block, and the one to encode it with when its extent is known.
template <class P, class G, class Scales>
void UpdateCodes(const Run& run, Scales scales) {
  const Step step(run.scalars);
  Slot<P, G> slots[2];
  int64_t num_blocks = 0;
  ForEachBlock<P, G>(run, [&](const Block<P, G>& block, int64_t index) {
    Slot<P, G>& slot = slots[index % 2];
    slot.Take(block);
    Extent extent;
    slot.is_updated = !Decode(step, slot, scales.Old(index), extent);
    if (slot.is_updated) {
      UpdateParams(step, slot);
      extent = Settle(slot.m, slot.root, slot.block.numel);
    }
    slot.absmax = scales.Replace(index, extent);
    if (index > 0) Finish(step, slots[1 - index % 2]);
    num_blocks = index + 1;
  });
  if (num_blocks > 0) Finish(step, slots[(num_blocks - 1) % 2]);
}

struct BlockScales {
  Extent Old(int64_t index) const { return {m[index], root[index]}; }
  Extent Replace(int64_t index, Extent extent) const {
    m[index] = Floored(extent.m);
    root[index] = Floored(extent.root);
    return Old(index);
  }
  float* m;
  float* root;
};

struct TensorScales {
  explicit TensorScales(const Run& run)
      : old_absmax{*static_cast<const float*>(run.field[2]), *static_cast<const float*>(run.field[3])},
        new_absmax{Floored(run.absmax[0]), Floored(run.absmax[1])} {}
  Extent Old(int64_t) const { return old_absmax; }
  Extent Replace(int64_t, Extent) const { return new_absmax; }
  Extent old_absmax, new_absmax;
};

template <class P, class G>
void MeasureTensorwise(const Run& run, float largest[2]) {
  const Step step(run.scalars);
  const TensorScales scales(run);
  Slot<P, G> slot;
  ForEachBlock<P, G>(run, [&](const Block<P, G>& block, int64_t index) {
    slot.Take(block);
    Extent extent;
    if (!Decode(step, slot, scales.Old(index), extent)) extent = Settle(slot.m, slot.root, slot.block.numel);
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
      return UpdateCodes<P, G>(run, BlockScales{static_cast<float*>(run.field[2]), static_cast<float*>(run.field[3])});
    case StateFormat::kTensorwise8:
      return UpdateCodes<P, G>(run, TensorScales(run));
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

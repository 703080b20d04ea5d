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

  template <class P>
  void Apply(F u, P* p) const {
    Vec::Store(p, Vec::Sub(Vec::Mul(Vec::Load(p), decay), Vec::Mul(u, step_size)));
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
// A block is decoded, updated, and encoded once its new absmax is known. The update is bound by division and square
// root, the encoding by shuffles, so a block is updated while the one before it is encoded, vector by vector.

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
    block = original = taken;
    if (taken.numel % kGroup == 0) return;
    block = {p, g, m_codes, root_codes, (taken.numel + kGroup - 1) / kGroup * kGroup};
    Fill(p, taken.p);
    Fill(g, taken.g);
    Fill(m_codes, taken.m_codes);
    Fill(root_codes, taken.root_codes);
  }

  // Asks for what later blocks need when value `i` of this one is read. The processor follows too few streams by itself,
  // and stops following when a block is computed longer than its memory takes.
  PAGEDOPT_INLINE void Prefetch(int64_t i) const {
    constexpr int64_t kAhead = 2 * kBlock, kLine = 64;
    if (i % (kLine / int64_t(sizeof(P))) == 0) PrefetchLine(original.p + i + kAhead);
    if (i % (kLine / int64_t(sizeof(G))) == 0) PrefetchLine(original.g + i + kAhead);
    if (i % kLine == 0) {
      PrefetchLine(original.m_codes + i + kAhead);
      PrefetchLine(original.root_codes + i + kAhead);
    }
  }

  void GiveBackParams() const {
    if (block.p == p) std::memcpy(original.p, p, original.numel * sizeof(P));
  }

  void GiveBackCodes() const {
    if (block.p != p) return;
    std::memcpy(original.m_codes, m_codes, original.numel);
    std::memcpy(original.root_codes, root_codes, original.numel);
  }

  alignas(64) float m[kBlock];
  alignas(64) float root[kBlock];
  Extent absmax;  // to encode with
  Block<P, G> block;

 private:
  template <class T>
  void Fill(T* copy, const T* from) const {
    std::memset(copy, 0, kBlock * sizeof(T));
    std::memcpy(copy, from, original.numel * sizeof(T));
  }

  Block<P, G> original;
  alignas(64) P p[kBlock];
  alignas(64) G g[kBlock];
  alignas(64) int8_t m_codes[kBlock];
  alignas(64) uint8_t root_codes[kBlock];
};

// Makes the new moments of a block in its slot and, if kApply, updates its parameters.
template <bool kApply, class P, class G>
struct Advance {
  Advance(const Step& step, Slot<P, G>& slot)
      : step(step), slot(slot), m_largest(Vec::Set(0)), root_largest(Vec::Set(0)), is_positive(Vec::Always()) {}

  // Leaves the new m and v.
  void Decode(Extent absmax) {
    const Decoder m_decoder(kSigned), root_decoder(kUnsigned);
    const F m_scale = Vec::Set(absmax.m), root_scale = Vec::Set(absmax.root);
    const Block<P, G>& block = slot.block;
    for (int64_t i = 0; i < block.numel; i += Vec::kLanes) {
      slot.Prefetch(i);
      F m = Vec::Mul(m_decoder.Value(block.m_codes + i), m_scale);
      const F root = Vec::Mul(root_decoder.Value(block.root_codes + i), root_scale);

      F v = Vec::Mul(root, root);
      step.Advance(Vec::Load(block.g + i), m, v);

      m_largest = Vec::MaxAbs(m, m_largest);
      Vec::Store(slot.m + i, m);
      Vec::Store(slot.root + i, v);
    }
  }

  // Takes the root of the v at `i`, and updates the parameters.
  void Update(int64_t i) {
    const F m = Vec::Load(slot.m + i), root = Vec::Sqrt(Vec::Load(slot.root + i));

    if constexpr (kApply) step.Apply(step.Limited(step.Update(m, root)), slot.block.p + i);

    root_largest = Vec::Max(root, root_largest);
    is_positive = Vec::AndPositive(is_positive, root);
    Vec::Store(slot.root + i, root);
  }

  // Returns the largest |m| and root of the block, once all of it can be kept.
  Extent Finish() {
    const Extent extent{Vec::Largest(m_largest), Vec::Largest(root_largest)};
    // A root that is neither zero nor infinite nor NaN stands beside an m that can be kept, too.
    if (Vec::All(is_positive) && extent.root < kInfinity && extent.m < kInfinity) return extent;
    return Settle(slot.m, slot.root, slot.block.numel);
  }

  const Step step;
  Slot<P, G>& slot;
  F m_largest, root_largest;
  Vec::M is_positive;
};

// Makes the codes of a block from the moments in its slot.
template <class P, class G>
struct Encode {
  struct Sizes {
    F m[4];
    I m_size[4], root_size[4];
  };

  explicit Encode(const Slot<P, G>& slot)
      : slot(slot), m_encoder(kSigned, slot.absmax.m), root_encoder(kUnsigned, slot.absmax.root) {}

  void Vector(int64_t i, int part, Sizes& sizes) const {
    sizes.m[part] = Vec::Load(slot.m + i);
    sizes.m_size[part] = m_encoder.Size(sizes.m[part]);
    sizes.root_size[part] = root_encoder.Size(Vec::Load(slot.root + i));
  }

  void Store(int64_t start, const Sizes& sizes) const {
    Vec::StoreCodes(slot.block.m_codes + start, sizes.m_size, sizes.m);
    Vec::StoreCodes(slot.block.root_codes + start, sizes.root_size);
  }

  void Whole() const {
    for (int64_t start = 0; start < slot.block.numel; start += kGroup) {
      Sizes sizes;
      for (int part = 0; part < 4; ++part) Vector(start + part * Vec::kLanes, part, sizes);
      Store(start, sizes);
    }
  }

  const Slot<P, G>& slot;
  const Encoder m_encoder, root_encoder;
};

// Updates one block while another is encoded. Returns the extent of the first.
template <class P, class G>
Extent AdvanceAndEncode(const Step& step, Slot<P, G>& now, Extent absmax, const Slot<P, G>& before) {
  Advance<true, P, G> advance(step, now);
  const Encode<P, G> encode(before);
  advance.Decode(absmax);
  if (now.block.numel != before.block.numel) {
    for (int64_t i = 0; i < now.block.numel; i += Vec::kLanes) advance.Update(i);
    encode.Whole();
    return advance.Finish();
  }
  for (int64_t start = 0; start < now.block.numel; start += kGroup) {
    typename Encode<P, G>::Sizes sizes;
    for (int part = 0; part < 4; ++part) {
      advance.Update(start + part * Vec::kLanes);
      encode.Vector(start + part * Vec::kLanes, part, sizes);
    }
    encode.Store(start, sizes);
  }
  return advance.Finish();
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
  slots[1].Take({});  // nothing comes before the first block
  slots[1].absmax = {0, 0};
  int64_t last = 1;
  ForEachBlock<P, G>(run, [&](const Block<P, G>& block, int64_t index) {
    Slot<P, G>&before = slots[last], &now = slots[1 - last];
    now.Take(block);
    now.absmax = scales.Replace(index, AdvanceAndEncode(step, now, scales.Old(index), before));
    now.GiveBackParams();
    before.GiveBackCodes();
    last = 1 - last;
  });
  Encode<P, G>(slots[last]).Whole();
  slots[last].GiveBackCodes();
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
    Advance<false, P, G> advance(step, slot);
    advance.Decode(scales.Old(index));
    for (int64_t i = 0; i < slot.block.numel; i += Vec::kLanes) advance.Update(i);
    const Extent extent = advance.Finish();
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

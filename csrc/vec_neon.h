// NEON of AArch64: 4 floats.

#pragma once

#include <arm_neon.h>

#include "codebook.h"
#include "numbers.h"

namespace pagedopt {
namespace {

struct Vec {
  static constexpr int kLanes = 4;
  static constexpr int kLookup = 8;
  using F = float32x4_t;
  using I = int32x4_t;
  using M = uint32x4_t;

  static F Set(float x) { return vdupq_n_f32(x); }
  static F Load(const float* p) { return vld1q_f32(p); }
  static F Load(const Bfloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
  }
  static F Load(const Float16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
  }
  static void Store(float* p, F x) { vst1q_f32(p, x); }
  static void Store(Bfloat16* p, F x) {
    const uint32x4_t bits = AsBits(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t number = vbslq_u32(vceqq_f32(x, x), rounded, vdupq_n_u32(0x7fc00000));
    vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(number, 16));
  }
  static void Store(Float16* p, F x) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(x)));
  }
  template <class T>
  static void StorePair(T* p, F a, F b) {
    Store(p, a);
    Store(p + kLanes, b);
  }

  static F Add(F a, F b) { return vaddq_f32(a, b); }
  static F Sub(F a, F b) { return vsubq_f32(a, b); }
  static F Mul(F a, F b) { return vmulq_f32(a, b); }
  static F Div(F a, F b) { return vdivq_f32(a, b); }
  static F Sqrt(F a) { return vsqrtq_f32(a); }
  static F Fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // Of a NaN and a number, the number: what the others do for a NaN in `a`. In `b` there is none.
  static F Min(F a, F b) { return vminnmq_f32(a, b); }
  static F Max(F a, F b) { return vmaxnmq_f32(a, b); }
  static F MaxOrNan(F a, F b) { return vmaxq_f32(a, b); }
  static F Clamp(F x, F low, F high) { return vminq_f32(vmaxq_f32(x, low), high); }
  static F Abs(F a) { return vabsq_f32(a); }

  static F MinAbs(F x, F limit) { return Clamp(x, vnegq_f32(limit), limit); }
  static F MaxAbs(F a, F b) { return Max(vabsq_f32(a), b); }
  static float Largest(F a) { return vmaxvq_f32(a); }
  static void Largest(F a, F b, float& of_a, float& of_b) {
    of_a = Largest(a);
    of_b = Largest(b);
  }

  static M Less(F a, F b) { return vcltq_f32(a, b); }
  static M AtMost(F a, F b) { return vcleq_f32(a, b); }
  static M NotZero(F a) { return vmvnq_u32(vceqzq_f32(a)); }
  static M AndPositive(M m, F a) { return vandq_u32(m, vcgtzq_f32(a)); }
  static M And(M a, M b) { return vandq_u32(a, b); }
  static M Always() { return vdupq_n_u32(0xffffffff); }
  static bool All(M m) { return vminvq_u32(m) != 0; }
  static F Select(M m, F yes, F no) { return vbslq_f32(m, yes, no); }
  static F OrZero(M m, F a) { return vreinterpretq_f32_u32(vandq_u32(m, AsBits(a))); }
  static I OrZero(M m, I a) { return vandq_s32(vreinterpretq_s32_u32(m), a); }

  static F ToFloat(I a) { return vcvtq_f32_s32(a); }
  static I Exponent(F a) { return vreinterpretq_s32_u32(vshrq_n_u32(AsBits(a), 23)); }
  static I Mantissa24(F a, I shift) {
    return vshlq_s32(vreinterpretq_s32_u32(vandq_u32(AsBits(a), vdupq_n_u32(0xffffff))), vnegq_s32(shift));
  }
  static I AbsInt(I a) { return vabsq_s32(a); }
  static F NegateWhere(I negative, F a) {
    const uint32x4_t sign = vandq_u32(vreinterpretq_u32_s32(negative), vdupq_n_u32(0x80000000));
    return vreinterpretq_f32_u32(veorq_u32(AsBits(a), sign));
  }

  struct Table {
    explicit Table(const float* entries)
        : bytes_{{vreinterpretq_u8_f32(vld1q_f32(entries)), vreinterpretq_u8_f32(vld1q_f32(entries + 4))}} {}
    F operator[](I index) const {  // bytes 4i .. 4i + 3 of the table for entry i
      const I entry = vandq_s32(index, vdupq_n_s32(7));
      const I bytes = vmlaq_s32(vdupq_n_s32(0x03020100), entry, vdupq_n_s32(0x04040404));
      return vreinterpretq_f32_u8(vqtbl2q_u8(bytes_, vreinterpretq_u8_s32(bytes)));
    }
    uint8x16x2_t bytes_;
  };

  struct Pieces {
    explicit Pieces(const Codebook& book)
        : log_factor_(vdupq_n_s32(book.log_factor << 15)),
          shift_at_log_0_(vdupq_n_s32(book.shift_at_log_0)),
          next_threshold_(book.next_threshold) {}
    I ShiftOf(F x) const {
      const I log = vqdmulhq_s32(Exponent(x), log_factor_);  // the upper half of twice the product
      return vaddq_s32(vsubq_s32(shift_at_log_0_, log), vreinterpretq_s32_u32(AtMost(next_threshold_[log], x)));
    }
    I log_factor_, shift_at_log_0_;
    Table next_threshold_;
  };

  static I LoadCodes(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
  }
  static I LoadCodes(const uint8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, 4);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
  }
  static F CodesPlus(const uint8_t* p, float bias) { return Add(ToFloat(LoadCodes(p)), Set(bias)); }
  static void StoreCodes(int8_t* p, const I (&size)[4], const F (&value)[4]) {
    const uint8x16_t negative = vcltzq_s8(vreinterpretq_s8_u8(HighBytes(value)));
    const uint8x16_t limit = vaddq_u8(vdupq_n_u8(128), negative);  // 128, or 127 below zero
    const uint8x16_t code = vminq_u8(LowBytes(LowHalves(size[0], size[1]), LowHalves(size[2], size[3])), limit);
    vst1q_u8(reinterpret_cast<uint8_t*>(p), vsubq_u8(veorq_u8(code, negative), negative));
  }
  static void StoreCodes(uint8_t* p, const I (&code_and_one)[4]) {
    const uint16x8_t one = vdupq_n_u16(1);
    const uint16x8_t low = vqsubq_u16(LowHalves(code_and_one[0], code_and_one[1]), one);
    const uint16x8_t high = vqsubq_u16(LowHalves(code_and_one[2], code_and_one[3]), one);
    vst1q_u8(p, LowBytes(low, high));
  }

 private:
  static uint32x4_t AsBits(F a) { return vreinterpretq_u32_f32(a); }
  static uint16x8_t LowHalves(I a, I b) { return vuzp1q_u16(vreinterpretq_u16_s32(a), vreinterpretq_u16_s32(b)); }
  static uint8x16_t LowBytes(uint16x8_t a, uint16x8_t b) {
    return vuzp1q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b));
  }
  static uint8x16_t HighBytes(const F (&x)[4]) {  // with the signs
    const uint16x8_t low = vuzp2q_u16(vreinterpretq_u16_f32(x[0]), vreinterpretq_u16_f32(x[1]));
    const uint16x8_t high = vuzp2q_u16(vreinterpretq_u16_f32(x[2]), vreinterpretq_u16_f32(x[3]));
    return vuzp2q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
  }
};

}  // namespace
}  // namespace pagedopt

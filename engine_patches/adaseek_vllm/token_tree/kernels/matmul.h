// Small matrix products and exponentials on vectors of 16 floats, for any CPU the compiler knows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

using Vec = float __attribute__((vector_size(64), aligned(4)));
using Ints = int32_t __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;
constexpr int64_t kTile = 128;  // tokens whose scores are worked on at once

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec vec) { *reinterpret_cast<Vec*>(to) = vec; }
inline Vec filled(float value) { return Vec{} + value; }

// c[R][16 W] (+)= a[R][k] b[k][16 W], with all of c in registers.
template <bool kAdd, int R, int W>
inline void multiply_block(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                           int64_t ldc, int64_t k) {
  Vec sums[R][W];
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) sums[r][w] = kAdd ? load(c + r * ldc + w * kLanes) : Vec{};
  }
  for (int64_t i = 0; i < k; ++i) {
    Vec row[W];
    for (int w = 0; w < W; ++w) row[w] = load(b + i * ldb + w * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec factor = filled(a[r * lda + i]);
      for (int w = 0; w < W; ++w) sums[r][w] += factor * row[w];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) store(c + r * ldc + w * kLanes, sums[r][w]);
  }
}

template <bool kAdd, int W>
void multiply_columns(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                      int64_t ldc, int64_t m, int64_t k) {
  int64_t r = 0;
  for (; r + 6 <= m; r += 6) {
    multiply_block<kAdd, 6, W>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, k);
  }
  for (; r + 2 <= m; r += 2) {
    multiply_block<kAdd, 2, W>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, k);
  }
  for (; r < m; ++r) multiply_block<kAdd, 1, W>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, k);
}

// c[m][n] (+)= a[m][k] b[k][n], all with rows one after another; n is a multiple of 16.
template <bool kAdd>
void multiply(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
              int64_t m, int64_t n, int64_t k) {
  int64_t column = 0;
  for (; column + 4 * kLanes <= n; column += 4 * kLanes) {
    multiply_columns<kAdd, 4>(a, lda, b + column, ldb, c + column, ldc, m, k);
  }
  for (; column < n; column += kLanes) {
    multiply_columns<kAdd, 1>(a, lda, b + column, ldb, c + column, ldc, m, k);
  }
}

// 2 ** x for x <= 0 with a relative error below 3e-7; what is below 2 ** -126 becomes that.
inline Vec power_of_two(Vec x) {
  const Vec lowest = filled(-126.0f);
  x = x > lowest ? x : lowest;
  // x = whole + r with |r| <= 1/2; a conversion cuts off towards zero.
  const Ints whole = __builtin_convertvector(x - 0.5f, Ints);
  const Vec r = x - __builtin_convertvector(whole, Vec);
  Vec p = filled(1.3333558e-3f);
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  // The exponent's field of a float starts at bit 23.
  Ints bits;
  std::memcpy(&bits, &p, sizeof(bits));
  bits += whole << 23;
  std::memcpy(&p, &bits, sizeof(bits));
  return p;
}

// Vectors of half the lanes: what a sum or maximum over lanes is folded into.
using Half = float __attribute__((vector_size(32)));
using Quarter = float __attribute__((vector_size(16)));

template <typename Part, typename Whole>
inline Part part_of(const Whole& whole, int index) {
  Part part;
  std::memcpy(&part, reinterpret_cast<const char*>(&whole) + index * sizeof(Part), sizeof(Part));
  return part;
}

inline float sum_of(Vec vec) {
  const Half half = part_of<Half>(vec, 0) + part_of<Half>(vec, 1);
  const Quarter quarter = part_of<Quarter>(half, 0) + part_of<Quarter>(half, 1);
  return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
}

inline float maximum_of(Vec vec) {
  const Half a = part_of<Half>(vec, 0), b = part_of<Half>(vec, 1), half = a > b ? a : b;
  const Quarter c = part_of<Quarter>(half, 0), d = part_of<Quarter>(half, 1);
  const Quarter quarter = c > d ? c : d;
  return std::max(std::max(quarter[0], quarter[1]), std::max(quarter[2], quarter[3]));
}

inline float maximum(const float* row, int64_t width) {
  Vec highest = load(row);
  for (int64_t i = kLanes; i < width; i += kLanes) {
    const Vec vec = load(row + i);
    highest = vec > highest ? vec : highest;
  }
  return maximum_of(highest);
}

// Turns a tile's row into e ** (factor * row - highest), and returns the sum.
inline float exponentiate(float* row, int64_t width, float factor, float highest) {
  constexpr float kLog2OfE = 1.44269504f;
  const Vec scale = filled(factor * kLog2OfE), shift = filled(highest * kLog2OfE);
  Vec sums{};
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec weight = power_of_two(load(row + i) * scale - shift);
    store(row + i, weight);
    sums += weight;
  }
  return sum_of(sums);
}

}  // namespace

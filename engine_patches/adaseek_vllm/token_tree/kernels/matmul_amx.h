// Products with Intel's matrix units (AMX) on KV caches in the layout that vLLM writes for them.
#pragma once

#include <c10/util/BFloat16.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "matmul.h"

namespace {

constexpr int64_t kQueries = 32;     // queries that are worked on at once
constexpr int64_t kLongTile = 4096;  // tokens whose scores are: 512 KiB of them

// While it lives, this thread's eight tiles have rows of 64 bytes: `rows` of them, or all 16 if the
// tile is for a right operand.
class MatrixUnits {
 public:
  explicit MatrixUnits(int64_t rows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = 64;
      config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : 16);
    }
    _tile_loadconfig(&config);
  }
  ~MatrixUnits() { _tile_release(); }
  MatrixUnits(const MatrixUnits&) = delete;
  MatrixUnits& operator=(const MatrixUnits&) = delete;

  // Asks the kernel for the tiles' state, for all threads of the process.
  static bool permitted() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }
};

// Multiplies up to 32 rows of `a`, of which the last 16 only count if `two`, by 32 columns, and
// leaves the sums in tiles 0 to 3. Tiles 4 and 5 are rows of `a`, 6 and 7 columns of `b`.
inline void multiply_tiles(const at::BFloat16* a, int64_t row_elements, const at::BFloat16* b,
                           const at::BFloat16* more_b, bool two) {
  _tile_loadd(4, a, row_elements * 2);
  _tile_loadd(6, b, 64);
  _tile_loadd(7, more_b, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (two) {
    _tile_loadd(5, a + 16 * row_elements, row_elements * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

inline void store_tiles(float* to, int64_t row_elements, bool two) {
  _tile_stored(0, to, row_elements * 4);
  _tile_stored(1, to + 16, row_elements * 4);
  if (two) {
    _tile_stored(2, to + 16 * row_elements, row_elements * 4);
    _tile_stored(3, to + 16 * row_elements + 16, row_elements * 4);
  }
}

// scores[q][0:32] = queries[q][d] keys for 32 tokens and 16 queries, or 32 if `two`.
//   `keys`: [2][d / 2][16][2]; the scores of a query are `stride` after those of the last one.
inline void multiply_keys_amx(const at::BFloat16* queries, const at::BFloat16* keys, float* scores,
                              int64_t stride, int64_t size, bool two) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t d = 0; d < size; d += 32) {
    multiply_tiles(queries + d, size, keys + d * 16, keys + (size + d) * 16, two);
  }
  store_tiles(scores, stride, two);
}

// output[q][d] += weights[q][32 runs] values, for as many queries.
//   `values`: of each run of 32 tokens, per 16 elements of d [16][16][2], each `value_stride`
//   elements after the last.
inline void multiply_values_amx(const at::BFloat16* weights, int64_t weight_stride,
                                const at::BFloat16* const* values, int64_t runs,
                                int64_t value_stride, float* output, int64_t size, bool two) {
  for (int64_t d = 0; d < size; d += 32) {
    float* sums = output + d;
    _tile_loadd(0, sums, size * 4);
    _tile_loadd(1, sums + 16, size * 4);
    if (two) {
      _tile_loadd(2, sums + 16 * size, size * 4);
      _tile_loadd(3, sums + 16 * size + 16, size * 4);
    }
    for (int64_t run = 0; run < runs; ++run) {
      const at::BFloat16* from = values[run] + d / 16 * value_stride;
      multiply_tiles(weights + 32 * run, weight_stride, from, from + value_stride, two);
    }
    store_tiles(sums, size, two);
  }
}

// What follows is what vLLM's kernel computes, operation by operation: rounding is the same.

// Multiplies a row of scores by `factor`, and returns the highest.
inline float scale_amx(float* row, int64_t width, float factor) {
  __m512 highest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < width; i += kLanes) {
    const __m512 scaled = _mm512_loadu_ps(row + i) * _mm512_set1_ps(factor);
    _mm512_storeu_ps(row + i, scaled);
    highest = _mm512_max_ps(highest, scaled);
  }
  return _mm512_reduce_max_ps(highest);
}

// e ** x for x <= 0 with a relative error below 1e-6; 0 for what is below the least normal float.
inline __m512 exponential(__m512 x) {
  constexpr float kLog2OfE = 1.44269504f, kLn2 = 0.693147182f, kLowest = -87.3365479f;
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kLowest), _CMP_GE_OS);
  x = _mm512_max_ps(x, _mm512_set1_ps(kLowest));
  const __m512 nearest = _mm512_fmadd_ps(x, _mm512_set1_ps(kLog2OfE), _mm512_set1_ps(0.5f));
  const __m512 whole = _mm512_floor_ps(nearest);
  const __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(kLn2), x);
  __m512 sum = _mm512_set1_ps(0.00828929059f);
  for (const float next : {0.0418978221f, 0.166676521f, 0.499991506f, 0.999999701f, 1.0f}) {
    sum = _mm512_fmadd_ps(rest, sum, _mm512_set1_ps(next));
  }
  return _mm512_maskz_scalef_ps(counts, sum, whole);
}

// Writes e ** (row - highest), rounded; returns the sum of the exact ones.
inline float exponentiate_amx(const float* row, int64_t width, float highest,
                              at::BFloat16* weights) {
  __m512 sums = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 2 * kLanes) {
    const __m512 first = exponential(_mm512_loadu_ps(row + i) - _mm512_set1_ps(highest));
    const __m512 second = exponential(_mm512_loadu_ps(row + i + kLanes) - _mm512_set1_ps(highest));
    sums = sums + first;
    sums = sums + second;
    const __m512bh packed = _mm512_cvtne2ps_pbh(second, first);
    std::memcpy(weights + i, &packed, sizeof(packed));
  }
  return _mm512_reduce_add_ps(sums);
}

}  // namespace

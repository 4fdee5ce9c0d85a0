// Attention of tree rows over a paged KV cache, in one pass with an online softmax.
//
// Cache layout (vLLM's vector kernels): per block and KV head first the keys, transposed, [d][s],
// then the values, [s][d]. Queries of all rows and all query heads of a KV head are one tile, so
// keys and values are read once. Plain loops: the compiler vectorises them for the machine at hand
// (-march=native), over slots for the scores and over the head size for the values.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

constexpr int64_t kSlots = 32;  // slots of a block that are worked on at once
constexpr int64_t kRows = 8;    // rows whose scores stay in registers together

struct Problem {
  int64_t num_rows, num_heads, num_kv_heads, size, block_size, num_context, num_tokens, window;
  int64_t block_stride, head_stride;
  double scale, softcap;
  const int32_t* blocks;
  const uint64_t* words;
  int64_t num_words;
  const int32_t* depths;
};

// Whether a row sees a token: the context always, the tree along its branch, and not too far back.
inline bool sees(const Problem& p, int64_t row, int64_t token) {
  const int64_t node = token - p.num_context;
  if (node >= p.num_tokens - p.num_context) return false;
  if (node >= 0 && !(p.words[row * p.num_words + node / 64] >> (node % 64) & 1)) return false;
  if (p.window <= 0) return true;
  const int64_t position = node < 0 ? token : p.num_context + p.depths[node];
  return p.num_context + p.depths[row] - position < p.window;
}

// scores[q][s] = sum_d query[q][d] * keys[d][s], for kRows rows at a time.
template <typename T>
void multiply_keys(const Problem& p, const float* query, int64_t num_queries, const T* keys,
                   float* scores) {
  for (int64_t q = 0; q < num_queries; q += kRows) {
    float sums[kRows][kSlots] = {};
    const int64_t count = std::min(kRows, num_queries - q);
    for (int64_t d = 0; d < p.size; ++d) {
      float key[kSlots];
      for (int64_t s = 0; s < kSlots; ++s) key[s] = static_cast<float>(keys[d * p.block_size + s]);
      for (int64_t r = 0; r < kRows; ++r) {
        const float factor = query[(q + std::min(r, count - 1)) * p.size + d];
        for (int64_t s = 0; s < kSlots; ++s) sums[r][s] += factor * key[s];
      }
    }
    for (int64_t r = 0; r < count; ++r) std::copy_n(sums[r], kSlots, scores + (q + r) * kSlots);
  }
}

// output[q][d] += sum_s weights[q][s] * values[s][d]; slots that hold no token are never read.
template <typename T>
void multiply_values(const Problem& p, const float* weights, int64_t num_queries, const T* values,
                     int64_t num_slots, float* value, float* output) {
  for (int64_t s = 0; s < num_slots; ++s) {
    for (int64_t d = 0; d < p.size; ++d) value[d] = static_cast<float>(values[s * p.size + d]);
    for (int64_t q = 0; q < num_queries; ++q) {
      const float weight = weights[q * kSlots + s];
      float* sum = output + q * p.size;
      for (int64_t d = 0; d < p.size; ++d) sum[d] += weight * value[d];
    }
  }
}

// Turns scores into weights relative to the running maximum, and rescales what was summed before.
void update_softmax(const Problem& p, int64_t groups, int64_t num_queries, int64_t first_token,
                    float* scores, float* maxima, float* sums, float* output) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const bool all_seen = p.window <= 0 && first_token + kSlots <= p.num_context;
  for (int64_t q = 0; q < num_queries; ++q) {
    float* row = scores + q * kSlots;
    if (p.softcap > 0) {
      const float cap = static_cast<float>(p.softcap);
      for (int64_t s = 0; s < kSlots; ++s) row[s] = cap * std::tanh(row[s] / cap);
    }
    if (!all_seen) {
      for (int64_t s = 0; s < kSlots; ++s) {
        if (!sees(p, q / groups, first_token + s)) row[s] = kNever;
      }
    }
    float highest = maxima[q];
    for (int64_t s = 0; s < kSlots; ++s) highest = std::max(highest, row[s]);
    if (highest == kNever) {
      std::fill_n(row, kSlots, 0.0f);
      continue;
    }
    const float rescale = std::exp(maxima[q] - highest);
    float sum = 0.0f;
    for (int64_t s = 0; s < kSlots; ++s) {
      row[s] = std::exp(row[s] - highest);
      sum += row[s];
    }
    sums[q] = sums[q] * rescale + sum;
    maxima[q] = highest;
    if (rescale != 1.0f) {
      float* summed = output + q * p.size;
      for (int64_t d = 0; d < p.size; ++d) summed[d] *= rescale;
    }
  }
}

template <typename T>
void attend_head(const Problem& p, int64_t head, const T* query, const T* cache, T* output) {
  const int64_t groups = p.num_heads / p.num_kv_heads;
  const int64_t num_queries = p.num_rows * groups;
  std::vector<float> queries(num_queries * p.size), summed(num_queries * p.size, 0.0f);
  std::vector<float> scores(num_queries * kSlots), value(p.size), sums(num_queries, 0.0f);
  std::vector<float> maxima(num_queries, -std::numeric_limits<float>::infinity());
  const auto place = [&](int64_t q) {
    return ((q / groups) * p.num_heads + head * groups + q % groups) * p.size;
  };
  for (int64_t q = 0; q < num_queries; ++q) {
    for (int64_t d = 0; d < p.size; ++d) {
      queries[q * p.size + d] =
          static_cast<float>(query[place(q) + d]) * static_cast<float>(p.scale);
    }
  }
  for (int64_t token = 0; token < p.num_tokens; token += kSlots) {
    const int64_t slot = token % p.block_size;
    const T* block =
        cache + p.blocks[token / p.block_size] * p.block_stride + head * p.head_stride;
    // A slot tile never crosses a block, but the last one may hold slots nobody wrote.
    const int64_t num_slots = std::min({kSlots, p.block_size - slot, p.num_tokens - token});
    if (p.block_size - slot >= kSlots) {
      multiply_keys(p, queries.data(), num_queries, block + slot, scores.data());
    } else {
      TORCH_CHECK(false, "the block size must be a multiple of ", kSlots);
    }
    update_softmax(p, groups, num_queries, token, scores.data(), maxima.data(), sums.data(),
                   summed.data());
    const T* values = block + p.block_size * p.size + slot * p.size;
    multiply_values(p, scores.data(), num_queries, values, num_slots, value.data(), summed.data());
  }
  for (int64_t q = 0; q < num_queries; ++q) {
    for (int64_t d = 0; d < p.size; ++d) {
      output[place(q) + d] = static_cast<T>(summed[q * p.size + d] / sums[q]);
    }
  }
}

}  // namespace

// Adds nothing to `output` but the rows of one request.
//   query, output: [rows, heads, d]; cache: [blocks, KV heads, s, 2 d]; blocks: [blocks] int32;
//   words: [rows, words] int64 (the bits of an unsigned mask); depths: [rows] int32.
void tree_attention(torch::Tensor query, torch::Tensor cache, torch::Tensor blocks,
                    torch::Tensor words, torch::Tensor depths, torch::Tensor output,
                    int64_t num_context, double scale, double softcap, int64_t window) {
  TORCH_CHECK(query.stride(2) == 1 && query.stride(1) == query.size(2) &&
                  query.stride(0) == query.size(1) * query.size(2),
              "query must be contiguous");
  TORCH_CHECK(output.is_contiguous() && words.is_contiguous() && depths.is_contiguous());
  TORCH_CHECK(blocks.is_contiguous() && blocks.scalar_type() == torch::kInt32);
  TORCH_CHECK(cache.stride(3) == 1 && cache.stride(2) == cache.size(3));
  TORCH_CHECK(cache.size(2) % kSlots == 0, "the block size must be a multiple of ", kSlots);
  TORCH_CHECK(query.scalar_type() == cache.scalar_type());
  Problem p{};
  p.num_rows = query.size(0);
  p.num_heads = query.size(1);
  p.size = query.size(2);
  p.num_kv_heads = cache.size(1);
  p.block_size = cache.size(2);
  p.num_context = num_context;
  p.num_tokens = num_context + p.num_rows;
  p.window = window;
  p.block_stride = cache.stride(0);
  p.head_stride = cache.stride(1);
  p.scale = scale;
  p.softcap = softcap;
  p.blocks = blocks.data_ptr<int32_t>();
  p.words = reinterpret_cast<const uint64_t*>(words.data_ptr<int64_t>());
  p.num_words = words.size(1);
  p.depths = depths.data_ptr<int32_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, query.scalar_type(), "tree_attention", [&] {
        at::parallel_for(0, p.num_kv_heads, 1, [&](int64_t begin, int64_t end) {
          for (int64_t head = begin; head < end; ++head) {
            attend_head<scalar_t>(p, head, query.data_ptr<scalar_t>(), cache.data_ptr<scalar_t>(),
                                  output.data_ptr<scalar_t>());
          }
        });
      });
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("tree_attention", &tree_attention, "Attention of one request's tree rows");
}

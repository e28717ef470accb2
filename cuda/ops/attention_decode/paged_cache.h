// What the tests of both attention kernels run on: sequences whose keys and values lie scattered over a pool.
//
// Everything that no sequence owns is NaN: other blocks, and the slots of a block beyond the sequence's last token.
// Table entries beyond a sequence's last block point far outside the pool.
#pragma once

#include "../../test/harness.h"
#include "worker_cuda.h"

#include <memory>

struct Heads {
    uint32_t n_heads, n_kv_heads, d_head, d_head_pad;
    uint32_t out_pitch() const { return (n_heads * d_head + 31) / 32 * 32; }
};

struct Sequence {
    uint32_t n_tokens, table_start;
    std::vector<float> k, v;  // [n_tokens, n_kv_heads, d_head], values that halves can hold
};

class PagedCache {
  public:
    PagedCache(const Heads &heads, const std::vector<uint32_t> &n_tokens, harness::Random &random) {
        uint32_t n_used = 0;
        for (uint32_t n : n_tokens) n_used += (n + 15) / 16;
        std::vector<uint32_t> free(n_used + 5);
        for (uint32_t i = 0; i < free.size(); i++) free[i] = i;
        for (uint32_t i = (uint32_t)free.size() - 1; i > 0; i--) std::swap(free[i], free[random.below(i + 1)]);

        const size_t a_block = (size_t)heads.n_kv_heads * 16 * heads.d_head_pad;
        const __half nan = __ushort_as_half(0x7FFF), zero = __ushort_as_half(0);
        std::vector<__half> k(free.size() * a_block, nan), v(free.size() * a_block, nan);
        for (uint32_t n : n_tokens) {
            table_.resize(table_.size() + random.below(3), 0x7FFFFFFFu);
            Sequence s{n, (uint32_t)table_.size(), {}, {}};
            const size_t n_values = (size_t)n * heads.n_kv_heads * heads.d_head;
            s.k = harness::to_float(harness::to_half(random.normals(n_values)));
            s.v = harness::to_float(harness::to_half(random.normals(n_values)));
            for (uint32_t t = 0; t < n; t++) {
                if (t % 16 == 0) {
                    table_.push_back(free.back());
                    free.pop_back();
                }
                for (uint32_t h = 0; h < heads.n_kv_heads; h++) {
                    const size_t to = ((table_.back() * (size_t)heads.n_kv_heads + h) * 16 + t % 16) * heads.d_head_pad;
                    const size_t from = ((size_t)t * heads.n_kv_heads + h) * heads.d_head;
                    for (uint32_t i = 0; i < heads.d_head_pad; i++) {
                        k[to + i] = i < heads.d_head ? __float2half_rn(s.k[from + i]) : zero;
                        v[to + i] = i < heads.d_head ? __float2half_rn(s.v[from + i]) : zero;
                    }
                }
            }
            sequences.push_back(std::move(s));
        }
        table_.push_back(0x7FFFFFFFu);
        k_.reset(new harness::Guarded<__half>(k));
        v_.reset(new harness::Guarded<__half>(v));
        d_table_.reset(new harness::Guarded<uint32_t>(table_));
    }

    const orcd_f16 *k_pool() const { return reinterpret_cast<orcd_f16 *>(k_->get()); }
    const orcd_f16 *v_pool() const { return reinterpret_cast<orcd_f16 *>(v_->get()); }
    const uint32_t *block_table() const { return d_table_->get(); }

    std::vector<Sequence> sequences;

  private:
    std::vector<uint32_t> table_;
    std::unique_ptr<harness::Guarded<__half>> k_, v_;
    std::unique_ptr<harness::Guarded<uint32_t>> d_table_;
};

// Tolerances: a table entry is a double rounded to F32, 2^-24, so 1e-7. Queries see one more rounding and one in the
// fused multiply-add: 2e-7 of the 2-norm. Keys and values are rounded to halves, 2^-12 at most.
#include "../../test/harness.h"
#include "reference.h"
#include "worker_cuda.h"

using namespace harness;

namespace {

constexpr uint32_t kPadding = 0xFFFFFFFFu;

std::vector<double> frequencies(uint32_t n_rope, double base) {
    std::vector<double> out;
    for (uint32_t i = 0; i < n_rope / 2; i++) out.push_back(std::pow(base, -2.0 * i / n_rope));
    return out;
}

void fill_table(const Guarded<double> &inv_freq, const Guarded<float> &table, uint32_t n_ctx, uint32_t n_rope) {
    orcd_rope_table_args a{};
    a.inv_freq = inv_freq.get();
    a.cos_sin = table.get();
    a.n_ctx = n_ctx;
    a.n_rope = n_rope;
    CUDA(orcd_rope_table(&a, nullptr));
}

}  // namespace

TEST(rope_table_is_right_at_every_position) {
    for (uint32_t n_rope : {2u, 10u, 64u}) {
        const uint32_t n_ctx = 32768;
        const std::vector<double> inv_freq = frequencies(n_rope, 1e6);
        Guarded<double> d_inv_freq(inv_freq);
        Guarded<float> table((size_t)n_ctx * n_rope);
        fill_table(d_inv_freq, table, n_ctx, n_rope);
        const std::vector<float> got = table.read();
        double worst = 0;
        for (uint32_t p = 0; p < n_ctx; p++)
            for (uint32_t i = 0; i < n_rope / 2; i++) {
                const float *at = &got[((size_t)p * (n_rope / 2) + i) * 2];
                worst = std::fmax(worst, std::fabs(at[0] - std::cos(p * inv_freq[i])));
                worst = std::fmax(worst, std::fabs(at[1] - std::sin(p * inv_freq[i])));
            }
        CHECK(worst < 1e-7, "%u values turn: off by %g", n_rope, worst);
    }
}

TEST(rope_append_turns_queries_and_keys_and_appends) {
    Random random(71);
    struct Shape {
        uint32_t n_heads, n_kv_heads, d_head, d_head_pad, n_rope, adjacent;
    };
    const Shape shapes[] = {{14, 2, 64, 64, 64, 0}, {3, 1, 12, 16, 12, 0},    {3, 3, 20, 32, 20, 1},
                            {4, 1, 18, 32, 18, 0},  {8, 2, 80, 128, 32, 0},   {8, 8, 64, 64, 26, 1},
                            {2, 1, 256, 256, 0, 0}, {17, 1, 128, 128, 128, 1}};
    for (const Shape &h : shapes) {
        // Three sequences, in blocks scattered over a pool of 12; the second's rows come in between the first's.
        const std::vector<uint32_t> table = {7, 2, 99, 11, 0, 5};
        const std::vector<uint32_t> positions = {0, 15, 16, kPadding, 31, 3, 16, 47, 1};
        const std::vector<uint32_t> starts = {0, 3, 0, 0x7FFFFFFFu, 0, 3, 3, 3, 0};
        const uint32_t n_tokens = (uint32_t)positions.size(), n_pool = 12, n_ctx = 48;
        const uint32_t width = (h.n_heads + 2 * h.n_kv_heads) * h.d_head;
        std::vector<float> qkv = random.normals((size_t)n_tokens * width, 10.0f);
        for (uint32_t i = 0; i < h.d_head; i++)
            qkv[(h.n_heads + h.n_kv_heads) * h.d_head + i] *= 1e5f;  // values beyond halves
        const std::vector<double> inv_freq = frequencies(h.n_rope, 1e4);
        Guarded<double> d_inv_freq(inv_freq);
        Guarded<float> cos_sin((size_t)n_ctx * h.n_rope);
        fill_table(d_inv_freq, cos_sin, n_ctx, h.n_rope);
        Guarded<float> d_qkv(qkv), q((size_t)n_tokens * h.n_heads * h.d_head);
        const size_t a_block = (size_t)h.n_kv_heads * 16 * h.d_head_pad;
        Guarded<__half> k(n_pool * a_block), v(n_pool * a_block);
        Guarded<uint32_t> d_table(table), d_starts(starts), d_positions(positions);
        orcd_rope_append_args a{};
        a.qkv = d_qkv.get();
        a.cos_sin = cos_sin.get();
        a.q = q.get();
        a.k_pool = reinterpret_cast<orcd_f16 *>(k.get());
        a.v_pool = reinterpret_cast<orcd_f16 *>(v.get());
        a.block_table = d_table.get();
        a.table_start = d_starts.get();
        a.positions = d_positions.get();
        a.n_tokens = n_tokens;
        a.n_heads = h.n_heads;
        a.n_kv_heads = h.n_kv_heads;
        a.d_head = h.d_head;
        a.d_head_pad = h.d_head_pad;
        a.n_rope = h.n_rope;
        a.rope_adjacent = h.adjacent;
        CUDA(orcd_rope_append(&a, nullptr));

        const std::vector<float> got_q = q.read();
        const std::vector<__half> got_k = k.read(), got_v = v.read();
        std::vector<bool> is_written(got_k.size(), false);
        for (uint32_t row = 0; row < n_tokens; row++) {
            const bool pads = positions[row] == kPadding;
            auto head_of = [&](uint32_t head, bool turns) {
                const auto from = qkv.begin() + (size_t)row * width + (size_t)head * h.d_head;
                std::vector<double> out(from, from + h.d_head);
                if (turns) rope_append_reference(out, inv_freq, h.adjacent, positions[row]);
                return out;
            };
            for (uint32_t head = 0; head < h.n_heads; head++) {
                const auto at = got_q.begin() + ((size_t)row * h.n_heads + head) * h.d_head;
                const std::vector<float> got(at, at + h.d_head);
                const std::vector<double> want = pads ? std::vector<double>(h.d_head, 0.0) : head_of(head, true);
                CHECK(relative_error(got, want) < 2e-7, "d_head %u: query off by %g", h.d_head,
                      relative_error(got, want));
            }
            if (pads) continue;
            for (uint32_t head = 0; head < h.n_kv_heads; head++) {
                const std::vector<double> keys = head_of(h.n_heads + head, true),
                                          values = head_of(h.n_heads + h.n_kv_heads + head, false);
                const size_t block = table[starts[row] + positions[row] / 16];
                for (uint32_t i = 0; i < h.d_head_pad; i++) {
                    const size_t slot = ((block * h.n_kv_heads + head) * 16 + positions[row] % 16) * h.d_head_pad + i;
                    is_written[slot] = true;
                    auto is_close = [&](__half got, double want) {
                        want = std::fmax(-65504.0, std::fmin(65504.0, want));
                        return std::fabs(__half2float(got) - want) <= std::fabs(want) * 0x1.01p-11 + 2e-6;
                    };
                    CHECK(is_close(got_k[slot], i < h.d_head ? keys[i] : 0), "d_head %u, row %u: key %u is off",
                          h.d_head, row, i);
                    CHECK(is_close(got_v[slot], i < h.d_head ? values[i] : 0), "d_head %u, row %u: value %u is off",
                          h.d_head, row, i);
                }
            }
        }
        for (size_t i = 0; i < got_k.size(); i++)
            if (!is_written[i])
                CHECK(__half_as_ushort(got_k[i]) == 0xFFFF && __half_as_ushort(got_v[i]) == 0xFFFF,
                      "slot %zu was written", i);
    }
}

// Tolerances: an F16 product is exact in F32 and F32 sums of n terms err by some sqrt(n) 2^-24 of their size, so 1e-5 is ample
// where weights are used as they are: halves, and quantised numbers whose scales come after. F32 weights are rounded to 11 bits, by
// 2^-12 at most. Over many terms that averages to 1.4e-4; a single short row, whose terms may cancel, has been seen at 3.4e-4. So 6e-4.
#include "../../test/matrices.h"
#include "reference.h"
#include "tiles.h"

using namespace harness;

namespace {

double tolerance(uint32_t format) {
    return format == ORCD_FORMAT_F32 ? 6e-4 : 1e-5;
}

std::vector<double> summed(const std::vector<float> &splits, uint32_t n_splits) {
    std::vector<double> out(splits.size() / n_splits);
    for (size_t i = 0; i < splits.size(); i++) out[i % out.size()] += splits[i];
    return out;
}

struct Shape {
    uint32_t n_rows, n_cols;
};

}  // namespace

TEST(decode_matmul_is_close_to_the_reference) {
    Random random(1);
    const Shape shapes[] = {{1, 32}, {17, 36}, {61, 42}, {131, 84}, {52, 60}, {896, 896}, {1000, 256}, {33, 512}, {256, 4864}};
    for (uint32_t format = 0; format < ORCD_N_FORMATS; format++) {
        for (Shape shape : shapes) {
            if (shape.n_cols % block_of(format)) continue;
            TestMatrix w(format, shape.n_rows, shape.n_cols, random, 0.05f);
            for (uint32_t n_tokens : {1u, 2u, 7u, 8u, 9u, 16u, 17u, 33u}) {
                if (few_cases() && n_tokens % 8 != 1) continue;
                TestActivations x(n_tokens, shape.n_cols, 0.25f, random);
                std::vector<float> row_unscale(n_tokens);
                for (float &v : row_unscale) v = std::ldexp(1.0f, (int)random.below(5));
                Guarded<float> unscale(row_unscale);
                const uint32_t n_splits = orcd_decode_matmul_splits(shape.n_rows, shape.n_cols);
                Guarded<float> out((size_t)n_splits * n_tokens * shape.n_rows);
                orcd_decode_matmul_args a{};
                a.w[0] = w.matrix;
                a.x = x.get();
                a.x_pitch = x.pitch;
                a.x_unscale = 4.0f;
                a.row_unscale = unscale.get();
                a.n_tokens = n_tokens;
                a.n_splits = n_splits;
                a.output = ORCD_DECODE_STORE;
                a.out = out.get();
                CUDA(orcd_decode_matmul(&a, nullptr));
                std::vector<double> want = matmul_reference(w.values, x.values, n_tokens, shape.n_rows, shape.n_cols);
                for (size_t i = 0; i < want.size(); i++) want[i] *= row_unscale[i / shape.n_rows];
                const double error = relative_error(summed(out.read(), n_splits), want);
                CHECK(error < tolerance(format), "%s [%u, %u], %u tokens: off by %g", name_of(format), shape.n_rows,
                      shape.n_cols, n_tokens, error);
            }
        }
    }
}

TEST(decode_matmul_gives_a_token_the_same_bits_alone_and_among_256) {
    Random random(2);
    for (uint32_t format = 0; format < ORCD_N_FORMATS; format++) {
        const uint32_t n_tokens = 256, n_splits = 3, n_cols = block_of(format) == 256 ? 768 : 896;
        TestMatrix w(format, 200, n_cols, random, 0.05f);
        TestActivations x(n_tokens, n_cols, 1.0f, random);
        auto run = [&](uint32_t first, uint32_t n) {
            Guarded<float> out((size_t)n_splits * n * 200);
            orcd_decode_matmul_args a{};
            a.w[0] = w.matrix;
            a.x = x.get() + (size_t)first * x.pitch;
            a.x_pitch = x.pitch;
            a.x_unscale = 1.0f;
            a.n_tokens = n;
            a.n_splits = n_splits;
            a.out = out.get();
            CUDA(orcd_decode_matmul(&a, nullptr));
            return out.read();
        };
        const std::vector<float> all = run(0, n_tokens);
        CHECK(same_bits(all, run(0, n_tokens)), "%s: a second run differs", name_of(format));
        for (uint32_t n : {1u, 2u, 8u, 13u, 16u, 32u, 64u}) {
            for (uint32_t first : {0u, 5u, 190u}) {
                const std::vector<float> some = run(first, n);
                bool same = true;
                for (uint32_t split = 0; split < n_splits; split++)
                    for (uint32_t i = 0; i < n * 200; i++)
                        same &= some[split * n * 200 + i] == all[(size_t)split * n_tokens * 200 + first * 200 + i];
                CHECK(same, "%s: %u tokens from %u differ", name_of(format), n, first);
            }
        }
    }
}

// So many rows that each is one warp's, where up to 8 tokens are concerned.
TEST(decode_matmul_gives_a_row_the_same_bits_among_few_rows_and_many) {
    Random random(9);
    for (uint32_t format : {ORCD_FORMAT_Q8_0, ORCD_FORMAT_Q4_0, ORCD_FORMAT_Q5_0, ORCD_FORMAT_Q4_K, ORCD_FORMAT_Q6_K}) {
        // Eight slices of 3, 9 and 8 chunks.
        const uint32_t n_cols = block_of(format) == 256 ? 256 : format == ORCD_FORMAT_Q8_0 ? 288 : 96;
        const uint32_t n_many = 50709, n_few = 2005, n_tokens = 9;
        TestMatrix w(format, n_many, n_cols, random, 0.05f);
        TestActivations x(n_tokens, n_cols, 1.0f, random);
        Guarded<float> residual(random.normals(2 * n_cols)), weight(random.normals(n_cols)), residual_out(2 * n_cols);
        const std::vector<float> row_unscale = {1, 2, 4, 0.5f, 1, 0.25f, 8, 1, 2};
        Guarded<float> unscale(row_unscale);
        auto run = [&](uint32_t n_rows, uint32_t n, bool norm) {
            Guarded<float> out((size_t)n * n_rows);
            orcd_decode_matmul_args a{};
            a.w[0] = w.matrix;
            a.w[0].n_rows = n_rows;
            a.x = x.get();
            a.x_pitch = x.pitch;
            a.x_unscale = 0.5f;
            if (!norm) a.row_unscale = unscale.get();
            a.n_tokens = n;
            a.n_splits = 1;
            a.out = out.get();
            if (norm) {
                a.norm.residual = residual.get();
                a.norm.residual_out = residual_out.get();
                a.norm.weight = weight.get();
                a.norm.eps = 1e-6f;
                a.norm.scale = 8.0f;
            }
            CUDA(orcd_decode_matmul(&a, nullptr));
            return out.read();
        };
        for (bool norm : {false, true}) {
            for (uint32_t n : {1u, 2u, 7u, 8u}) {
                if (norm && n > ORCD_DECODE_NORM_MAX_TOKENS || few_cases() && n % 7 != 1) continue;
                const std::vector<float> few = run(n_few, n, norm), many = run(n_many, n, norm);
                bool same = true;
                for (uint32_t i = 0; i < n * n_few; i++) same &= few[i] == many[(size_t)(i / n_few) * n_many + i % n_few];
                CHECK(same, "%s, %u tokens%s: rows differ", name_of(format), n, norm ? ", normalised" : "");
                if (norm) continue;
                const std::vector<float> among = run(n_many, n_tokens, false);
                CHECK(same_bits(many, std::vector<float>(among.begin(), among.begin() + many.size())), "%s: %u tokens differ from 9",
                      name_of(format), n);
            }
        }
    }
}

TEST(decode_matmul_gate_up_is_close_to_the_reference_beyond_the_range_of_halves) {
    Random random(3);
    // The last shape's activations exceed 65,504.
    for (float deviation : {0.05f, 40.0f}) {
        for (uint32_t d_ff : {1u, 52u, 768u}) {
            // Both in each format, and each format beside another.
            for (uint32_t pair = 0; pair < 2 * ORCD_N_FORMATS; pair++) {
                const uint32_t of_gate = pair / 2, of_up = pair % 2 ? (of_gate + 5) % ORCD_N_FORMATS : of_gate;
                if (d_ff == 768 && pair > 3) continue;
                const uint32_t n_tokens = pair % 4 < 2 ? 19 : 5, d_model = pair < 8 ? 96 : 512;
                if (d_model % block_of(of_gate) || d_model % block_of(of_up)) continue;
                TestMatrix gate(of_gate, d_ff, d_model, random, deviation), up(of_up, d_ff, d_model, random, deviation);
                TestActivations x(n_tokens, d_model, 1.0f, random);
                const uint32_t pitch = (d_ff + 31) / 32 * 32;
                const float scale = deviation > 1 ? std::ldexp(1.0f, -10) : 1.0f;
                Guarded<float> scales(std::vector<float>(n_tokens, scale));
                Guarded<__half> act(std::vector<__half>((size_t)n_tokens * pitch, __float2half_rn(0.0f)));
                Guarded<float> act_f32((size_t)n_tokens * d_ff);
                orcd_decode_matmul_args a{};
                a.w[0] = gate.matrix;
                a.w[1] = up.matrix;
                a.x = x.get();
                a.x_pitch = x.pitch;
                a.x_unscale = 1.0f;
                a.n_tokens = n_tokens;
                a.n_splits = 1;
                a.output = ORCD_DECODE_GATE_UP;
                a.act = reinterpret_cast<orcd_f16 *>(act.get());
                a.act_pitch = pitch;
                a.ffn_scale = scales.get();
                a.act_f32 = act_f32.get();
                CUDA(orcd_decode_matmul(&a, nullptr));
                const std::vector<double> g = matmul_reference(gate.values, x.values, n_tokens, d_ff, d_model);
                const std::vector<double> u = matmul_reference(up.values, x.values, n_tokens, d_ff, d_model);
                std::vector<double> want(g.size()), got(g.size());
                const std::vector<__half> halves = act.read();
                bool pads_are_zero = true;
                for (uint32_t token = 0; token < n_tokens; token++) {
                    for (uint32_t i = 0; i < pitch; i++) {
                        const float v = __half2float(halves[(size_t)token * pitch + i]);
                        if (i < d_ff) {
                            want[token * d_ff + i] = silu_reference(g[token * d_ff + i]) * u[token * d_ff + i];
                            got[token * d_ff + i] = v / scale;
                        } else {
                            pads_are_zero &= v == 0;
                        }
                    }
                }
                // silu amplifies a gate's error of 3e-4 of |gate| by up to |gate|: what its exponential sees.
                const double error = relative_error(act_f32.read(), want);
                CHECK(error < 1e-3, "%s and %s, d_ff %u: off by %g", name_of(of_gate), name_of(of_up), d_ff, error);
                CHECK(relative_error(got, want) < 1e-3, "%s and %s, d_ff %u: halves off by %g", name_of(of_gate), name_of(of_up), d_ff, relative_error(got, want));
                CHECK(pads_are_zero, "the columns that pad a row were written");
            }
        }
    }
}

TEST(decode_matmul_qkv_turns_and_appends) {
    struct Heads {
        uint32_t n_heads, n_kv_heads, d_head, d_head_pad, n_rope, adjacent, d_model;
        uint32_t formats[3];
    };
    Random random(4);
    constexpr uint32_t f16 = ORCD_FORMAT_F16, bf16 = ORCD_FORMAT_BF16, q8_0 = ORCD_FORMAT_Q8_0, q5_0 = ORCD_FORMAT_Q5_0;
    constexpr uint32_t q4_0 = ORCD_FORMAT_Q4_0, q4_k = ORCD_FORMAT_Q4_K, q6_k = ORCD_FORMAT_Q6_K;
    const Heads cases[] = {{14, 2, 64, 64, 64, 0, 84, {f16, f16, bf16}}, {3, 1, 12, 16, 12, 0, 84, {f16, f16, bf16}},
                           {3, 3, 12, 16, 12, 1, 84, {f16, f16, bf16}}, {7, 1, 12, 16, 8, 1, 84, {f16, f16, bf16}},
                           {6, 2, 20, 32, 20, 1, 84, {f16, f16, bf16}}, {3, 1, 64, 64, 64, 0, 256, {q4_k, q4_k, q6_k}},
                           {3, 1, 64, 64, 64, 0, 96, {q5_0, q5_0, q8_0}}, {3, 1, 12, 16, 12, 1, 256, {f16, q4_k, q6_k}},
                           {3, 1, 64, 64, 64, 0, 896, {q8_0, q8_0, q8_0}}, {3, 1, 12, 16, 12, 0, 96, {q4_0, q4_0, q4_0}},
                           {3, 1, 64, 64, 64, 1, 96, {q5_0, q5_0, q5_0}}, {3, 1, 64, 64, 64, 0, 512, {q4_k, q4_k, q4_k}},
                           {3, 1, 20, 32, 20, 0, 512, {q6_k, q6_k, q6_k}}};
    for (const Heads &h : cases) {
        for (uint32_t n_tokens : {1u, 3u, 20u}) {
            const uint32_t d_model = h.d_model, n_ctx = 100, n_table = 7;
            TestMatrix q(h.formats[0], h.n_heads * h.d_head, d_model, random, 0.2f);
            TestMatrix k(h.formats[1], h.n_kv_heads * h.d_head, d_model, random, 0.2f);
            TestMatrix v(h.formats[2], h.n_kv_heads * h.d_head, d_model, random, 0.2f);
            const TestMatrix *matrices[] = {&q, &k, &v};
            TestActivations x(n_tokens, d_model, 2.0f, random);
            std::vector<double> inv_freq;
            std::vector<float> table;
            for (uint32_t i = 0; i < h.n_rope / 2; i++) inv_freq.push_back(std::pow(1e4, -2.0 * i / h.n_rope));
            for (uint32_t p = 0; p < n_ctx; p++)
                for (double f : inv_freq) {
                    table.push_back((float)std::cos(p * f));
                    table.push_back((float)std::sin(p * f));
                }
            Guarded<float> cos_sin(table);
            // Each token's sequence has blocks of its own, scattered.
            std::vector<uint32_t> blocks(n_tokens * n_table), starts(n_tokens), positions(n_tokens);
            for (uint32_t i = 0; i < blocks.size(); i++) blocks[i] = (i * 37 + 11) % (uint32_t)blocks.size();
            if (blocks.size() % 37 == 0) std::exit(3);  // the line above would not be a permutation
            for (uint32_t i = 0; i < n_tokens; i++) {
                starts[i] = i * n_table;
                positions[i] = i == 1 ? 0xFFFFFFFFu : random.below(n_ctx);
            }
            Guarded<uint32_t> d_blocks(blocks), d_starts(starts), d_positions(positions);
            const size_t pool_size = blocks.size() * h.n_kv_heads * 16 * h.d_head_pad;
            Guarded<__half> k_pool(pool_size), v_pool(pool_size);
            Guarded<float> out_q((size_t)n_tokens * h.n_heads * h.d_head);
            std::vector<std::vector<float>> biases;
            std::vector<std::unique_ptr<Guarded<float>>> d_biases;
            orcd_decode_matmul_args a{};
            for (int i = 0; i < 3; i++) {
                a.w[i] = matrices[i]->matrix;
                biases.push_back(random.normals(matrices[i]->matrix.n_rows, 10.0f));
                d_biases.emplace_back(new Guarded<float>(biases[i]));
                a.qkv.bias[i] = d_biases[i]->get();
            }
            a.x = x.get();
            a.x_pitch = x.pitch;
            a.x_unscale = 0.5f;
            a.n_tokens = n_tokens;
            a.n_splits = 1;
            a.output = ORCD_DECODE_QKV;
            a.qkv.cos_sin = cos_sin.get();
            a.qkv.q = out_q.get();
            a.qkv.k_pool = reinterpret_cast<orcd_f16 *>(k_pool.get());
            a.qkv.v_pool = reinterpret_cast<orcd_f16 *>(v_pool.get());
            a.qkv.block_table = d_blocks.get();
            a.qkv.table_start = d_starts.get();
            a.qkv.positions = d_positions.get();
            a.qkv.n_heads = h.n_heads;
            a.qkv.n_kv_heads = h.n_kv_heads;
            a.qkv.d_head = h.d_head;
            a.qkv.d_head_pad = h.d_head_pad;
            a.qkv.n_rope = h.n_rope;
            a.qkv.rope_adjacent = h.adjacent;
            CUDA(orcd_decode_matmul(&a, nullptr));
            const std::vector<float> got_q = out_q.read();
            const std::vector<__half> got_k = k_pool.read(), got_v = v_pool.read();
            std::vector<bool> written(pool_size, false);
            for (int which = 0; which < 3; which++) {
                const uint32_t n_heads = which == 0 ? h.n_heads : h.n_kv_heads;
                std::vector<double> all = matmul_reference(matrices[which]->values, x.values, n_tokens, n_heads * h.d_head, d_model);
                std::vector<double> want, got;
                for (uint32_t token = 0; token < n_tokens; token++) {
                    if (positions[token] == 0xFFFFFFFFu) continue;
                    for (uint32_t head = 0; head < n_heads; head++) {
                        double *values = &all[((size_t)token * n_heads + head) * h.d_head];
                        for (uint32_t i = 0; i < h.d_head; i++) values[i] += biases[which][head * h.d_head + i];
                        if (which < 2) rope_reference(values, h.n_rope, h.adjacent, positions[token], inv_freq);
                        const uint32_t block = blocks[starts[token] + positions[token] / 16];
                        const size_t row = (((size_t)block * h.n_kv_heads + head) * 16 + positions[token] % 16) * h.d_head_pad;
                        for (uint32_t i = 0; i < (which == 0 ? h.d_head : h.d_head_pad); i++) {
                            want.push_back(i < h.d_head ? values[i] : 0);
                            if (which == 0) {
                                got.push_back(got_q[((size_t)token * n_heads + head) * h.d_head + i]);
                            } else {
                                got.push_back(__half2float((which == 1 ? got_k : got_v)[row + i]));
                                written[row + i] = true;
                            }
                        }
                    }
                }
                // Queries are F32; keys and values are rounded to halves.
                const double error = relative_error(got, want), limit = which == 0 ? 1e-5 : 4e-4;
                CHECK(error < limit, "%u tokens, d_head %u, %s: %c is off by %g", n_tokens, h.d_head, name_of(h.formats[which]), "qkv"[which], error);
            }
            bool untouched = true;
            for (size_t i = 0; i < pool_size; i++)
                if (!written[i]) untouched &= __half_as_ushort(got_k[i]) == 0xFFFF && __half_as_ushort(got_v[i]) == 0xFFFF;
            CHECK(untouched, "%u tokens, d_head %u: other tokens' keys or values were written", n_tokens, h.d_head);
        }
    }
}

TEST(decode_matmul_refuses_what_it_cannot_do) {
    Random random(5);
    TestMatrix w(ORCD_FORMAT_F16, 16, 32, random);
    TestActivations x(1, 32, 1.0f, random);
    Guarded<float> out(16);
    orcd_decode_matmul_args good{};
    good.w[0] = w.matrix;
    good.x = x.get();
    good.x_pitch = x.pitch;
    good.x_unscale = 1.0f;
    good.n_tokens = 1;
    good.n_splits = 1;
    good.out = out.get();
    auto refused = [&](void (*spoil)(orcd_decode_matmul_args &)) {
        orcd_decode_matmul_args a = good;
        spoil(a);
        return orcd_decode_matmul(&a, nullptr) == (int32_t)cudaErrorInvalidValue;
    };
    CHECK(refused([](orcd_decode_matmul_args &a) { a.n_tokens = 0; }), "no tokens");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.x_pitch = 31; }), "a pitch that is no multiple of 8");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.x_pitch = 24; }), "a pitch below the columns");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.w[0].row_bytes = 48; }), "rows that overlap");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.w[0].format = ORCD_N_FORMATS; }), "an unknown format");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.out = nullptr; }), "no output");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.output = 7; }), "an unknown output");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.w[0].values = (const char *)a.w[0].values + 8; }), "unaligned values");
    TestMatrix quantised(ORCD_FORMAT_Q6_K, 16, 256, random);
    TestActivations wide(1, 256, 1.0f, random);
    good.w[0] = quantised.matrix;
    good.x = wide.get();
    good.x_pitch = wide.pitch;
    CHECK(!refused([](orcd_decode_matmul_args &) {}), "what is refused below is not what is spoilt");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.w[0].high = nullptr; }), "no high bits");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.w[0].scales = nullptr; }), "no scales");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.w[0].supers = nullptr; }), "nothing that scales are units of");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.w[0].row_bytes += 16; }), "rows apart");
    CHECK(refused([](orcd_decode_matmul_args &a) { a.w[0].n_cols = 128, a.w[0].row_bytes = 64; }), "half a block");
}

TEST(decode_matmul_normalises_as_rms_norm_does) {
    Random random(6);
    struct Model {
        uint32_t d_model, gate, up;
    };
    std::vector<Model> models = {{36, 1, 1}, {96, 1, 1}, {896, 1, 1}, {1024, 1, 1}, {896, ORCD_FORMAT_Q5_0, ORCD_FORMAT_Q8_0}};
    for (uint32_t format = 0; format < ORCD_N_FORMATS; format++) models.push_back({block_of(format) == 256 ? 512u : 160u, format, format});
    for (const Model &model : models) {
        const uint32_t d_model = model.d_model;
        for (uint32_t n_tokens : {1u, 2u}) {
            for (uint32_t n_partials : {0u, 2u, 7u}) {
                const uint32_t d_ff = 200, pitch = (d_model + 31) / 32 * 32, act_pitch = 224;
                TestMatrix gate(model.gate, d_ff, d_model, random, 0.1f), up(model.up, d_ff, d_model, random, 0.1f);
                const std::vector<float> before = random.normals((size_t)n_tokens * d_model, 3.0f);
                Guarded<float> residual(before), partials(random.normals((size_t)n_partials * n_tokens * d_model + 1));
                Guarded<float> weight(random.normals(d_model)), residual_out((size_t)n_tokens * d_model);
                Guarded<float> scale(n_tokens), unscale(n_tokens), fused_scale(n_tokens), fused_unscale(n_tokens);
                Guarded<__half> x(std::vector<__half>((size_t)n_tokens * pitch, __float2half_rn(0.0f)));
                Guarded<__half> act(std::vector<__half>((size_t)n_tokens * act_pitch)), fused(std::vector<__half>((size_t)n_tokens * act_pitch));

                orcd_decode_matmul_args a{};
                a.w[0] = gate.matrix;
                a.w[1] = up.matrix;
                a.x_unscale = 0.125f;
                a.n_tokens = n_tokens;
                a.n_splits = 1;
                a.output = ORCD_DECODE_GATE_UP;
                a.act = reinterpret_cast<orcd_f16 *>(fused.get());
                a.act_pitch = act_pitch;
                a.norm.residual = residual.get();
                a.norm.partials = partials.get();
                a.norm.n_partials = n_partials;
                a.norm.residual_out = residual_out.get();
                a.norm.weight = weight.get();
                a.norm.eps = 1e-6f;
                a.norm.scale = 8.0f;
                a.norm.ffn_bound = 2.0f;
                a.norm.ffn_scale = fused_scale.get();
                a.norm.ffn_unscale = fused_unscale.get();
                CUDA(orcd_decode_matmul(&a, nullptr));
                CHECK(same_bits(residual.read(), before), "the residual was written");

                orcd_rms_norm_args n{};
                n.residual = residual.get();
                n.partials = partials.get();
                n.n_partials = n_partials;
                n.weight = weight.get();
                n.eps = 1e-6f;
                n.out_scale = 8.0f;
                n.out = reinterpret_cast<orcd_f16 *>(x.get());
                n.out_pitch = pitch;
                n.ffn_bound = 2.0f;
                n.ffn_scale = scale.get();
                n.ffn_unscale = unscale.get();
                n.n_tokens = n_tokens;
                n.d_model = d_model;
                CUDA(orcd_rms_norm(&n, nullptr));
                a.norm = orcd_decode_norm{};
                a.x = reinterpret_cast<orcd_f16 *>(x.get());
                a.x_pitch = pitch;
                a.act = reinterpret_cast<orcd_f16 *>(act.get());
                a.ffn_scale = scale.get();
                CUDA(orcd_decode_matmul(&a, nullptr));
                CHECK(same_bits(act.read(), fused.read()), "%s, d_model %u, %u tokens, %u partials: products differ", name_of(model.gate), d_model, n_tokens, n_partials);
                CHECK(same_bits(residual.read(), residual_out.read()), "d_model %u: residuals differ", d_model);
                CHECK(same_bits(scale.read(), fused_scale.read()) && same_bits(unscale.read(), fused_unscale.read()), "scales differ");
            }
        }
    }
}

namespace {

// The product as it comes, or (from 1 on) in the tiles of a shape. False where there are no such tiles.
bool product(const orcd_decode_matmul_args &a, uint32_t path) {
    if (path > 0 && !orcd::has_decode_tiles(a)) return false;
    const int32_t status = path == 0 ? orcd_decode_matmul(&a, nullptr) : orcd::decode_tiles(a, path - 1, nullptr);
    if (path > 0 && status == (int32_t)cudaErrorInvalidValue) return false;
    CUDA(status);
    return true;
}

// The bits that a product gives each of its tokens: run(first, n, path) has n tokens' `width` values, a token's after the other's;
// nothing where there is no such path.
template <class Run> void check_rows_alone(const char *what, uint32_t n_tokens, size_t width, const std::vector<uint32_t> &batches, Run run) {
    // Of few cases, the tokens at the borders of the tiles stand for all.
    std::vector<uint32_t> tokens;
    for (uint32_t token = 0; token < n_tokens; token++)
        if (!few_cases() || token % 64 == 0 || token == n_tokens - 1) tokens.push_back(token);
    std::vector<float> alone;
    for (uint32_t token : tokens) {
        const std::vector<float> row = run(token, 1, 0);
        alone.insert(alone.end(), row.begin(), row.end());
    }
    for (float v : alone) {
        if (!std::isnan(v)) continue;
        CHECK(false, "%s: a token alone has values that are not there", what);
        return;
    }
    for (uint32_t path = 0; path < 4; path++) {
        for (uint32_t n : batches) {
            for (uint32_t first : {0u, n_tokens - n}) {
                const std::vector<float> together = run(first, n, path);
                if (path > 0 && together.empty()) continue;
                bool same = together.size() == n * width;
                for (size_t i = 0; i < tokens.size() && same; i++) {
                    const uint32_t token = tokens[i];
                    if (token < first || token >= first + n) continue;
                    same = std::memcmp(&together[(token - first) * width], &alone[i * width], width * 4) == 0;
                }
                CHECK(same, "%s, path %u: %u tokens from %u have not the bits of each alone", what, path, n, first);
                if (first == n_tokens - n) break;
            }
        }
    }
}

// The numbers of tokens that are tried together, of 256: all, or some around the borders of the tiles.
std::vector<uint32_t> batches(bool all) {
    if (few_cases()) return {8, 33, 129, 256};
    if (!all) return {2, 8, 17, 32, 33, 40, 63, 64, 65, 96, 127, 128, 129, 191, 200, 255, 256};
    std::vector<uint32_t> each(256);
    for (uint32_t i = 0; i < 256; i++) each[i] = i + 1;
    return each;
}

}  // namespace

TEST(decode_matmul_stores_the_bits_of_each_token_alone_among_1_to_256) {
    // The last ones are wide enough that a block takes several tiles, of each shape of tile.
    const struct { uint32_t n_rows, n_cols, n_splits; bool all; } cases[] = {
        {200, 896, 3, true}, {61, 42, 1, false}, {896, 4864, 5, false}, {17, 96, 8, false}, {9700, 292, 1, false}, {30011, 392, 1, false}};
    Random random(7);
    for (auto c : cases) {
        TestMatrix w(ORCD_FORMAT_F16, c.n_rows, c.n_cols, random, 0.05f);
        TestActivations x(256, c.n_cols, 0.25f, random);
        std::vector<float> unscale_of(256);
        for (float &v : unscale_of) v = std::ldexp(1.0f, (int)random.below(5));
        Guarded<float> unscale(unscale_of);
        auto run = [&](uint32_t first, uint32_t n, uint32_t path) {
            Guarded<float> out((size_t)c.n_splits * n * c.n_rows);
            orcd_decode_matmul_args a{};
            a.w[0] = w.matrix;
            a.x = x.get() + (size_t)first * x.pitch;
            a.x_pitch = x.pitch;
            a.x_unscale = 4.0f;
            a.row_unscale = unscale.get() + first;
            a.n_tokens = n;
            a.n_splits = c.n_splits;
            a.out = out.get();
            if (!product(a, path)) return std::vector<float>();
            const std::vector<float> got = out.read();
            std::vector<float> by_token;
            by_token.reserve(got.size());
            for (uint32_t token = 0; token < n; token++) {
                for (uint32_t split = 0; split < c.n_splits; split++) {
                    const auto row = got.begin() + ((size_t)split * n + token) * c.n_rows;
                    by_token.insert(by_token.end(), row, row + c.n_rows);
                }
            }
            return by_token;
        };
        check_rows_alone("store", 256, (size_t)c.n_splits * c.n_rows, batches(c.all), run);
    }
}

TEST(decode_matmul_gate_up_has_the_bits_of_each_token_alone_among_1_to_256) {
    const struct { uint32_t d_ff, d_model; bool all; uint32_t gate, up; } cases[] = {
        {100, 896, true, 1, 1}, {33, 42, false, 1, 1}, {4864, 288, false, 1, 1}, {20001, 260, false, 1, 1},
        {100, 512, false, ORCD_FORMAT_Q4_K, ORCD_FORMAT_Q4_K}, {100, 512, false, ORCD_FORMAT_Q5_K, ORCD_FORMAT_Q6_K}};
    Random random(8);
    for (auto c : cases) {
        TestMatrix gate(c.gate, c.d_ff, c.d_model, random, 0.05f), up(c.up, c.d_ff, c.d_model, random, 0.05f);
        TestActivations x(256, c.d_model, 1.0f, random);
        std::vector<float> scale_of(256);
        for (float &v : scale_of) v = std::ldexp(1.0f, -(int)random.below(5));
        Guarded<float> scales(scale_of);
        const uint32_t pitch = (c.d_ff + 31) / 32 * 32;
        auto run = [&](uint32_t first, uint32_t n, uint32_t path) {
            Guarded<__half> act(std::vector<__half>((size_t)n * pitch, __float2half_rn(0.0f)));
            Guarded<float> act_f32((size_t)n * c.d_ff);
            orcd_decode_matmul_args a{};
            a.w[0] = gate.matrix;
            a.w[1] = up.matrix;
            a.x = x.get() + (size_t)first * x.pitch;
            a.x_pitch = x.pitch;
            a.x_unscale = 1.0f;
            a.n_tokens = n;
            a.n_splits = 1;
            a.output = ORCD_DECODE_GATE_UP;
            a.act = reinterpret_cast<orcd_f16 *>(act.get());
            a.act_pitch = pitch;
            a.ffn_scale = scales.get() + first;
            a.act_f32 = act_f32.get();
            if (!product(a, path)) return std::vector<float>();
            const std::vector<float> sums = act_f32.read();
            const std::vector<__half> halves = act.read();
            std::vector<float> by_token;
            by_token.reserve((size_t)n * (c.d_ff + pitch));
            for (uint32_t token = 0; token < n; token++) {
                by_token.insert(by_token.end(), sums.begin() + (size_t)token * c.d_ff, sums.begin() + (size_t)(token + 1) * c.d_ff);
                for (uint32_t i = 0; i < pitch; i++) by_token.push_back(__half2float(halves[(size_t)token * pitch + i]));
            }
            return by_token;
        };
        check_rows_alone("gate and up", 256, c.d_ff + pitch, batches(c.all), run);
    }
}

TEST(decode_matmul_qkv_has_the_bits_of_each_token_alone_among_1_to_256) {
    const struct { uint32_t n_heads, n_kv_heads, d_head, d_head_pad, n_rope, adjacent, d_model; bool all; uint32_t of_qk, of_v; } cases[] = {
        {3, 1, 64, 64, 64, 0, 896, true, 1, 1}, {14, 2, 64, 64, 64, 0, 896, false, 1, 1}, {3, 1, 12, 16, 12, 1, 42, false, 1, 1},
        {7, 1, 12, 16, 8, 0, 84, false, 1, 1}, {48, 4, 64, 64, 64, 0, 264, false, 1, 1},
        {3, 1, 64, 64, 64, 0, 896, false, ORCD_FORMAT_Q5_0, ORCD_FORMAT_Q8_0}, {3, 1, 12, 16, 12, 1, 512, false, ORCD_FORMAT_Q6_K, ORCD_FORMAT_Q6_K}};
    Random random(9);
    for (auto c : cases) {
        const uint32_t n_q = c.n_heads * c.d_head, n_kv = c.n_kv_heads * c.d_head, n_kv_pad = c.n_kv_heads * c.d_head_pad;
        TestMatrix q(c.of_qk, n_q, c.d_model, random, 0.05f), k(c.of_qk, n_kv, c.d_model, random, 0.05f),
            v(c.of_v, n_kv, c.d_model, random, 0.05f);
        TestActivations x(256, c.d_model, 1.0f, random);
        Guarded<float> cos_sin(random.normals((size_t)16 * c.n_rope)), bias(random.normals(n_q));
        std::vector<uint32_t> identity(256), positions(256);
        for (uint32_t i = 0; i < 256; i++) identity[i] = i, positions[i] = i % 16;
        Guarded<uint32_t> blocks(identity), starts(identity), d_positions(positions);
        auto run = [&](uint32_t first, uint32_t n, uint32_t path) {
            Guarded<float> out((size_t)n * n_q), probe((size_t)n * (n_q + 2 * n_kv));
            Guarded<__half> k_pool((size_t)256 * 16 * n_kv_pad), v_pool((size_t)256 * 16 * n_kv_pad);
            orcd_decode_matmul_args a{};
            a.w[0] = q.matrix, a.w[1] = k.matrix, a.w[2] = v.matrix;
            a.x = x.get() + (size_t)first * x.pitch;
            a.x_pitch = x.pitch;
            a.x_unscale = 1.0f;
            a.n_tokens = n;
            a.n_splits = 1;
            a.output = ORCD_DECODE_QKV;
            for (auto &b : a.qkv.bias) b = bias.get();
            a.qkv.cos_sin = cos_sin.get();
            a.qkv.q = out.get();
            a.qkv.probe = probe.get();
            a.qkv.k_pool = reinterpret_cast<orcd_f16 *>(k_pool.get());
            a.qkv.v_pool = reinterpret_cast<orcd_f16 *>(v_pool.get());
            a.qkv.block_table = blocks.get();
            a.qkv.table_start = starts.get() + first;
            a.qkv.positions = d_positions.get() + first;
            a.qkv.n_heads = c.n_heads, a.qkv.n_kv_heads = c.n_kv_heads;
            a.qkv.d_head = c.d_head, a.qkv.d_head_pad = c.d_head_pad;
            a.qkv.n_rope = c.n_rope, a.qkv.rope_adjacent = c.adjacent;
            if (!product(a, path)) return std::vector<float>();
            const std::vector<float> got_q = out.read(), got_probe = probe.read();
            const std::vector<__half> got[2] = {k_pool.read(), v_pool.read()};
            std::vector<float> by_token;
            for (uint32_t i = 0; i < n; i++) {
                by_token.insert(by_token.end(), got_q.begin() + (size_t)i * n_q, got_q.begin() + (size_t)(i + 1) * n_q);
                const auto of = got_probe.begin() + (size_t)i * (n_q + 2 * n_kv);
                by_token.insert(by_token.end(), of, of + n_q + 2 * n_kv);
                for (const auto &pool : got) {
                    for (uint32_t at = 0; at < n_kv_pad; at++) {
                        const uint32_t head = at / c.d_head_pad, token = first + i;
                        const size_t row = ((size_t)token * c.n_kv_heads + head) * 16 + token % 16;
                        by_token.push_back(__half2float(pool[row * c.d_head_pad + at % c.d_head_pad]));
                    }
                }
            }
            return by_token;
        };
        check_rows_alone("q, k and v", 256, 2 * (n_q + n_kv + n_kv_pad), batches(c.all), run);
    }
}
